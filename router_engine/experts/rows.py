"""The device pool: rank rows of every resident adapter, site by site, and its routers beside them.

An adapter owns consecutive rows of A [rows, in] and B [rows, out] at each site that it touches: a
linear layer, or the place of a bottleneck or a prompt. Ranks mix freely and nothing is padded to a
maximum; a site that no adapter touches holds no storage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters_store.expert_kinds.base import Activation
from router_engine.experts.allocator import Span
from router_engine.experts.base import HostAdapter, HostGatingNetwork
from router_engine.experts.site_rows import RowAttributes, SiteRows
from router_engine.experts.transfer import Transfer, transfer_for
from router_engine.scheduling.plan import GateColumns


@dataclass(frozen=True, slots=True)
class GatheredRows:
    """The rows of a step's adapters at one site; what is not said here is as in `ExpertRows`."""

    a: Tensor  # [rows, in]
    b: Tensor  # [rows, out]
    owner: Tensor  # [rows]: column of the step's weight matrix
    scale_root: Tensor  # [rows]: square root of each row's scale
    rank_index: Tensor  # [rows]: position within its adapter
    prototype: Tensor  # [rows] fp32
    # (column, rank) of each adapter. Equal for sites whose owner and rank_index are equal, so that
    # what depends on them alone is computed once a step.
    layout: tuple[tuple[int, int], ...]
    bias: Tensor | None = None  # [rows] fp32; None where no row has one
    gate: Tensor | None = None  # [rows] int32; None where no row has one
    # (which, first row, last row + 1) of those that have one.
    activations: tuple[tuple[Activation, int, int], ...] = ()

    @property
    def max_rank(self) -> int:
        return max(rank for _, rank in self.layout)


