"""Experts in the store whose kind no installed package reads any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adapters_store.base_model import BaseModelSpec
from adapters_store.expert_kinds.base import Shape
from adapters_store.limits import StoreLimits
from adapters_store.problems import Problem


@dataclass(frozen=True, slots=True)
class UnknownExpertSpec:
    """An expert that can be listed, moved and deleted with its adapter, and not be run."""

    stored: Mapping[str, Any]  # its fields, as in the manifest

    @property
    def kind(self) -> str:
        """The name of the kind."""
        return str(self.stored.get("kind"))

    @property
    def module(self) -> str:
        """The module at which it acts."""
        return str(self.stored.get("module"))

    @property
    def gate(self) -> int | None:
        """The output of a gating network that multiplies it."""
        gate = self.stored.get("gate")
        return gate if isinstance(gate, int) else None

    @property
    def site(self) -> str:
        """A place of its own."""
        return f"{self.module}#{self.kind}"

    @property
    def rows(self) -> int:
        """Nothing is known of its size."""
        return 0

    def row_widths(self, base: BaseModelSpec) -> tuple[int, ...]:
        """See `rows`."""
        return (0, 0)

    @property
    def extras(self) -> str:
        """See `ExpertSpec.extras`."""
        return f"an expert of the unknown kind {self.kind!r} at {self.module}"

    @property
    def tensor_shapes(self) -> Mapping[str, Shape]:
        """See `rows`."""
        return {}

    def problems(self, _: StoreLimits) -> Iterator[Problem]:
        """That its kind is unknown."""
        yield Problem(
            self.site, f"is of the unknown kind {self.kind!r}: install the package that adds it"
        )

    def misfits(self, _: BaseModelSpec, __: int) -> Iterator[Problem]:
        """None that is known."""
        yield from ()
