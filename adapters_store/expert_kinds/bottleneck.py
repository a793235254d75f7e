"""Bottleneck adapters (Houlsby et al. 2019) at a feed-forward module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from adapters_store.base_model import BaseModelSpec
from adapters_store.expert_kinds.base import (
    Activation,
    Copies,
    Shape,
    leading,
    place_misfits,
    rank_problems,
    scale_problems,
    width_misfits,
)
from adapters_store.limits import StoreLimits
from adapters_store.problems import Problem

Placement = Literal["parallel", "serial"]


@dataclass(frozen=True, slots=True)
class BottleneckExpertSpec:
    """A bottleneck at a feed-forward module: delta y = w g scale (U act(D v + d) + u).

    D [size, features], d [size], U [features, size], u [features]; a bias may be missing (None).
    parallel: v is what the module reads. serial: v is what it puts out, its own LoRA experts
    included, parallel bottlenecks not. Either way delta y is added to what the module puts out.
    Sources: MoA (2025), parallel adapter; Houlsby et al. (2019) and AdaMix (2022), serial.
    """

    module: str  # the feed-forward module, e.g. "model.layers.0.mlp"
    placement: Placement
    size: int
    features: int
    activation: Activation
    tensor_down: str  # key of D in the adapter's safetensors
    tensor_up: str  # key of U
    tensor_down_bias: str | None = None  # key of d
    tensor_up_bias: str | None = None  # key of u
    scale: float = 1.0
    kind: Literal["bottleneck"] = "bottleneck"
    gate: int | None = None
    copies: Copies | None = None  # down is D and d, up is U and u

    @property
    def site(self) -> str:
        """The place in the model whose rank rows it takes."""
        return f"{self.module}#{self.placement}"

    @property
    def rows(self) -> int:
        """Rank rows that it takes there: one more for the bias of the way up."""
        return self.size + (self.tensor_up_bias is not None)

    def row_widths(self, base: BaseModelSpec) -> tuple[int, ...]:
        """Numbers of one row, on the way down and up, and its bias."""
        return (self.features, self.features, 1)

    @property
    def extras(self) -> str:
        """See `ExpertSpec.extras`."""
        return f"a {self.kind} expert at {self.module}"

    @property
    def tensor_shapes(self) -> Mapping[str, Shape]:
        """D, U and the biases that it has, the copies in front."""
        down, up = leading(self.copies)
        shapes: dict[str, Shape] = {
            self.tensor_down: (*down, self.size, self.features),
            self.tensor_up: (*up, self.features, self.size),
        }
        if self.tensor_down_bias is not None:
            shapes[self.tensor_down_bias] = (*down, self.size)
        if self.tensor_up_bias is not None:
            shapes[self.tensor_up_bias] = (*up, self.features)
        return shapes

    def problems(self, limits: StoreLimits) -> Iterator[Problem]:
        """See `ExpertSpec.problems`."""
        sizes = {"size": self.size, "features": self.features}
        yield from rank_problems(self.site, sizes, limits)
        yield from scale_problems(self.site, self.scale)
        if self.copies is not None:
            yield from self.copies.problems(self.site)

    def misfits(self, base: BaseModelSpec, hints: int) -> Iterator[Problem]:
        """See `ExpertSpec.misfits`."""
        modules = [block.feed_forward for block in base.blocks]
        noun = "feed-forward module"
        yield from place_misfits(self.site, self.module, noun, modules, base, hints)
        yield from width_misfits(self.site, self.features, base)