@dataclass(frozen=True, slots=True)
class RowPointers:
    """Addresses of an adapter's rows at a site. Good until the pool's `version` changes.

    Of its first row in each part, all contiguous; 0 where the site has no such part.
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
        self.dtype = dtype  # of the rows' a and b
        self._device = device
        self._sites: dict[str, SiteRows] = {}
        self._residents: dict[str, dict[str, int]] = {}  # digest -> site -> rows
        self._routers: dict[str, dict[str, HostGatingNetwork]] = {}  # digest -> layer -> router
        self._with_extras: set[str] = set()
        self._gathered: dict[str, tuple[tuple[str, ...], GatheredRows | None]] = {}
        self.version = 0  # changes whenever rows do

    @property
    def residents(self) -> Mapping[str, Mapping[str, int]]:
        """Rows by site of each resident adapter."""
        return self._residents

    @property
    def used_rows(self) -> int:
        return sum(rows.allocator.used for rows in self._sites.values())

    def fits(self, adapters: Sequence[HostAdapter]) -> bool:
        """Whether all of them together have room beside the residents."""
        return self.fits_without(adapters, ())

    def fits_without(self, adapters: Sequence[HostAdapter], leaving: Sequence[str]) -> bool:
        """Whether all of them together have room once the residents `leaving` are gone."""
        needed: Counter[str] = Counter()
        for adapter in adapters:
            needed.update({site: rows.count for site, rows in adapter.rows_by_site.items()})
        freed: Counter[str] = Counter()
        for digest in leaving:
            freed.update(self._residents[digest])
        return all(
            self._used(site) - freed[site] + rows <= self.max_rank_rows
            for site, rows in needed.items()
        )

    def place(self, adapter: HostAdapter) -> None:
        """Copy an adapter's rows and routers in. The caller has made sure that it fits.

        No step may use them before `transfer.arrived`.
        """
        spans = {site: self._room(adapter, site) for site in adapter.rows_by_site}
        with self.transfer.placing(adapter.digest):
            for site, span in spans.items():
                self._sites[site].put(span, adapter.rows_by_site[site])
            self._routers[adapter.digest] = {
                layer: router.mapped(lambda part: part.to(self._device, non_blocking=True))
                for layer, router in adapter.routers.items()
            }
        if not adapter.is_plain_lora:
            self._with_extras.add(adapter.digest)
        self._residents[adapter.digest] = {
            s: rows.count for s, rows in adapter.rows_by_site.items()
        }
        self._changed()

    def remove(self, digest: str) -> int:
        """Free an adapter's rows and routers; returns the bytes that they held."""
        self._with_extras.discard(digest)
        freed = sum(router.num_bytes for router in self._routers.pop(digest).values())
        for site, count in self._residents.pop(digest).items():
            rows = self._sites[site]
            rows.release(digest)
            freed += count * rows.bytes_per_row
        self._changed()
        return freed

    def active(self, site: str, digests: tuple[str, ...]) -> GatheredRows | None:
        """The rows of `digests` at a site, or None where none of them touches it.

        The gathered copy is kept until the pool or the set changes: in steady decoding nothing is
        copied.
        """
        rows = self._sites.get(site)
        if rows is None:
            return None
        cached = self._gathered.get(site)
        if cached is not None and cached[0] == digests:
            return cached[1]
        gathered = self._gather(rows, digests)
        self._gathered[site] = (digests, gathered)
        return gathered

    def located(self, site: str, digest: str) -> RowPointers | None:
        """Where an adapter's rows lie at a site, or None where it does not touch it."""
        rows = self._sites.get(site)
        span = None if rows is None else rows.allocator.owners.get(digest)
        if rows is None or span is None:
            return None
        traits = rows.traits[digest]
        return RowPointers(
            a=rows.address("a", span.start),
            b=rows.address("b", span.start),
            prototype=rows.address("prototype", span.start),
            bias=rows.address("bias", span.start),
            gate=rows.address("gate", span.start),
            count=span.length,
            scale=traits.scale,
            activation=traits.activation,
            has_up_bias=traits.has_up_bias,
        )

    def routers(self, digest: str) -> Mapping[str, HostGatingNetwork]:
        """A resident adapter's routers by layer, on the device; empty where it has none."""
        return self._routers[digest]

    def reads_whole_prompts(self, digest: str) -> bool:
        """Whether a resident adapter has routers of whole prompts."""
        return any(router.spec.scope == "prompt" for router in self._routers[digest].values())

    def are_plain_lora(self, digests: tuple[str, ...]) -> bool:
        """Whether all of these residents are LoRA at linear layers alone, without gates."""
        return self._with_extras.isdisjoint(digests)

    def gate_columns(self, digests: tuple[str, ...]) -> GateColumns:
        """Where each adapter's gates stand in a step's matrix of them, in the order of `digests`.

        An adapter has as many columns as the router of any of its layers has outputs; adapters
        without routers have none and are left out.
        """
        columns: list[tuple[str, int, int]] = []
        first = 0
        for digest in digests:
            routers = self._routers[digest].values()
            count = max((router.spec.outputs for router in routers), default=0)
            if count:
                columns.append((digest, first, count))
                first += count
        return tuple(columns)

    def check_integrity(self) -> None:
        """Rows are owned by exactly one resident adapter; raises ValueError naming the site."""
        for site, rows in self._sites.items():
            position = 0
            for owner, span in sorted(rows.allocator.owners.items(), key=lambda i: i[1].start):
                if span.start < position or span.stop > self.max_rank_rows:
                    raise ValueError(f"rank rows overlap in {site} at {span}")
                if self._residents.get(owner, {}).get(site) != span.length:
                    raise ValueError(f"{site}: rows {span} belong to no resident adapter")
                position = span.stop

    def _changed(self) -> None:
        self._gathered.clear()
        self.version += 1

    def _used(self, site: str) -> int:
        rows = self._sites.get(site)
        return 0 if rows is None else rows.allocator.used

    def _room(self, adapter: HostAdapter, site: str) -> Span:
        """Rows of a site for an adapter, in storage that holds them."""
        theirs = adapter.rows_by_site[site]
        if site not in self._sites:
            self._sites[site] = SiteRows.like(theirs, self.max_rank_rows, self.dtype, self._device)
        rows = self._sites[site]
        span = rows.allocator.place(adapter.digest, theirs.count)
        if span is None:
            self._compact(rows)
            span = rows.allocator.place(adapter.digest, theirs.count)
        if span is None:
            raise ValueError(f"{adapter.digest} does not fit into the rows of {site}")
        if span.stop > rows.size:
            self.transfer.settle()  # rows that are on their way move with the others
            rows.reserve(span.stop)
        rows.keep(adapter.digest, theirs)
        return span

    def _compact(self, rows: SiteRows) -> None:
        self.transfer.settle()
        for source, target in rows.allocator.compact():
            rows.move(source, target)

    def _gather(self, rows: SiteRows, digests: tuple[str, ...]) -> GatheredRows | None:
        owners = rows.allocator.owners
        present = [(col, owners[digest]) for col, digest in enumerate(digests) if digest in owners]
        if not present:
            return None
        layout = tuple((column, span.length) for column, span in present)
        index = torch.cat([torch.arange(span.start, span.stop) for _, span in present])
        consecutive = bool((index[1:] - index[:-1] == 1).all())
        first = int(index[0])
        pick = slice(first, first + len(index)) if consecutive else index.to(self._device)
        traits = [rows.traits[digests[column]] for column, _ in present]
        # `linear` refuses scales that are not positive, so 1 only keeps unused rows finite.
        roots = [each.scale**0.5 if each.scale > 0 else 1.0 for each in traits]
        lengths = torch.tensor([span.length for _, span in present])
        columns = torch.tensor([column for column, _ in present])
        parts = {name: part[pick] for name, part in rows.parts.items()}
        return GatheredRows(
            a=parts["a"],
            b=parts["b"],
            owner=columns.repeat_interleave(lengths).to(self._device),
            scale_root=torch.tensor(roots).repeat_interleave(lengths).to(self._device),
            rank_index=torch.cat([torch.arange(span.length) for _, span in present]).to(
                self._device
            ),
            prototype=parts["prototype"],
            layout=layout,
            bias=parts.get("bias"),
            gate=parts.get("gate"),
            activations=_activations(traits, [span.length for _, span in present]),
        )


def _activations(
    traits: Sequence[RowAttributes], lengths: Sequence[int]
) -> tuple[tuple[Activation, int, int], ...]:
    """As `GatheredRows.activations`, for adapters with so many rows each."""
    activations: list[tuple[Activation, int, int]] = []
    first = 0
    for attributes, length in zip(traits, lengths, strict=True):
        if attributes.activation is not None:
            last = first + length - attributes.has_up_bias
            activations.append((attributes.activation, first, last))
        first += length
    return tuple(activations)
