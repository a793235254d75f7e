"""An adapter on the device: where its rank rows and gating networks lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from adapters_store.expert_kinds.base import Activation
from router_engine.experts.base import AdapterParts, ExpertRows, HostAdapter, HostGatingNetwork
from router_engine.experts.slab import offset, part_of


@dataclass(frozen=True, slots=True)
class RowPointers:
    """Addresses of an adapter's rows at a site. Good for as long as it is on the device.

    Of its first row in each part, all contiguous; 0 where the adapter has no such part.
    """

    a: int  # in the pool's dtype
    b: int  # in the pool's dtype
    prototype: int  # fp32
    bias: int  # fp32
    gate: int  # int32
    count: int  # rows
    scale: float
    activation: Activation | None
    has_up_bias: bool


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Resident:
    """One adapter's slab on the device, where it is now.

    Its addresses never change: one that comes back, or has moved, is another resident.
    outline: its parts, of which the places in their slab, shapes and dtypes alone are read.
    """

    slab: Tensor
    outline: AdapterParts
    routers: Mapping[str, HostGatingNetwork]  # by their layer's path, on the device
    num_rows: Mapping[str, int]  # by site
    is_plain_lora: bool

    @property
    def num_bytes(self) -> int:
        return self.slab.nbytes

    @classmethod
    def of(cls, adapter: HostAdapter, slab: Tensor) -> Resident:
        """An adapter whose slab on the device this is."""
        parts = adapter.outline or adapter.parts
        routers = _on(slab, parts.routers)
        return cls(slab, parts, routers, adapter.num_rows, adapter.is_plain_lora)

    def at(self, slab: Tensor) -> Resident:
        """The same adapter in another slab."""
        return replace(self, slab=slab, routers=_on(slab, self.outline.routers))

    def rows(self, site: str) -> ExpertRows | None:
        """The rows at a site, on the device; None where the adapter does not touch it."""
        rows = self.outline.rows_by_site.get(site)
        return None if rows is None else rows.mapped(lambda part: part_of(self.slab, part))

    def located(self, site: str) -> RowPointers | None:
        """Where the rows at a site lie; None where the adapter does not touch it."""
        rows = self.outline.rows_by_site.get(site)
        if rows is None:
            return None
        return RowPointers(
            a=self._address(rows.a),
            b=self._address(rows.b),
            prototype=self._address(rows.prototype),
            bias=self._address(rows.bias),
            gate=self._address(rows.gate),
            count=rows.count,
            scale=rows.scale,
            activation=rows.activation,
            has_up_bias=rows.has_up_bias,
        )

    def _address(self, part: Tensor | None) -> int:
        return 0 if part is None else self.slab.data_ptr() + offset(part)


def _on(slab: Tensor, routers: Mapping[str, HostGatingNetwork]) -> Mapping[str, HostGatingNetwork]:
    return {
        layer: router.mapped(lambda part: part_of(slab, part)) for layer, router in routers.items()
    }
