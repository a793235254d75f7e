"""Storage of the rank rows of one site."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from adapters_store.expert_kinds.base import Activation
from router_engine.experts.allocator import RowAllocator, Span
from router_engine.experts.base import ExpertRows

# What a row holds of a part that its adapter lacks: no bias, no gate.
_ABSENT = {"bias": 0, "gate": -1}


@dataclass(frozen=True, slots=True)
class RowAttributes:
    """What all rows of an adapter at a site have in common, as in `ExpertRows`."""

    scale: float
    activation: Activation | None
    has_up_bias: bool


@dataclass(slots=True)
class SiteRows:
    """Grows by doubling so that an unused pool costs nothing.

    parts: a [capacity, in], b [capacity, out], prototype [capacity] fp32; and, from the first
    adapter on that has them here, bias [capacity] fp32 and gate [capacity] int32.
    """

    allocator: RowAllocator
    parts: dict[str, Tensor]
    traits: dict[str, RowAttributes] = field(default_factory=dict)

    @classmethod
    def like(
        cls, rows: ExpertRows, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> SiteRows:
        """Without storage, for rows as wide as these."""
        parts = {
            "a": torch.zeros(0, rows.a.shape[1], dtype=dtype, device=device),
            "b": torch.zeros(0, rows.b.shape[1], dtype=dtype, device=device),
            "prototype": torch.zeros(0, dtype=torch.float32, device=device),
        }
        return cls(RowAllocator(capacity), parts)

    @property
    def size(self) -> int:
        """Rows that there is storage for."""
        return self.parts["a"].shape[0]

    def reserve(self, count: int) -> None:
        """Storage for so many rows; those that there are move."""
        if count <= self.size:
            return
        size = min(self.allocator.capacity, max(count, 2 * self.size, 16))
        for name, old in self.parts.items():
            new = old.new_full((size, *old.shape[1:]), _ABSENT.get(name, 0))
            new[: old.shape[0]] = old
            self.parts[name] = new

    def keep(self, digest: str, rows: ExpertRows) -> None:
        """Note an adapter's traits; storage for parts that no adapter had here before."""
        self.traits[digest] = RowAttributes(rows.scale, rows.activation, rows.has_up_bias)
        for name, absent in _ABSENT.items():
            theirs: Tensor | None = getattr(rows, name)
            if theirs is not None and name not in self.parts:
                device = self.parts["a"].device
                self.parts[name] = torch.full(
                    (self.size,), absent, dtype=theirs.dtype, device=device
                )

    def put(self, span: Span, rows: ExpertRows) -> None:
        for name, part in self.parts.items():
            theirs: Tensor | None = getattr(rows, name)
            if theirs is None:
                part[span.start : span.stop] = _ABSENT[name]
            else:
                part[span.start : span.stop].copy_(theirs, non_blocking=True)

    def move(self, source: Span, target: Span) -> None:
        """Ranges may overlap, so the source is copied before it is written over."""
        for part in self.parts.values():
            part[target.start : target.stop] = part[source.start : source.stop].clone()

    def release(self, digest: str) -> None:
        self.allocator.release(digest)
        del self.traits[digest]

    def address(self, name: str, row: int) -> int:
        """Of a row of a part; 0 where no adapter has the part here."""
        part = self.parts.get(name)
        if part is None:
            return 0
        return part.data_ptr() + row * part.stride(0) * part.itemsize

    @property
    def bytes_per_row(self) -> int:
        return sum(part[:1].nbytes for part in self.parts.values())
