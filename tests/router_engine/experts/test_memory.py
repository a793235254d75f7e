"""Adapters whose rows take a while to reach the device, as on a GPU's side stream."""

from __future__ import annotations

import gc
import random
import weakref
from pathlib import Path

import pytest
import torch

from adapters_store.blobs import open_blobs
from adapters_store.store import AdapterStore
from adapters_store.types import AdapterManifest, BaseModelSpec
from router_engine.backends.cuda.slots import AdapterSlots
from router_engine.backends.torch.parameter_weights import ParameterWeights
from router_engine.backends.torch.projections import ModelProjections
from router_engine.config import AdapterPoolConfig, ModelConfig
from router_engine.errors import EngineError
from router_engine.experts.base import AdapterParts, ExpertRows, HostAdapter
from router_engine.experts.memory import (
    AdapterMemory,
    CudaMemory,
    DeviceMemory,
    HostMemory,
    Placed,
    memory_for,
)
from router_engine.experts.residency import ResidencyManager
from router_engine.experts.rows import RowPool
from router_engine.merging.merged_base import MergedBase
from router_engine.model.loader import load_model
from tests.router_engine.conftest import MakeHarness

CPU = torch.device("cpu")
RANKS = {"a": 8, "b": 4, "c": 8, "d": 3}


