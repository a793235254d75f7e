"""The device pool: rank rows of every resident adapter, module by module.

An adapter owns `rank` consecutive rows of A [rows, in] and B [rows, out] in each module that it
touches. Ranks mix freely and nothing is padded to a maximum; a module that no adapter touches
holds no storage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from router_engine.experts.base import HostAdapter, LowRankPair
from router_engine.experts.transfer import Transfer, transfer_for


@dataclass(frozen=True, slots=True)
class Span:
    start: int
    length: int

    @property
    def stop(self) -> int:
        return self.start + self.length


class RowAllocator:
    """Hands out consecutive rows of [0, capacity), first fit."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._spans: dict[str, Span] = {}

    @property
    def used(self) -> int:
        return sum(span.length for span in self._spans.values())

    @property
    def owners(self) -> Mapping[str, Span]:
        return self._spans

    def place(self, owner: str, length: int) -> Span | None:
        """Rows for an owner, or None where no gap is long enough (compact, then try again)."""
        position = 0
        for span in sorted(self._spans.values(), key=lambda span: span.start):
            if span.start - position >= length:
                break
            position = span.stop
        if position + length > self.capacity:
            return None
        self._spans[owner] = Span(position, length)
        return self._spans[owner]

    def release(self, owner: str) -> None:
        del self._spans[owner]

    def compact(self) -> list[tuple[Span, Span]]:
        """Close all gaps; returns the moves (from, to) in an order safe for copying downwards."""
        moves: list[tuple[Span, Span]] = []
        position = 0
        for owner, span in sorted(self._spans.items(), key=lambda item: item[1].start):
            target = Span(position, span.length)
            if target != span:
                moves.append((span, target))
                self._spans[owner] = target
            position = target.stop
        return moves


@dataclass(frozen=True, slots=True)
class ActiveRows:
    """The rows of a step's adapters in one module.

    a [rows, in]; b [rows, out]; owner [rows]: column of the step's weight matrix;
    scale_root [rows]: sqrt of each row's scale; rank_index [rows]: position within its adapter;
    prototype [rows] fp32: as `LowRankPair`.
    `layout` is equal for modules whose owner and rank_index are equal, so that what depends on
    them alone is computed once a step.
    """

    a: Tensor
    b: Tensor
    owner: Tensor
    scale_root: Tensor
    rank_index: Tensor
    prototype: Tensor
    layout: tuple[tuple[int, int], ...]  # (column, rank) of each adapter

    @property
    def max_rank(self) -> int:
        return max(rank for _, rank in self.layout)


