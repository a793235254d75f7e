"""The device pool: the adapters that are on the device, and their rank rows gathered for a step.

At each site that an adapter touches (a linear layer, or the place of a bottleneck or a prompt) it
has rows of A [rows, in] and B [rows, out]. Ranks mix freely and nothing is padded to a maximum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters_store.expert_kinds.base import Activation
from router_engine.experts.base import ExpertRows, HostAdapter, HostGatingNetwork
from router_engine.experts.memory import AdapterMemory
from router_engine.experts.resident import Resident
from router_engine.scheduling.plan import GateColumns
from router_engine.transfers import sent


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


class RowPool:
    """Rank rows of all resident adapters. Mutated between steps only, by the engine's thread."""

    def __init__(self, memory: AdapterMemory, *, dtype: torch.dtype, device: torch.device) -> None:
        self.memory = memory
        self.dtype = dtype  # of the rows' a and b
        self._device = device
        self._residents: dict[str, Resident] = {}  # by digest
        self._gathered: dict[str, tuple[tuple[str, ...], GatheredRows | None]] = {}
        self.used_bytes = 0
        self.used_rows = 0  # over all sites

    @property
    def residents(self) -> Mapping[str, Resident]:
        """The adapters on the device, by digest."""
        return self._residents

    @property
    def free_bytes(self) -> int:
        """Bytes that no resident has."""
        return self.memory.num_bytes - self.used_bytes

    def fits_without(self, num_bytes: int, leaving: Sequence[str]) -> bool:
        """Whether so many bytes have room once the residents `leaving` are gone."""
        freed = sum(self._residents[digest].num_bytes for digest in leaving)
        return num_bytes <= self.free_bytes + freed

    def place(self, adapter: HostAdapter) -> None:
        """Send an adapter to the device. The caller has made sure that it fits.

        No step may use it before `memory.arrived`.
        """
        placed = self.memory.send(adapter)
        for digest, slab in placed.moved.items():
            self._residents[digest] = self._residents[digest].at(slab)
            self._gathered.clear()  # views of where it was
        resident = Resident.of(adapter, placed.slab)
        self._residents[adapter.digest] = resident
        self.used_bytes += resident.num_bytes
        self.used_rows += sum(resident.num_rows.values())

    def remove(self, digest: str) -> int:
        """Free an adapter's rows and routers; returns the bytes that they held."""
        resident = self._residents.pop(digest)
        self.memory.free(digest)
        self.used_bytes -= resident.num_bytes
        self.used_rows -= sum(resident.num_rows.values())
        self._gathered.clear()  # views of what leaves, or copies of it
        return resident.num_bytes

    def active(self, site: str, digests: tuple[str, ...]) -> GatheredRows | None:
        """The rows of `digests` at a site, or None where none of them touches it.

        Kept until another set is asked for or an adapter leaves: in steady decoding nothing is
        copied, and for one adapter never.
        """
        cached = self._gathered.get(site)
        if cached is not None and cached[0] == digests:
            return cached[1]
        found = [(column, self._residents[each].rows(site)) for column, each in enumerate(digests)]
        present = [(column, rows) for column, rows in found if rows is not None]
        gathered = _gather(present, self._device) if present else None
        self._gathered[site] = (digests, gathered)
        return gathered

    def forget_gathered(self) -> None:
        """Drop what was gathered for a step: it is gathered again."""
        self._gathered.clear()

    def routers(self, digest: str) -> Mapping[str, HostGatingNetwork]:
        """A resident adapter's routers by layer, on the device; empty where it has none."""
        return self._residents[digest].routers

    def reads_whole_prompts(self, digest: str) -> bool:
        """Whether a resident adapter has routers of whole prompts."""
        return any(router.spec.scope == "prompt" for router in self.routers(digest).values())

    def are_plain_lora(self, digests: tuple[str, ...]) -> bool:
        """Whether all of these residents are LoRA at linear layers alone, without gates."""
        return all(self._residents[digest].is_plain_lora for digest in digests)

    def gate_columns(self, digests: tuple[str, ...]) -> GateColumns:
        """Where each adapter's gates stand in a step's matrix of them, in the order of `digests`.

        An adapter has as many columns as the router of any of its layers has outputs; adapters
        without routers have none and are left out.
        """
        columns: list[tuple[str, int, int]] = []
        first = 0
        for digest in digests:
            routers = self.routers(digest).values()
            count = max((router.spec.outputs for router in routers), default=0)
            if count:
                columns.append((digest, first, count))
                first += count
        return tuple(columns)

    def check_integrity(self) -> None:
        """What is in use is the residents', and fits; raises ValueError with the numbers."""
        owned = sum(resident.num_bytes for resident in self._residents.values())
        if self.used_bytes != owned:
            raise ValueError(f"{self.used_bytes} bytes of adapters in use, {owned} owned")
        if owned > self.memory.num_bytes:
            raise ValueError(f"{owned} bytes of adapters of at most {self.memory.num_bytes}")


def _gather(present: Sequence[tuple[int, ExpertRows]], device: torch.device) -> GatheredRows:
    """The rows at one site of (column, rows), one adapter or more."""
    counts = torch.tensor([rows.count for _, rows in present])
    columns = torch.tensor([column for column, _ in present])
    # `linear` refuses scales that are not positive, so 1 only keeps unused rows finite.
    roots = [rows.scale**0.5 if rows.scale > 0 else 1.0 for _, rows in present]
    return GatheredRows(
        a=_joined([rows.a for _, rows in present]),
        b=_joined([rows.b for _, rows in present]),
        owner=sent(columns.repeat_interleave(counts), device),
        scale_root=sent(torch.tensor(roots).repeat_interleave(counts), device),
        rank_index=sent(torch.cat([torch.arange(rows.count) for _, rows in present]), device),
        prototype=_joined([rows.prototype for _, rows in present]),
        layout=tuple((column, rows.count) for column, rows in present),
        bias=_with_absent([(rows.bias, rows.count) for _, rows in present], 0.0),
        gate=_with_absent([(rows.gate, rows.count) for _, rows in present], -1),
        activations=_activations([rows for _, rows in present]),
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([*parts])


def _with_absent(parts: Sequence[tuple[Tensor | None, int]], absent: float) -> Tensor | None:
    """(part, rows) of each adapter as one: `absent` in the rows of those without; None of none."""
    like = next((part for part, _ in parts if part is not None), None)
    if like is None:
        return None
    return _joined(
        [like.new_full((rows,), absent) if part is None else part for part, rows in parts]
    )


def _activations(adapters: Iterable[ExpertRows]) -> tuple[tuple[Activation, int, int], ...]:
    """As `GatheredRows.activations`."""
    activations: list[tuple[Activation, int, int]] = []
    first = 0
    for rows in adapters:
        if rows.activation is not None:
            last = first + rows.count - rows.has_up_bias
            activations.append((rows.activation, first, last))
        first += rows.count
    return tuple(activations)
