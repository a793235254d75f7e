"""Our own folders: adaptermix.json, the manifest, and adapter_model.safetensors.

What holds experts beside LoRA, routers inside layers or copies comes in this format: whoever makes
such an adapter writes `manifest_to_json(manifest)` and the tensors that the manifest names. Read
strictly: no key, type or tensor passes that isn't applied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any, Literal, TypeVar

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from adapters_store.expert_kinds.base import Copies
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.expert_kinds.gating import GatingNetworkSpec, ThresholdSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.expert_kinds.prompt import PromptExpertSpec
from adapters_store.expert_kinds.registry import expert_specs
from adapters_store.formats.base import AdapterFolder, ParsedAdapter
from adapters_store.formats.config_files import ConfigError, load_json
from adapters_store.formats.tensor_file import TENSOR_FILE, read_tensor_file
from adapters_store.manifest import SCHEMA
from adapters_store.near_names import MOST_HINTED, near_names
from adapters_store.problems import bounded_text, name_list
from adapters_store.tensor_header import TensorHeader
from adapters_store.types import AdapterManifest, Problem

FORMAT: Literal["adaptermix"] = "adaptermix"
MANIFEST_FILE = "adaptermix.json"

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # in models, in dataclasses
_PEFT_CONFIG = "adapter_config.json"
_SPECS = (
    *(LoraExpertSpec, BottleneckExpertSpec, PromptExpertSpec),
    *(Copies, GatingNetworkSpec, ThresholdSpec, AdapterManifest),
)
_PARTS = ("experts", "routers")
_MOST_PARTS = 4096
_KEYS = sorted({key.name for spec in _SPECS for key in fields(spec)})
_MOST_KEYS = 64  # of one object: an expert has a dozen
_MOST_ITEMS = 512  # of a list within a part: the weights of copies
_MOST_CHARACTERS = 512  # of a text, as of a tensor's name
_MOST_DIGITS = 39  # of a whole number: as many as float32's have
_NUMBERS_END = 10**_MOST_DIGITS
_MOST_KEY = 80  # characters of an unknown key in a message
_MOST_ERRORS = 24  # reported, each in a problem of its own

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NativeAdapter:
    """The content of a folder of this format, before it is written."""

    manifest: AdapterManifest
    tensors: Mapping[str, NDArray[Any]]  # by the keys that the manifest names
    notes: tuple[str, ...] = ()  # to people: what the source did not say, or was not used of it


# It holds for the dataclasses of the parts too.
_STRICT = ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, str_max_length=_MOST_CHARACTERS
)


class _Document(BaseModel):
    """The fields of AdapterManifest; experts and routers are read one by one."""

    model_config = _STRICT

    format: Literal["adaptermix"]
    # BaseModel has a `schema` of its own.
    version: Literal[1] = Field(alias="schema")
    base_model: str | None = None
    experts: list[Any]
    routers: list[Any] = []


_DOCUMENT = TypeAdapter(_Document)
_ROUTERS = TypeAdapter(tuple[GatingNetworkSpec, ...], config=_STRICT)


@dataclass(slots=True)
class _Errors:
    """The first errors of a document, and how many there are."""

    first: list[ErrorDetails] = field(default_factory=list)  # at most _MOST_ERRORS
    count: int = 0  # of all

    def read(self, schema: TypeAdapter[T], value: object) -> T | None:
        """The value by its schema; None where it is wrong."""
        try:
            return schema.validate_json(json.dumps(value))
        except ValidationError as error:
            errors = error.errors(include_url=False) if len(self.first) < _MOST_ERRORS else []
            self.first += errors[: _MOST_ERRORS - len(self.first)]
            self.count += error.error_count()
            return None

    def read_parts(
        self, schema: TypeAdapter[tuple[T, ...]], key: str, values: list[Any]
    ) -> list[T]:
        """The values that are as the schema says, read one by one so that no step is long."""
        parts: list[T] = []
        for index, value in enumerate(values):
            before = len(self.first)
            read = self.read(schema, [value])
            parts += () if read is None else read
            for item in self.first[before:]:
                item["loc"] = (key, index, *item["loc"][1:])
        return parts


class NativeFormat:
    """Every kind of expert, with routers inside layers."""

    name = FORMAT
    files = frozenset({MANIFEST_FILE, TENSOR_FILE})

    def recognises(self, folder: AdapterFolder) -> bool:
        return MANIFEST_FILE in folder.files

    def read(self, folder: AdapterFolder) -> ParsedAdapter:
        problems: list[Problem] = []
        if _PEFT_CONFIG in folder.files:
            problems.append(
                Problem(
                    "upload",
                    f"holds {_PEFT_CONFIG}, PEFT's, beside {MANIFEST_FILE}: send the one that "
                    f"says what {TENSOR_FILE} holds",
                )
            )
        manifest, unknown = _read_manifest(folder, problems)
        header = read_tensor_file(folder, MANIFEST_FILE, problems)
        if manifest is not None and header is not None:
            problems += _strays(manifest, header)
        return ParsedAdapter(
            tensors=folder.files.get(TENSOR_FILE),
            config=folder.files.get(MANIFEST_FILE),
            manifest=None if header is None else manifest,
            problems=tuple(problems),
            unknown_keys=unknown,
        )


def _read_manifest(
    folder: AdapterFolder, problems: list[Problem]
) -> tuple[AdapterManifest | None, tuple[str, ...]]:
    path = folder.files[MANIFEST_FILE]
    try:
        raw = load_json(path, folder.limits.max_config_bytes)
        parts = {key: raw[key] for key in _PARTS if isinstance(raw.get(key), list)}
        _require_few(raw, parts)
    except ConfigError as error:
        problems.append(Problem(MANIFEST_FILE, str(error)))
        return None, ()
    errors = _Errors()
    listed = parts.get("experts", [])
    experts = errors.read_parts(expert_specs().reader(listed, _STRICT), "experts", listed)
    routers = errors.read_parts(_ROUTERS, "routers", parts.get("routers", []))
    read = errors.read(_DOCUMENT, {**raw, **dict.fromkeys(parts, ())})
    if read is not None and not errors.first:
        base_model = read.base_model
        return AdapterManifest(FORMAT, tuple(experts), base_model, tuple(routers), SCHEMA), ()
    problems += [_problem(item, hint=i < MOST_HINTED) for i, item in enumerate(errors.first)]
    more = errors.count - len(errors.first)
    if more:
        problems.append(Problem(MANIFEST_FILE, f"and {more} more errors"))
    return None, tuple(_path(item) for item in errors.first if item["type"] in _UNKNOWN)


def _require_few(raw: Mapping[str, Any], parts: Mapping[str, list[Any]]) -> None:
    """Raises ConfigError for more parts than any model has places for, and more in one of them."""
    waiting: list[object] = [{**raw, **dict.fromkeys(parts)}]
    for key, listed in parts.items():
        if len(listed) > _MOST_PARTS:
            raise ConfigError(f"{key} are {len(listed)}, at most {_MOST_PARTS} are accepted")
        waiting += listed
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if len(value) > _MOST_KEYS:
                first_keys = ", ".join(_shown_key(key) for key in islice(value, MOST_HINTED))
                raise ConfigError(
                    f"an object has {len(value)} keys ({first_keys}, ...), at most {_MOST_KEYS} "
                    "are accepted"
                )
            waiting += value.values()
        elif isinstance(value, list):
            if len(value) > _MOST_ITEMS:
                raise ConfigError(
                    f"a list has {len(value)} items, at most {_MOST_ITEMS} are accepted"
                )
            waiting += value
        elif isinstance(value, int) and abs(value) >= _NUMBERS_END:
            raise ConfigError(f"a whole number has {_MOST_DIGITS + 1} digits or more")


def _strays(manifest: AdapterManifest, header: TensorHeader) -> list[Problem]:
    named = {key for part in manifest.parts for key in part.tensor_shapes}
    strays = header.tensors.keys() - named
    if not strays:
        return []
    subject = "is a tensor" if len(strays) == 1 else "are tensors"
    message = (
        f"{subject} that nothing in {MANIFEST_FILE} names: leave out what is not used, or name it"
    )
    return [Problem(name_list(strays), message)]


def _problem(item: ErrorDetails, *, hint: bool) -> Problem:
    path, kind = _path(item), item["type"]
    if kind == "union_tag_not_found":
        return Problem(f"{MANIFEST_FILE}: {path}.kind", f"is missing: {_kinds()}")
    if kind == "union_tag_invalid":
        return Problem(f"{MANIFEST_FILE}: {path}.kind", f"is {item['ctx']['tag']!r}: {_kinds()}")
    where = f"{MANIFEST_FILE}: {path}" if path else MANIFEST_FILE
    if kind in ("missing", "missing_argument"):
        return Problem(where, "is missing")
    if kind in _UNKNOWN:
        near = near_names(str(item["loc"][-1]), _KEYS, most=1, cutoff=0.6) if hint else []
        near_hint = f"; near names: {near[0]}" if near else ""
        return Problem(where, f"the key is unknown: leave it out{near_hint}")
    text = json.dumps(item["input"])
    excerpt = text if len(text) <= 120 else text[:117] + "..."
    return Problem(where, f"is {excerpt}: {item['msg']}")


def _kinds() -> str:
    *names, last = expert_specs().names
    return f"kinds are {', '.join(names)} and {last}"


def _path(item: ErrorDetails) -> str:
    """Such as experts[3].copies.down[0]; empty where the whole is meant."""
    location = item["loc"]
    if location[:1] == ("experts",):  # then the index, then the kind, which is no key
        location = (*location[:2], *location[3:])
    path = "".join(
        f"[{step}]" if isinstance(step, int) else f".{_shown_key(step)}" for step in location
    )
    return path.removeprefix(".")


def _shown_key(key: str) -> str:
    return bounded_text(key, _MOST_KEY)
