"""Expert kinds of the engine: how each is loaded, and what it adds to a step.

A kind is one file: its weights in host memory (`load`) and its mathematics (`terms`). The store has
its spec: `adapters_store.expert_kinds`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any, Literal

import torch
from torch import Tensor

from adapters_store.near_names import near_names
from adapters_store.plugins import Plugins, named, with_installed
from router_engine.errors import EngineError
from router_engine.experts.base import BaseProjections, ExpertRows
from router_engine.experts.copies import AdapterTensors
from router_engine.experts.rows import GatheredRows
from router_engine.kernels.base import Operations

GROUP = "adaptermix.experts"
_HERE = "router_engine.experts"
_BUILT_IN = (
    EntryPoint("lora", f"{_HERE}.lora:KIND", GROUP),
    EntryPoint("bottleneck", f"{_HERE}.bottleneck:KIND", GROUP),
    EntryPoint("prompt", f"{_HERE}.prompt:KIND", GROUP),
)
BUILT_IN = frozenset(entry.name for entry in _BUILT_IN)

Place = Literal["linear", "feed_forward", "attention"]


@dataclass(frozen=True, slots=True)
class Loading:
    """The circumstances under which experts are loaded."""

    dtype: torch.dtype  # of the rows' a and b
    base: BaseProjections  # makes what depends on the base's own weights
    is_plain_lora: bool  # whether the adapter holds nothing else, so that `arrow` may choose it


Load = Callable[[Sequence[Any], AdapterTensors, Loading], Mapping[str, ExpertRows]]
"""All experts of the kind in one adapter, as specs -> their rank rows by site."""

Add = Callable[[Operations, Tensor, Tensor, GatheredRows, Tensor], None]
"""(operations, y, x, rows, row_weights) -> None: adds a kind's experts to y, in place.

y: what the module puts out, with its LoRA and with the terms before this one; x: what it reads.
linear: y [tokens, out], x [tokens, in]. feed_forward: both [tokens, hidden]. attention: y is what
o_proj is to read, x the rotated query, both [tokens, heads, head_dim]. rows: of all adapters of the
step at this site. row_weights [tokens, rows] fp32: the weight of the row's adapter times the row's
gate; 0 where a token does not use the adapter, and then the row must have no part, whatever its
numbers (`kernels.weighted`). `rows.b` is finite; a row whose stored b was not has NaN in `rows.a`.
"""


@dataclass(frozen=True, slots=True)
class Term:
    """What experts of a kind add at one sort of place."""

    place: Place
    suffix: str  # of its sites, behind the module's path: "#serial"
    add: Add


@dataclass(frozen=True, slots=True)
class ExpertKind:
    """One kind. LoRA has no terms: its rows are those of the linear layers themselves."""

    name: str  # the `kind` of its spec
    load: Load
    terms: tuple[Term, ...] = ()


class ExpertKinds:
    """Kinds by name, each imported when the first adapter that holds one is loaded."""

    def __init__(self, entries: Iterable[EntryPoint]) -> None:
        """Raises EngineError when two entries share a name."""
        nouns = ("expert kind", "expert kinds")
        self._plugins = Plugins(entries, named(ExpertKind), nouns=nouns, error=EngineError)
        self._loaded: tuple[ExpertKind, ...] = ()  # in the order of the names
        self._terms: Mapping[Place, tuple[Term, ...]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All kinds, built-in ones first."""
        return self._plugins.names

    def get(self, name: str) -> ExpertKind:
        """A kind; from then on its terms are in `terms`. For any thread.

        Raises EngineError, with all names, for one that is unknown or cannot be loaded.
        """
        if name not in self.names:
            near = near_names(name, self.names, most=1)
            hint = f", near: {near[0]}" if near else ""
            raise EngineError(
                f"unknown expert kind {name!r} (known: {', '.join(self.names)}{hint}): install the "
                "package that adds it"
            )
        kind = self._plugins.load(name)
        if kind not in self._loaded:
            self._take(kind)
        return kind

    def terms(self, place: Place) -> tuple[Term, ...]:
        """The terms of a place in the order of `names`, of all kinds that were asked for."""
        return self._terms.get(place, ())

    def _take(self, kind: ExpertKind) -> None:
        names = self.names
        loaded = sorted({*self._loaded, kind}, key=lambda each: names.index(each.name))
        by_place: dict[Place, tuple[Term, ...]] = {}
        owners: dict[str, str] = {"": "lora"}
        for each in loaded:
            for term in each.terms:
                owner = owners.setdefault(term.suffix, each.name)
                if owner != each.name:
                    raise EngineError(
                        f"expert kind {each.name!r} takes the sites {term.suffix!r} of {owner!r}"
                    )
                by_place[term.place] = (*by_place.get(term.place, ()), term)
        # Whole and at once: a step may run beside a loader's thread.
        self._terms, self._loaded = by_place, tuple(loaded)


def expert_kinds() -> ExpertKinds:
    """The registry of this process: the built-in kinds and those of installed packages."""
    return _registry(tuple(with_installed(_BUILT_IN, GROUP)))


@functools.cache
def _registry(entries: tuple[EntryPoint, ...]) -> ExpertKinds:
    return ExpertKinds(entries)
