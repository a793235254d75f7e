"""Channel scales as they are stored: what an upload says of them, checked without torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from adapters_store.base_model import BaseModelSpec
from adapters_store.expert_kinds.base import Shape, linear_misfits, size_problems
from adapters_store.limits import StoreLimits
from adapters_store.problems import Problem


@dataclass(frozen=True, slots=True)
class ChannelScaleSpec:
    """Scales what a linear layer puts out: y_i becomes y_i (1 + w g s_i), s [out_features]."""

    module: str  # the linear layer: "model.layers.0.mlp.down_proj"
    out_features: int
    tensor_scale: str  # key of s in the adapter's safetensors
    kind: Literal["channel_scale"] = "channel_scale"
    gate: int | None = None

    @property
    def site(self) -> str:
        return f"{self.module}#{self.kind}"

    @property
    def rows(self) -> int:
        return 1

    def row_widths(self, base: BaseModelSpec) -> tuple[int, ...]:
        return (1, self.out_features)

    @property
    def extras(self) -> str:
        return f"a {self.kind} expert at {self.module}"

    @property
    def tensor_shapes(self) -> Mapping[str, Shape]:
        return {self.tensor_scale: (self.out_features,)}

    def problems(self, limits: StoreLimits) -> Iterator[Problem]:
        yield from size_problems(self.site, {"out_features": self.out_features})

    def misfits(self, base: BaseModelSpec, hints: int) -> Iterator[Problem]:
        yield from linear_misfits(self.module, None, self.out_features, base, hints)
