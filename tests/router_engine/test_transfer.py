"""Adapters whose rows take a while to reach the device, as on a GPU's side stream."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapters_store.blobs import open_blobs
from adapters_store.store import AdapterStore
from adapters_store.types import AdapterManifest, BaseModelSpec
from router_engine.backends.cuda.slots import AdapterSlots
from router_engine.backends.torch.parameter_weights import ParameterWeights
from router_engine.backends.torch.projections import ModelProjections
from router_engine.config import AdapterPoolConfig, ModelConfig
from router_engine.experts.base import AdapterParts, ExpertRows, HostAdapter
from router_engine.experts.residency import ResidencyManager
from router_engine.experts.rows import RowPool
from router_engine.experts.slab import outline
from router_engine.experts.transfer import SharedMemory, StreamTransfer, transfer_for
from router_engine.merging.merged_base import MergedBase
from router_engine.model.loader import load_model
from tests.router_engine.conftest import MakeHarness

CPU = torch.device("cpu")
RANKS = {"a": 8, "b": 4, "c": 8, "d": 3}


class _Slow(SharedMemory):
    """Adapters arrive when the test says so."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.here: set[str] = set()

    def send(self, adapter: HostAdapter) -> Tensor:
        self.sent.append(adapter.digest)
        return super().send(adapter)

    def arrived(self, digest: str) -> bool:
        return digest in self.here


def test_each_kind_of_device_has_its_way() -> None:
    assert isinstance(transfer_for(CPU), SharedMemory)


@pytest.mark.gpu
def test_a_gpu_copies_from_pinned_memory_beside_the_steps() -> None:
    transfer = transfer_for(torch.device("cuda"))
    assert isinstance(transfer, StreamTransfer)
    adapter = transfer.prepare(_adapter("a", 4))
    assert adapter.slab.is_pinned()
    slab = transfer.send(adapter)
    torch.cuda.synchronize()
    assert transfer.arrived("a")
    assert torch.equal(slab.cpu(), adapter.slab)


def test_an_owner_is_granted_when_its_rows_have_arrived(
    make_harness: MakeHarness, folders: list[Path], tmp_path: Path
) -> None:
    base: BaseModelSpec = make_harness().engine.base
    store = AdapterStore.open(tmp_path / "own")
    digests = [store.publish(f"a{i}", folder, base=base).digest for i, folder in enumerate(folders)]
    loaded = load_model(ModelConfig(model="tiny-random"))
    transfer = _Slow()
    pool = RowPool(14, dtype=torch.float32, device=CPU, transfer=transfer)
    manager = ResidencyManager(
        pool,
        open_blobs(tmp_path / "own" / "blobs"),
        AdapterPoolConfig(max_rank_rows=14),
        ModelProjections(loaded, MergedBase(ParameterWeights(loaded, {}))),
        lambda: None,
    )
    manager.host_copy(digests[0])
    assert not manager.acquire("first", digests[:1])
    assert manager.poll().ready == ()
    assert transfer.sent == digests[:1]
    assert bool(manager.has_news)  # it asks again until they are there
    assert not manager.are_resident(digests[:1])
    assert not manager.acquire("second", digests[:1])
    assert manager.poll().ready == ()
    assert transfer.sent == digests[:1]  # on their way: not copied again
    manager.release("second")
    transfer.here.update(digests[:1])
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


class _Copying(SharedMemory):
    """A device with memory of its own, as far as a CPU can be one."""

    shares_memory = False

    def prepare(self, adapter: HostAdapter) -> HostAdapter:
        return replace(adapter, outline=outline(adapter.parts))

    def send(self, adapter: HostAdapter) -> Tensor:
        return adapter.slab.clone()


@pytest.mark.parametrize("transfer", [SharedMemory(), _Copying()])
def test_an_adapter_stays_where_it_is_whoever_comes_and_goes(transfer: SharedMemory) -> None:
    """So that no step waits for one that arrives, and an address holds until its adapter leaves."""
    pool = RowPool(24, dtype=torch.float32, device=CPU, transfer=transfer)
    adapters = {name: transfer.prepare(_adapter(name, rank)) for name, rank in RANKS.items()}
    for name in "abc":
        pool.place(adapters[name])
    before = pool.residents["b"].located("q")
    pool.remove("a")
    pool.place(adapters["d"])
    pool.remove("c")
    pool.place(adapters["a"])
    assert pool.residents["b"].located("q") == before
    assert pool.used_rows == sum(RANKS[name] for name in "bda")
    pool.check_integrity()
    active = pool.active("q", ("b", "a", "d"))
    assert active is not None
    expected = [adapters[name].rows_by_site["q"] for name in "bad"]
    assert torch.equal(active.a, torch.cat([rows.a for rows in expected]))
    assert torch.equal(active.b, torch.cat([rows.b for rows in expected]))
    assert torch.equal(active.prototype, torch.cat([rows.prototype for rows in expected]))


def test_what_the_device_shares_is_held_once() -> None:
    adapter = _adapter("a", 8)
    pool = RowPool(24, dtype=torch.float32, device=CPU)
    pool.place(adapter)
    located, active = pool.residents["a"].located("q"), pool.active("q", ("a",))
    assert located is not None
    assert active is not None
    assert located.a == active.a.data_ptr() == adapter.rows_by_site["q"].a.data_ptr()
    assert adapter.slab.data_ptr() <= located.a < adapter.slab.data_ptr() + adapter.num_bytes


def test_what_leaves_the_device_is_freed() -> None:
    """Neither what was gathered for a step nor its slot in a table keeps an adapter."""
    pool = RowPool(24, dtype=torch.float32, device=CPU, transfer=_Copying())
    for name in "ab":
        pool.place(pool.transfer.prepare(_adapter(name, 4)))
    slots = AdapterSlots(pool, ("q",), CPU)
    slots.tiles(("a", "b"))
    pool.active("q", ("a",))
    slab = weakref.ref(pool.residents["a"].slab)
    pool.remove("a")
    gc.collect()
    assert slab() is None
