"""The specs of expert kinds by name: built-in ones and those of installed packages."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import EntryPoint
from typing import Annotated, Any, cast

from pydantic import ConfigDict, Field, TypeAdapter

from adapters_store.errors import StoreError
from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.plugins import Plugins, with_installed

GROUP = "adaptermix.expert_specs"
_HERE = "adapters_store.expert_kinds"
BUILT_IN = (
    EntryPoint("lora", f"{_HERE}.lora:LoraExpertSpec", GROUP),
    EntryPoint("bottleneck", f"{_HERE}.bottleneck:BottleneckExpertSpec", GROUP),
    EntryPoint("prompt", f"{_HERE}.prompt:PromptExpertSpec", GROUP),
)
_MEMBERS = (
    *("kind", "module", "gate", "site", "rows", "row_widths", "extras", "tensor_shapes"),
    *("problems", "misfits"),
)


class ExpertSpecRegistry:
    """Specs by kind, each imported when the first expert of its kind is read."""

    def __init__(self, entries: Iterable[EntryPoint]) -> None:
        """Raises StoreError when two entries share a name."""
        nouns = ("expert kind", "expert kinds")
        self._plugins = Plugins(entries, _spec_type, nouns=nouns, error=StoreError)
        self._readers: dict[tuple[frozenset[str], bool], TypeAdapter[tuple[ExpertSpec, ...]]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All kinds, built-in ones first."""
        return self._plugins.names

    def get(self, kind: str) -> type[ExpertSpec]:
        """The spec of one of `names`; raises StoreError where it cannot be imported."""
        return self._plugins.load(kind)

    def reader(
        self, experts: Sequence[Any], strict: ConfigDict | None = None
    ) -> TypeAdapter[tuple[ExpertSpec, ...]]:
        """A validator of such experts, as JSON: with their kinds, and the built-in ones.

        `strict`: the one configuration for uploads; None for what the store itself has written.
        """
        built_in = {entry.name for entry in BUILT_IN}.intersection(self.names)
        kinds = frozenset(built_in.union(self.kinds_of(experts)).intersection(self.names))
        key = (kinds, strict is not None)
        if key not in self._readers:
            union: Any = functools.reduce(operator.or_, map(self.get, sorted(kinds)))
            listed: Any = tuple[Annotated[union, Field(discriminator="kind")], ...]
            self._readers[key] = TypeAdapter(listed, config=strict)
        return self._readers[key]

    @staticmethod
    def kinds_of(experts: Sequence[Any]) -> frozenset[str]:
        """The kinds that JSON objects name, whether known or not."""
        kinds = (expert.get("kind") for expert in experts if isinstance(expert, dict))
        return frozenset(kind for kind in kinds if isinstance(kind, str))


def expert_specs() -> ExpertSpecRegistry:
    """The registry of this process: the built-in kinds and those of installed packages."""
    return _registry(tuple(with_installed(BUILT_IN, GROUP)))


@functools.cache
def _registry(entries: tuple[EntryPoint, ...]) -> ExpertSpecRegistry:
    return ExpertSpecRegistry(entries)


def _spec_type(name: str, loaded: object) -> type[ExpertSpec]:
    if not isinstance(loaded, type) or not is_dataclass(loaded):
        raise ValueError("is no dataclass")
    members = {field.name: field.default for field in fields(loaded)}
    missing = [each for each in _MEMBERS if each not in members and not hasattr(loaded, each)]
    if missing:
        raise ValueError(f"is no spec of an expert: it has no {', '.join(missing)}")
    if members.get("kind") != name:
        raise ValueError(f"has the kind {members.get('kind')!r}, not {name!r}")
    return cast(type[ExpertSpec], loaded)
