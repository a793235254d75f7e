"""A thousand adapters that come and go: the table leads to each, and none costs more for others."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adapters_store.types import AdapterManifest
from router_engine.backends.cuda.slots import AdapterSlots
from router_engine.experts.base import AdapterParts, ExpertRows, HostAdapter
from router_engine.experts.memory import DeviceMemory
from router_engine.experts.rows import RowPool

CPU = torch.device("cpu")
MODULES = ("q", "k", "v", "o")
WIDTH = 8
RESIDENT = 1000


def _adapter(number: int, draw: random.Random) -> HostAdapter:
    """Of a random rank on random modules; its numbers say whose they are."""
    rank = draw.choice([1, 4, 8, 16, 20])
    chosen = draw.sample(MODULES, draw.randint(1, len(MODULES)))
    pairs = {
        module: ExpertRows(
            torch.full((rank, WIDTH), float(number)),
            torch.full((rank, WIDTH), number + 0.5),
            1.0,
            torch.zeros(rank),
        )
        for module in chosen
    }
    parts = AdapterParts(pairs, {})
    manifest = AdapterManifest(format="peft", experts=())
    return HostAdapter.packed(str(number), manifest, parts, 0.0)


def _pool(num_bytes: int, slots: int) -> tuple[RowPool, AdapterSlots]:
    pool = RowPool(DeviceMemory(num_bytes, CPU), dtype=torch.float32, device=CPU)
    return pool, AdapterSlots(pool, MODULES, CPU, slots=slots)


def _place(pool: RowPool, adapter: HostAdapter) -> None:
    pool.place(pool.memory.prepare(adapter))


def _check(pool: RowPool, slots: AdapterSlots, digests: Sequence[str]) -> None:
    """Every address holds the rows of its adapter, the first and the last of them."""
    tiles = slots.tiles(tuple(digests))
    for slot, column, _ in tiles.places.tolist():
        number = float(digests[column])
        for module, name in enumerate(MODULES):
            rank = int(slots.table.ranks[slot, module])
            assert rank == pool.residents[digests[column]].num_rows.get(name, 0)
            if rank:
                for side, value in enumerate((number, number + 0.5)):
                    address = int(slots.table.addresses[slot, module, side])
                    held = (ctypes.c_float * (rank * WIDTH)).from_address(address)
                    assert held[0] == held[-1] == value


@pytest.mark.parametrize("slots", [4096, 64])
def test_every_step_finds_its_adapters(slots: int) -> None:
    """In an arena that is as good as full, so that others move; with slots for all, and for few."""
    draw = random.Random(slots)
    ahead = [_adapter(number, draw) for number in range(3 * RESIDENT)]
    room = sum(each.num_bytes for each in ahead[:RESIDENT]) + 4 * max(
        each.num_bytes for each in ahead
    )
    pool, table = _pool(room, slots)
    for adapter in ahead:
        while not pool.fits_without(adapter.num_bytes, ()) or len(pool.residents) > RESIDENT:
            pool.remove(draw.choice(list(pool.residents)))
        _place(pool, adapter)
        active = {adapter.digest, *draw.sample(list(pool.residents), min(7, len(pool.residents)))}
        _check(pool, table, sorted(active))
    assert len(pool.residents) > RESIDENT // 2
    pool.check_integrity()


class _Counted(TorchDispatchMode):
    """Counts operations on tensors, views aside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_an_arrival_costs_the_same_whoever_is_there() -> None:
    """A copy of its slab, and one of its addresses, its ranks and its roots each."""
    counts = []
    for residents in (10, RESIDENT):
        draw = random.Random(1)
        ahead = [_adapter(number, draw) for number in range(residents)]
        pool, slots = _pool(2 * sum(each.num_bytes for each in ahead) + (1 << 20), 4096)
        for adapter in ahead:
            _place(pool, adapter)
        slots.tiles(tuple(pool.residents)[:9])
        late = pool.memory.prepare(_adapter(residents, draw))
        with _Counted() as counted:
            pool.place(late)
            slots.tiles((*tuple(pool.residents)[:9], late.digest))
        counts.append(counted.count)
    assert counts == [4, 4]
