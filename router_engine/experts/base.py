"""The contract of an expert kind: a spec on disk, weights on the host, rows on the device.

Three types a kind (`adapters_store.types.*ExpertSpec` -> host weights -> what is applied in a step)
keep files, memory and mathematics apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from adapters_store.expert_kinds.base import Activation
from adapters_store.expert_kinds.gating import GatingNetworkSpec
from adapters_store.types import AdapterManifest
from router_engine.experts.slab import pack
from router_engine.kernels.base import GatingWeights


class AdapterContents(Protocol):
    """What a blob store hands out for a digest."""

    @property
    def manifest(self) -> AdapterManifest: ...

    @property
    def tensors(self) -> Path: ...


class AdapterSource(Protocol):
    """Where adapters come from, by digest: `adapters_store.blobs` in production."""

    def fetch(self, digest: str) -> AdapterContents:
        """Files of a digest, local. Raises AdapterNotFoundError or IntegrityError."""
        ...


class BaseProjections(Protocol):
    """The base's own key and value projections, as no mixture has changed them."""

    def keys_and_values(self, attention: str, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """prompt [length, hidden] -> K, V [length, kv_heads, head_dim] in fp32 on the host.

        `attention`: the path of the attention module. Biases and k_norm are applied, where the base
        has them; experts and rotation are not. Loader threads call it beside running steps.
        """
        ...


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """All rank rows of one adapter at one site, on the host.

    At a linear layer and at a bottleneck a row r adds z_r b_r, z_r = act(a_r . x + bias_r). At a
    prompt a row is a key and a value. What rows are at the sites of other kinds, their files say.
    """

    # [rows, in]; of a prompt K [length, kv_heads * head_dim].
    a: Tensor
    # [rows, out], the scale already in it, finite once an adapter is loaded (`contained`); of a
    # prompt V with the head gates c folded in [length, heads * head_dim].
    b: Tensor
    scale: float  # kept because `linear` splits it
    # [rows] fp32: what layer routers score with (`prototypes`), 0 where the adapter is not plain.
    prototype: Tensor
    bias: Tensor | None = None  # [rows] fp32: 0 where None
    activation: Activation | None = None  # None: the identity
    # The last row is a bottleneck's bias on the way up; its a is 0, its bias 1, and it has no
    # activation, so that its z is 1.
    has_up_bias: bool = False
    # [rows] int32: the output of the layer's gating network that multiplies the row, -1 for none;
    # None: no row has one.
    gate: Tensor | None = None

    @property
    def count(self) -> int:
        return self.a.shape[0]

    @property
    def num_bytes(self) -> int:
        parts = (self.a, self.b, self.prototype, self.bias, self.gate)
        return sum(part.nbytes for part in parts if part is not None)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> ExpertRows:
        """The same with every tensor changed."""
        return replace(
            self,
            a=change(self.a),
            b=change(self.b),
            prototype=change(self.prototype),
            bias=None if self.bias is None else change(self.bias),
            gate=None if self.gate is None else change(self.gate),
        )


@dataclass(frozen=True, slots=True)
class HostGatingNetwork:
    """A gating network inside one layer, on the host; the pool keeps one like it on the device."""

    spec: GatingNetworkSpec  # what it reads and when
    network: GatingWeights  # what the kernels compute with; its `wide` in the pool's dtype

    @property
    def num_bytes(self) -> int:
        return self.network.num_bytes

    def mapped(self, change: Callable[[Tensor], Tensor]) -> HostGatingNetwork:
        """The same with every tensor changed."""
        return replace(self, network=self.network.mapped(change))


@dataclass(frozen=True, slots=True)
class AdapterParts:
    """The tensors of one adapter."""

    # A site is a linear layer's path, or a module's path and a kind's suffix ("...mlp#serial").
    rows_by_site: Mapping[str, ExpertRows]
    routers: Mapping[str, HostGatingNetwork]  # by their layer's path

    def mapped(self, change: Callable[[Tensor], Tensor]) -> AdapterParts:
        """The same with every tensor changed."""
        return AdapterParts(
            {site: rows.mapped(change) for site, rows in self.rows_by_site.items()},
            {layer: router.mapped(change) for layer, router in self.routers.items()},
        )


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """An adapter's weights in host memory, ready to be copied to the device."""

    digest: str  # of the adapter, or of one of its variants (`variants`)
    manifest: AdapterManifest
    slab: Tensor  # [bytes] uint8: all that the device needs of it
    parts: AdapterParts  # views of the slab
    load_seconds: float  # that reading it took
    # Where the parts lie in any slab of it, without memory; None: nothing copies this one.
    outline: AdapterParts | None = None

    @classmethod
    def packed(
        cls, digest: str, manifest: AdapterManifest, parts: AdapterParts, load_seconds: float
    ) -> HostAdapter:
        """An adapter with these parts, copied."""
        return cls(digest, manifest, *pack(parts), load_seconds)

    @property
    def num_bytes(self) -> int:
        return self.slab.nbytes

    @property
    def rows_by_site(self) -> Mapping[str, ExpertRows]:
        return self.parts.rows_by_site

    @property
    def num_rows(self) -> Mapping[str, int]:
        """Rows by site."""
        return {site: rows.count for site, rows in self.rows_by_site.items()}

    @property
    def is_plain_lora(self) -> bool:
        """Whether it is LoRA without gates alone; its copies, if it has any, are one by now."""
        return all(each.kind == "lora" and each.gate is None for each in self.manifest.experts)
