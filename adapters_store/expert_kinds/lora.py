"""LoRA (Hu et al. 2021): a low-rank pair at a linear layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from adapters_store.base_model import BaseModelSpec
from adapters_store.expert_kinds.base import (
    Copies,
    Shape,
    leading,
    linear_misfits,
    rank_problems,
    scale_problems,
)
from adapters_store.limits import StoreLimits
from adapters_store.problems import Problem


@dataclass(frozen=True, slots=True)
class LoraExpertSpec:
    """One low-rank pair: delta y = w g scale B (A x), A [rank, in], B [out, rank].

    An adapter may hold several for one module where each has a gate of its own.
    """

    module: str
    rank: int
    scale: float  # alpha / r, or alpha / sqrt(r) for rsLoRA
    in_features: int
    out_features: int
    tensor_a: str  # key of A in the adapter's safetensors
    tensor_b: str  # key of B
    kind: Literal["lora"] = "lora"
    gate: int | None = None  # which output of the layer's gating network; None: no gate
    copies: Copies | None = None  # down is A, up is B

    @property
    def site(self) -> str:
        """The place in the model whose rank rows it takes."""
        return self.module

    @property
    def rows(self) -> int:
        """Rank rows that it takes there."""
        return self.rank

    def row_widths(self, base: BaseModelSpec) -> tuple[int, ...]:
        """Numbers of one row, in A and in B."""
        return (self.in_features, self.out_features)

    @property
    def extras(self) -> str | None:
        """See `ExpertSpec.extras`."""
        if self.gate is not None:
            return f"a gate on the LoRA at {self.module}"
        if self.copies is not None:
            return f"copies of the LoRA at {self.module}"
        return None

    @property
    def tensor_shapes(self) -> Mapping[str, Shape]:
        """A and B, the copies in front."""
        down, up = leading(self.copies)
        return {
            self.tensor_a: (*down, self.rank, self.in_features),
            self.tensor_b: (*up, self.out_features, self.rank),
        }

    def problems(self, limits: StoreLimits) -> Iterator[Problem]:
        """See `ExpertSpec.problems`."""
        sizes = {"rank": self.rank, "in_features": self.in_features}
        sizes["out_features"] = self.out_features
        yield from rank_problems(self.site, sizes, limits)
        yield from scale_problems(self.site, self.scale)
        if self.copies is not None:
            yield from self.copies.problems(self.site)

    def misfits(self, base: BaseModelSpec, hints: int) -> Iterator[Problem]:
        """See `ExpertSpec.misfits`."""
        yield from linear_misfits(self.module, self.in_features, self.out_features, base, hints)