@dataclass(slots=True)
class _ModuleRows:
    """Storage of one module; grows by doubling so that an unused pool costs nothing."""

    allocator: RowAllocator
    a: Tensor
    b: Tensor
    prototype: Tensor
    scales: dict[str, float] = field(default_factory=dict)

    def reserve(self, rows: int) -> None:
        if rows <= self.a.shape[0]:
            return
        size = min(self.allocator.capacity, max(rows, 2 * self.a.shape[0], 16))
        for name in ("a", "b", "prototype"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros(size, *old.shape[1:])
            new[: old.shape[0]] = old
            setattr(self, name, new)

    def put(self, span: Span, pair: LowRankPair) -> None:
        for ours, theirs in zip(self._parts(), (pair.a, pair.b, pair.prototype), strict=True):
            ours[span.start : span.stop].copy_(theirs, non_blocking=True)

    def move(self, source: Span, target: Span) -> None:
        """Ranges may overlap, so the source is copied before it is written over."""
        for part in self._parts():
            part[target.start : target.stop] = part[source.start : source.stop].clone()

    def bytes_per_row(self) -> int:
        return sum(part[:1].nbytes for part in self._parts())

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.a, self.b, self.prototype


class RowPool:
    """Rank rows of all resident adapters. Mutated between steps only, by the engine's thread."""

    def __init__(
        self,
        max_rank_rows: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        transfer: Transfer | None = None,
    ) -> None:
        """`transfer`: how rows get to the device; None: the way that its kind has."""
        self.max_rank_rows = max_rank_rows  # rows of one module
        self.transfer = transfer_for(device) if transfer is None else transfer
        self._dtype = dtype
        self._device = device
        self._modules: dict[str, _ModuleRows] = {}
        self._residents: dict[str, dict[str, int]] = {}  # digest -> module -> rank
        self._gathered: dict[str, tuple[tuple[str, ...], ActiveRows | None]] = {}
        self.version = 0  # changes whenever rows do

    @property
    def residents(self) -> Mapping[str, Mapping[str, int]]:
        """Ranks by module of each resident adapter."""
        return self._residents

    @property
    def used_rows(self) -> int:
        return sum(rows.allocator.used for rows in self._modules.values())

    def fits(self, adapters: Sequence[HostAdapter]) -> bool:
        """Whether all of them together have room beside the residents."""
        return self.fits_without(adapters, ())

    def fits_without(self, adapters: Sequence[HostAdapter], leaving: Sequence[str]) -> bool:
        """Whether all of them together have room once the residents `leaving` are gone."""
        needed: Counter[str] = Counter()
        for adapter in adapters:
            needed.update({module: pair.rank for module, pair in adapter.pairs.items()})
        freed: Counter[str] = Counter()
        for digest in leaving:
            freed.update(self._residents[digest])
        return all(
            self._used(module) - freed[module] + rows <= self.max_rank_rows
            for module, rows in needed.items()
        )

    def place(self, adapter: HostAdapter) -> None:
        """Copy an adapter's rows in. The caller has made sure that it fits.

        No step may use them before `transfer.arrived`.
        """
        spans = {module: self._room(adapter, module) for module in adapter.pairs}
        with self.transfer.placing(adapter.digest):
            for module, span in spans.items():
                self._modules[module].put(span, adapter.pairs[module])
        self._residents[adapter.digest] = {m: pair.rank for m, pair in adapter.pairs.items()}
        self._changed()

    def remove(self, digest: str) -> int:
        """Free an adapter's rows; returns the bytes that they held."""
        freed = 0
        for module, rank in self._residents.pop(digest).items():
            rows = self._modules[module]
            rows.allocator.release(digest)
            del rows.scales[digest]
            freed += rank * rows.bytes_per_row()
        self._changed()
        return freed

    def active(self, module: str, digests: tuple[str, ...]) -> ActiveRows | None:
        """The rows of `digests` in a module, or None where none of them touches it.

        The gathered copy is kept until the pool or the set changes: in steady decoding nothing is
        copied.
        """
        rows = self._modules.get(module)
        if rows is None:
            return None
        cached = self._gathered.get(module)
        if cached is not None and cached[0] == digests:
            return cached[1]
        gathered = self._gather(rows, digests)
        self._gathered[module] = (digests, gathered)
        return gathered

    def located(self, module: str, digest: str) -> tuple[int, int, int, float, int] | None:
        """Addresses of an adapter's A and B rows in a module, their number and their scale.

        Then the address of its prototype. None where it does not touch the module. Good until
        `version` changes.
        """
        rows = self._modules.get(module)
        span = None if rows is None else rows.allocator.owners.get(digest)
        if rows is None or span is None:
            return None
        a, b, prototype = (
            part.data_ptr() + span.start * part.stride(0) * part.itemsize
            for part in (rows.a, rows.b, rows.prototype)
        )
        return a, b, span.length, rows.scales[digest], prototype

    def check_integrity(self) -> None:
        """Rows are owned by exactly one resident adapter; raises ValueError naming the module."""
        for module, rows in self._modules.items():
            position = 0
            for owner, span in sorted(rows.allocator.owners.items(), key=lambda i: i[1].start):
                if span.start < position or span.stop > self.max_rank_rows:
                    raise ValueError(f"rank rows overlap in {module} at {span}")
                if self._residents.get(owner, {}).get(module) != span.length:
                    raise ValueError(f"{module}: rows {span} belong to no resident adapter")
                position = span.stop

    def _changed(self) -> None:
        self._gathered.clear()
        self.version += 1

    def _used(self, module: str) -> int:
        rows = self._modules.get(module)
        return 0 if rows is None else rows.allocator.used

    def _module(self, module: str, pair: LowRankPair) -> _ModuleRows:
        if module not in self._modules:
            self._modules[module] = _ModuleRows(
                RowAllocator(self.max_rank_rows),
                torch.zeros(0, pair.a.shape[1], dtype=self._dtype, device=self._device),
                torch.zeros(0, pair.b.shape[1], dtype=self._dtype, device=self._device),
                torch.zeros(0, dtype=torch.float32, device=self._device),
            )
        return self._modules[module]

    def _room(self, adapter: HostAdapter, module: str) -> Span:
        """Rows of a module for an adapter, in storage that holds them."""
        pair = adapter.pairs[module]
        rows = self._module(module, pair)
        span = rows.allocator.place(adapter.digest, pair.rank)
        if span is None:
            self._compact(rows)
            span = rows.allocator.place(adapter.digest, pair.rank)
        if span is None:
            raise ValueError(f"{adapter.digest} does not fit into the rows of {module}")
        if span.stop > rows.a.shape[0]:
            self.transfer.settle()  # rows that are on their way move with the others
            rows.reserve(span.stop)
        rows.scales[adapter.digest] = pair.scale
        return span

    def _compact(self, rows: _ModuleRows) -> None:
        self.transfer.settle()
        for source, target in rows.allocator.compact():
            rows.move(source, target)

    def _gather(self, rows: _ModuleRows, digests: tuple[str, ...]) -> ActiveRows | None:
        owners = rows.allocator.owners
        present = [(col, owners[digest]) for col, digest in enumerate(digests) if digest in owners]
        if not present:
            return None
        layout = tuple((column, span.length) for column, span in present)
        index = torch.cat([torch.arange(span.start, span.stop) for _, span in present])
        consecutive = bool((index[1:] - index[:-1] == 1).all())
        first = int(index[0])
        pick = slice(first, first + len(index)) if consecutive else index.to(self._device)
        # `linear` refuses scales that are not positive, so 1 only keeps unused rows finite.
        scales = [rows.scales[digests[column]] for column, _ in present]
        roots = [scale**0.5 if scale > 0 else 1.0 for scale in scales]
        lengths = torch.tensor([span.length for _, span in present])
        columns = torch.tensor([column for column, _ in present])
        return ActiveRows(
            a=rows.a[pick],
            b=rows.b[pick],
            owner=columns.repeat_interleave(lengths).to(self._device),
            scale_root=torch.tensor(roots).repeat_interleave(lengths).to(self._device),
            rank_index=torch.cat([torch.arange(span.length) for _, span in present]).to(
                self._device
            ),
            prototype=rows.prototype[pick],
            layout=layout,
        )
