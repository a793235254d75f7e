"""Native prompt experts (MoA 2025): learned keys and values beside the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from adapters_store.base_model import BaseModelSpec
from adapters_store.expert_kinds.base import (
    Shape,
    named,
    place_misfits,
    rank_problems,
    width_misfits,
)
from adapters_store.limits import StoreLimits
from adapters_store.problems import Problem


@dataclass(frozen=True, slots=True)
class PromptExpertSpec:
    """Learned keys and values beside the cache, with a softmax of their own.

    P [length, features] goes through the base's own k_proj (and k_norm, where there is one) and
    v_proj, without experts and without rotation: K, V [length, kv_heads, head_dim]. For head h
    delta attended_th = w g c_h sum_l softmax_l(q_th . K_l / sqrt(head_dim)) V_l, c [heads], q after
    its experts and rotation; it is added to what o_proj and its experts read.
    Source: MoA (2025), native prompt expert.
    """

    module: str  # the attention module, e.g. "model.layers.0.self_attn"
    length: int
    features: int  # the base's hidden size
    heads: int  # query heads
    tensor_prompt: str  # key of P in the adapter's safetensors
    tensor_head_gates: str  # key of c
    kind: Literal["prompt"] = "prompt"
    gate: int | None = None

    @property
    def site(self) -> str:
        """The place in the model whose rank rows it takes."""
        return f"{self.module}#prompt"

    @property
    def rows(self) -> int:
        """Rank rows that it takes there."""
        return self.length

    def row_widths(self, base: BaseModelSpec) -> tuple[int, ...]:
        """Numbers of a key of the kv heads, and of a value that is kept for each query head."""
        names = [f"{self.module}.{name}" for name in ("k_proj", "v_proj", "q_proj")]
        if not base.linears.keys() >= {*names}:
            return (0, 0)  # it cannot act there: see `misfits`
        keys, values, queries = (base.linears[name].out_features for name in names)
        return (keys, values * queries // keys)

    @property
    def extras(self) -> str:
        """See `ExpertSpec.extras`."""
        return f"a {self.kind} expert at {self.module}"

    @property
    def tensor_shapes(self) -> Mapping[str, Shape]:
        """P and c."""
        return {
            self.tensor_prompt: (self.length, self.features),
            self.tensor_head_gates: (self.heads,),
        }

    def problems(self, limits: StoreLimits) -> Iterator[Problem]:
        """See `ExpertSpec.problems`."""
        sizes = {"length": self.length, "features": self.features, "heads": self.heads}
        yield from rank_problems(self.site, sizes, limits)

    def misfits(self, base: BaseModelSpec, hints: int) -> Iterator[Problem]:
        """See `ExpertSpec.misfits`."""
        modules = [block.attention for block in base.blocks]
        noun = "attention module"
        unplaced = list(place_misfits(self.site, self.module, noun, modules, base, hints))
        yield from unplaced
        absent = [
            name for name in ("k_proj", "v_proj") if f"{self.module}.{name}" not in base.linears
        ]
        if absent and not unplaced:
            yield Problem(
                self.site,
                f"needs a {' and a '.join(absent)}, through which its keys and values are made; "
                f"{named(base)} has none there: prompt experts work on Llama and its like",
            )
        yield from width_misfits(self.site, self.features, base)
        if self.heads != base.num_heads:
            yield Problem(
                self.site,
                f"has {self.heads} heads in the adapter, but {base.num_heads} in {named(base)}",
            )