class _Slow(HostMemory):
    """Adapters arrive when the test says so."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.sent: list[str] = []
        self.here: set[str] = set()

    def send(self, adapter: HostAdapter) -> Placed:
        self.sent.append(adapter.digest)
        return super().send(adapter)

    def arrived(self, digest: str) -> bool:
        return digest in self.here


def test_each_kind_of_device_has_its_memory() -> None:
    assert isinstance(memory_for(CPU, 1), HostMemory)


@pytest.mark.gpu
def test_a_gpu_copies_from_pinned_memory_beside_the_steps() -> None:
    memory = memory_for(torch.device("cuda"), 1 << 20)
    assert isinstance(memory, CudaMemory)
    adapter = memory.prepare(_adapter("a", 4))
    assert adapter.slab.is_pinned()
    slab = memory.send(adapter).slab
    torch.cuda.synchronize()
    assert memory.arrived("a")
    assert torch.equal(slab.cpu(), adapter.slab)


def test_an_owner_is_granted_when_its_rows_have_arrived(
    make_harness: MakeHarness, folders: list[Path], tmp_path: Path
) -> None:
    base: BaseModelSpec = make_harness().engine.base
    store = AdapterStore.open(tmp_path / "own")
    digests = [store.publish(f"a{i}", folder, base=base).digest for i, folder in enumerate(folders)]
    loaded = load_model(ModelConfig(model="tiny-random"))
    memory = _Slow()
    pool = RowPool(memory, dtype=torch.float32, device=CPU)
    manager = ResidencyManager(
        pool,
        open_blobs(tmp_path / "own" / "blobs"),
        AdapterPoolConfig(host_bytes=1 << 30),
        ModelProjections(loaded, MergedBase(ParameterWeights(loaded, {}))),
        lambda: None,
    )
    manager.host_copy(digests[0])
    assert not manager.acquire("first", digests[:1])
    assert manager.poll().ready == ()
    assert memory.sent == digests[:1]
    assert bool(manager.has_news)  # it asks again until they are there
    assert not manager.are_resident(digests[:1])
    assert not manager.acquire("second", digests[:1])
    assert manager.poll().ready == ()
    assert memory.sent == digests[:1]  # on their way: not copied again
    manager.release("second")
    memory.here.update(digests[:1])
    assert manager.poll().ready == ("first",)
    assert not manager.has_news
    assert manager.acquire("third", digests[:1])
    manager.check_integrity({"first", "third"})
    manager.close()
    store.close()


def _adapter(name: str, rank: int) -> HostAdapter:
    rows = ExpertRows(torch.randn(rank, 8), torch.randn(rank, 6), 1.0, torch.randn(rank))
    manifest = AdapterManifest(format="peft", experts=())
    return HostAdapter.packed(name, manifest, AdapterParts({"q": rows}, {}), 0.0)


SIZES = {name: _adapter(name, rank).num_bytes for name, rank in RANKS.items()}
MEMORIES = (HostMemory(sum(SIZES.values())), DeviceMemory(sum(SIZES.values()), CPU))


def _pool(memory: AdapterMemory) -> RowPool:
    return RowPool(memory, dtype=torch.float32, device=CPU)


def _holds(pool: RowPool, adapters: dict[str, HostAdapter]) -> bool:
    """Whether what is resident is what was placed, bit by bit and for every reader."""
    pool.check_integrity()
    names = tuple(pool.residents)
    active = pool.active("q", names)
    expected = [adapters[name].rows_by_site["q"] for name in names]
    return active is not None and all(
        torch.equal(getattr(active, part), torch.cat([getattr(rows, part) for rows in expected]))
        for part in ("a", "b", "prototype")
    )


@pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: type(memory).__name__)
def test_an_adapter_stays_where_it_is_while_there_is_room(memory: AdapterMemory) -> None:
    """So that no step waits for one that arrives, and an address holds until its adapter leaves."""
    pool = _pool(memory)
    adapters = {name: memory.prepare(_adapter(name, rank)) for name, rank in RANKS.items()}
    for name in "abc":
        pool.place(adapters[name])
    before = pool.residents["b"]
    pool.remove("a")
    pool.place(adapters["d"])
    pool.remove("c")
    pool.place(adapters["a"])
    assert pool.residents["b"] is before
    assert pool.used_rows == sum(RANKS[name] for name in "bda")
    assert pool.used_bytes == sum(SIZES[name] for name in "bda")
    assert _holds(pool, adapters)


def test_what_the_device_shares_is_held_once() -> None:
    adapter = _adapter("a", 8)
    pool = _pool(HostMemory(1 << 20))
    pool.place(adapter)
    located, active = pool.residents["a"].located("q"), pool.active("q", ("a",))
    assert located is not None
    assert active is not None
    assert located.a == active.a.data_ptr() == adapter.rows_by_site["q"].a.data_ptr()
    assert adapter.slab.data_ptr() <= located.a < adapter.slab.data_ptr() + adapter.num_bytes


def test_what_leaves_the_device_is_freed() -> None:
    """Neither what was gathered for a step nor its slot in a table keeps an adapter."""
    pool = _pool(DeviceMemory(1 << 20, CPU))
    for name in "ab":
        pool.place(pool.memory.prepare(_adapter(name, 4)))
    slots = AdapterSlots(pool, ("q",), CPU)
    slots.tiles(("a", "b"))
    pool.active("q", ("a",))
    left = weakref.ref(pool.residents["a"])
    pool.remove("a")
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("bounce", [16 << 20, 192])
def test_adapters_close_ranks_where_free_bytes_lie_in_pieces(
    bounce: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By ways that are shorter and longer than they are themselves, and than what they go through.

    All that is kept of where one was, a table's slot too, follows it.
    """
    monkeypatch.setattr("router_engine.experts.memory._BOUNCE", bounce)
    ranks = {"a": 1, "b": 16, "c": 8, "d": 3, "e": 2, "f": 11}
    adapters = {name: _adapter(name, rank) for name, rank in ranks.items()}
    memory = DeviceMemory(sum(adapters[name].num_bytes for name in "abcde"), CPU)
    adapters = {name: memory.prepare(adapter) for name, adapter in adapters.items()}
    pool = _pool(memory)
    for name in "abcde":
        pool.place(adapters[name])
    slots = AdapterSlots(pool, ("q",), CPU)
    slots.tiles(("b", "d"))
    assert _holds(pool, adapters)
    before = dict(pool.residents)
    for name in "ace":
        pool.remove(name)
    pool.place(adapters["f"])
    assert [name for name in "bd" if pool.residents[name] is before[name]] == []
    assert _holds(pool, adapters)
    slots.tiles(("b", "d", "f"))
    for name in "bdf":
        located, slot = pool.residents[name].located("q"), slots._slots[pool.residents[name]]
        assert located is not None
        assert slots.table.addresses[slot.number, 0].tolist() == [located.a, located.b]


def test_whatever_comes_and_goes_holds_what_it_held() -> None:
    """A thousand random arrivals and departures in memory that is nearly full."""
    draw = random.Random(0)
    adapters = {str(i): _adapter(str(i), draw.randint(1, 40)) for i in range(60)}
    memory = DeviceMemory(sum(each.num_bytes for each in adapters.values()) // 3, CPU)
    adapters = {name: memory.prepare(adapter) for name, adapter in adapters.items()}
    pool, moves = _pool(memory), 0
    for _ in range(1000):
        name = draw.choice([*adapters])
        if name in pool.residents:
            pool.remove(name)
        elif pool.fits_without(adapters[name].num_bytes, ()):
            before = dict(pool.residents)
            pool.place(adapters[name])
            moves += any(pool.residents[each] is not resident for each, resident in before.items())
            assert _holds(pool, adapters)
    assert moves > 20


def test_a_device_without_so_much_memory_says_so() -> None:
    with pytest.raises(EngineError, match=r"4294967296\.00 GiB for adapters do not fit cpu: use a"):
        DeviceMemory(1 << 62, CPU)
