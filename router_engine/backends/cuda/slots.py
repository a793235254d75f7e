"""Slots of adapters in the table that the kernels follow, and a step's list of tiles over them.

A slot is written once, when a step first uses its adapter. A step then says which slots its tokens
use; in steady decoding nothing is written.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from router_engine.backends.cuda.room import SLOTS
from router_engine.experts.resident import Resident
from router_engine.experts.rows import RowPool
from router_engine.kernels.triton.grouped import AdapterTable, Tiles
from router_engine.kernels.triton.tiling import TILE_ROWS
from router_engine.transfers import write


@dataclass(frozen=True, eq=False, slots=True)
class _Slot:
    number: int
    ranks: NDArray[np.int32]  # [modules]


@dataclass(frozen=True, eq=False, slots=True)
class HostTiles:
    """The tiles of a set of adapters, on the host: as `Tiles.places`, all of them in use."""

    places: NDArray[np.int32]
    touched: NDArray[np.bool_]  # [modules]: whether any of the adapters has rows there

    @property
    def rows(self) -> int:
        """Of the longest adapter, or a few more."""
        return int(self.places[:, 2].max(initial=0)) + TILE_ROWS

    def on(self, device: torch.device) -> Tiles:
        """Just these, on the device."""
        tiles = StaticTiles(max(1, len(self.places)), device)
        tiles.write(self)
        return tiles.tiles


class AdapterSlots:
    """Gives residents slots; who was not used for longest gives way.

    Used by the engine's thread.
    """

    def __init__(
        self, pool: RowPool, modules: Sequence[str], device: torch.device, *, slots: int = SLOTS
    ) -> None:
        shape = (slots, len(modules))
        self._pool = pool
        self._modules = tuple(modules)
        self._slots: WeakKeyDictionary[Resident, _Slot] = WeakKeyDictionary()
        # Those taken, by number, least recently used first. An adapter that left is found dead.
        self._taken: OrderedDict[int, weakref.ref[Resident]] = OrderedDict()
        self._last: tuple[tuple[_Slot, ...], HostTiles] | None = None
        self.table = AdapterTable(
            addresses=torch.zeros(*shape, 2, dtype=torch.int64, device=device),
            ranks=torch.zeros(shape, dtype=torch.int32, device=device),
            roots=torch.ones(shape, dtype=torch.float32, device=device),
        )

    def tiles(self, digests: Sequence[str]) -> HostTiles:
        """The tiles of residents, at most as many as there are slots; columns in their order.

        The same object as before where they are the same adapters.
        """
        residents = [self._pool.residents[digest] for digest in digests]
        slots = tuple(self._slot(resident, residents) for resident in residents)
        if self._last is None or self._last[0] != slots:
            self._last = (slots, _tiles(slots, len(self._modules)))
        return self._last[1]

    def _slot(self, resident: Resident, staying: Collection[Resident]) -> _Slot:
        slot = self._slots.get(resident)
        if slot is None:
            slot = self._write(resident, self._number(staying))
        self._taken[slot.number] = self._taken.pop(slot.number)
        return slot

    def _number(self, staying: Collection[Resident]) -> int:
        """A slot that is free, or that an adapter gives up which is not `staying`."""
        if len(self._taken) < len(self.table.ranks):
            return len(self._taken)
        for number, holder in self._taken.items():
            resident = holder()
            if resident is None or resident not in staying:
                if resident is not None:
                    del self._slots[resident]
                return number
        raise ValueError(f"{len(staying)} adapters in one step, {len(self.table.ranks)} slots")

    def _write(self, resident: Resident, number: int) -> _Slot:
        found = [resident.located(module) for module in self._modules]
        places = [(0, 0, 0) if rows is None else (rows.a, rows.b, rows.count) for rows in found]
        # `linear` refuses scales that are not positive: their roots are not read.
        scales = [1.0 if rows is None or rows.scale <= 0 else rows.scale for rows in found]
        parts = np.array(places, dtype=np.int64).reshape(-1, 3)
        slot = _Slot(number, parts[:, 2].astype(np.int32))
        write(self.table.addresses[number], torch.from_numpy(parts[:, :2].copy()))
        write(self.table.ranks[number], torch.from_numpy(slot.ranks))
        write(self.table.roots[number], torch.from_numpy(np.sqrt(scales, dtype=np.float32)))
        self._slots[resident] = slot
        self._taken[number] = weakref.ref(resident)
        return slot


def _tiles(slots: Sequence[_Slot], num_modules: int) -> HostTiles:
    ranks = np.zeros((len(slots), num_modules), dtype=np.int32)
    for index, slot in enumerate(slots):
        ranks[index] = slot.ranks
    counts = -(-ranks.max(1, initial=0) // TILE_ROWS)
    columns = np.repeat(np.arange(len(slots)), counts)
    numbers = np.array([slot.number for slot in slots], dtype=np.int64)[columns]
    within = np.arange(len(columns)) - np.repeat(counts.cumsum() - counts, counts)
    places = np.stack((numbers, columns, within * TILE_ROWS), axis=1).astype(np.int32)
    return HostTiles(places, np.asarray(ranks.any(0)))


class StaticTiles:
    """A list of tiles of a fixed capacity at a fixed address."""

    def __init__(self, capacity: int, device: torch.device) -> None:
        self._buffer = torch.zeros(1 + 3 * capacity, dtype=torch.int32, device=device)
        self._holds: HostTiles | None = None
        self.tiles = Tiles(places=self._buffer[1:].view(capacity, 3), count=self._buffer[:1])

    def write(self, tiles: HostTiles) -> None:
        """Let the list say `tiles`, which fit; nothing happens where it does."""
        if tiles is self._holds:
            return
        numbers = np.concatenate(([len(tiles.places)], tiles.places.ravel())).astype(np.int32)
        write(self._buffer[: len(numbers)], torch.from_numpy(numbers))
        self._holds = tiles
