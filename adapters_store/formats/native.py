"""Our own folders: adaptermix.json, the manifest, and adapter_model.safetensors.

What holds experts beside LoRA, routers inside layers or copies comes in this format: whoever makes
such an adapter writes `manifest_to_json(manifest)` and the tensors that the manifest names. Read
strictly: no key, type or tensor passes that isn't applied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from adapters_store.expert_types import (
    BottleneckExpertSpec,
    Copies,
    ExpertSpec,
    LayerRouterSpec,
    LoraExpertSpec,
    PromptExpertSpec,
    ThresholdSpec,
)
from adapters_store.formats.base import FormatInput, Reading
from adapters_store.formats.config_files import ConfigError, load_json
from adapters_store.formats.listing import some
from adapters_store.formats.tensor_file import TENSOR_FILE, read_tensor_file
from adapters_store.manifest import SCHEMA
from adapters_store.tensor_header import TensorHeader
from adapters_store.types import AdapterManifest, Problem
from adapters_store.validation import tensor_shapes

FORMAT: Literal["adaptermix"] = "adaptermix"
MANIFEST_FILE = "adaptermix.json"

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # in models, in dataclasses
_PEFT_CONFIG = "adapter_config.json"
_SPECS = (
    *(LoraExpertSpec, BottleneckExpertSpec, PromptExpertSpec),
    *(Copies, LayerRouterSpec, ThresholdSpec, AdapterManifest),
)
_MOST_PARTS = 4096
_KINDS = "kinds are lora, bottleneck and prompt"
_KEYS = sorted({field.name for spec in _SPECS for field in fields(spec)})


@dataclass(frozen=True, slots=True)
class NativeAdapter:
    """What a folder of this format is made of; `notes` tell people what was not said or used."""

    manifest: AdapterManifest
    tensors: Mapping[str, NDArray[Any]]
    notes: tuple[str, ...] = ()


class _Document(BaseModel):
    """The fields of AdapterManifest; the config holds for the dataclasses in them too."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    format: Literal["adaptermix"]
    # BaseModel has a `schema` of its own.
    version: Literal[1] = Field(alias="schema")
    base_model: str | None = None
    experts: tuple[Annotated[ExpertSpec, Field(discriminator="kind")], ...]
    routers: tuple[LayerRouterSpec, ...] = ()


class NativeFormat:
    """Every kind of expert, with routers inside layers."""

    name = FORMAT
    files = frozenset({MANIFEST_FILE, TENSOR_FILE})

    def recognises(self, given: FormatInput) -> bool:
        return MANIFEST_FILE in given.files

    def read(self, given: FormatInput) -> Reading:
        problems: list[Problem] = []
        if _PEFT_CONFIG in given.files:
            problems.append(
                Problem(
                    "upload",
                    f"holds {_PEFT_CONFIG}, PEFT's, beside {MANIFEST_FILE}: send the one that "
                    f"says what {TENSOR_FILE} holds",
                )
            )
        manifest, unknown = _read_manifest(given, problems)
        header = read_tensor_file(given, MANIFEST_FILE, problems)
        if manifest is not None and header is not None:
            problems += _strays(manifest, header)
        return Reading(
            tensors=given.files.get(TENSOR_FILE),
            config=given.files.get(MANIFEST_FILE),
            manifest=None if header is None else manifest,
            problems=tuple(problems),
            unknown_keys=unknown,
        )


def _read_manifest(
    given: FormatInput, problems: list[Problem]
) -> tuple[AdapterManifest | None, tuple[str, ...]]:
    path = given.files[MANIFEST_FILE]
    try:
        raw = load_json(path, given.limits.max_config_bytes)
        _require_few(raw)
        read = _Document.model_validate_json(json.dumps(raw))
    except ConfigError as error:
        problems.append(Problem(MANIFEST_FILE, str(error)))
        return None, ()
    except ValidationError as error:
        errors = error.errors()
        problems += [_problem(item) for item in errors]
        return None, tuple(_path(item) for item in errors if item["type"] in _UNKNOWN)
    return AdapterManifest(FORMAT, read.experts, read.base_model, read.routers, SCHEMA), ()


def _require_few(raw: Mapping[str, Any]) -> None:
    """Raises ConfigError for more parts than any model has places for."""
    for key in ("experts", "routers"):
        parts = raw.get(key)
        if isinstance(parts, list) and len(parts) > _MOST_PARTS:
            told = f"{key} are {len(parts)}, at most {_MOST_PARTS} are accepted"
            raise ConfigError(told)


def _strays(manifest: AdapterManifest, header: TensorHeader) -> list[Problem]:
    named = {key for part in (*manifest.experts, *manifest.routers) for key in tensor_shapes(part)}
    strays = header.tensors.keys() - named
    if not strays:
        return []
    what = "is a tensor" if len(strays) == 1 else "are tensors"
    told = f"{what} that nothing in {MANIFEST_FILE} names: leave out what is not used, or name it"
    return [Problem(some(strays), told)]


def _problem(item: ErrorDetails) -> Problem:
    path, kind = _path(item), item["type"]
    if kind == "union_tag_not_found":
        return Problem(f"{MANIFEST_FILE}: {path}.kind", f"is missing: {_KINDS}")
    if kind == "union_tag_invalid":
        return Problem(f"{MANIFEST_FILE}: {path}.kind", f"is {item['ctx']['tag']!r}: {_KINDS}")
    where = f"{MANIFEST_FILE}: {path}" if path else MANIFEST_FILE
    if kind in ("missing", "missing_argument"):
        return Problem(where, "is missing")
    if kind in _UNKNOWN:
        near = get_close_matches(str(item["loc"][-1]), _KEYS, n=1)
        hint = f"; near names: {near[0]}" if near else ""
        return Problem(where, f"the key is unknown: leave it out{hint}")
    text = json.dumps(item["input"])
    shown = text if len(text) <= 120 else text[:117] + "..."
    return Problem(where, f"is {shown}: {item['msg']}")


def _path(item: ErrorDetails) -> str:
    """Such as experts[3].copies.down[0]; empty where the whole is meant."""
    location = item["loc"]
    if location[:1] == ("experts",):  # then the index, then the kind, which is no key
        location = (*location[:2], *location[3:])
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return path.removeprefix(".")
