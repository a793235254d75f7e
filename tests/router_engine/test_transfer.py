"""Adapters whose rows take a while to reach the device, as on a GPU's side stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from adapters_store.blobs import open_blobs
from adapters_store.store import AdapterStore
from adapters_store.types import AdapterManifest, BaseModelSpec
from router_engine.backends.torch.parameter_weights import ParameterWeights
from router_engine.backends.torch.projections import ModelProjections
from router_engine.config import AdapterPoolConfig, ModelConfig
from router_engine.experts.base import ExpertRows, HostAdapter
from router_engine.experts.residency import ResidencyManager
from router_engine.experts.rows import RowPool
from router_engine.experts.transfer import StreamTransfer, SyncTransfer, transfer_for
from router_engine.merging.merged_base import MergedBase
from router_engine.model.loader import load_model
from tests.router_engine.conftest import MakeHarness

CPU = torch.device("cpu")


class _Slow(SyncTransfer):
    """Rows arrive when the test says so."""

    def __init__(self) -> None:
        self.placed: list[str] = []
        self.here: set[str] = set()
        self.settled = 0

    @contextmanager
    def placing(self, digest: str) -> Iterator[None]:
        self.placed.append(digest)
        yield

    def arrived(self, digest: str) -> bool:
        return digest in self.here

    def settle(self) -> None:
        self.settled += 1


def test_each_kind_of_device_has_its_way() -> None:
    assert isinstance(transfer_for(CPU), SyncTransfer)


@pytest.mark.gpu
def test_a_gpu_copies_from_pinned_memory_beside_the_steps() -> None:
    transfer = transfer_for(torch.device("cuda"))
    assert isinstance(transfer, StreamTransfer)
    target = torch.zeros(4, 8, device="cuda")
    source = torch.ones(4, 8).pin_memory()
    with transfer.placing("a"):
        target.copy_(source, non_blocking=True)
    transfer.settle()
    assert float(target.sum()) == 32
    assert transfer.arrived("a")


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
    assert transfer.placed == digests[:1]
    assert bool(manager.has_news)  # it asks again until they are there
    assert not manager.are_resident(digests[:1])
    assert not manager.acquire("second", digests[:1])
    assert manager.poll().ready == ()
    assert transfer.placed == digests[:1]  # on their way: not copied again
    manager.release("second")
    transfer.here.update(digests[:1])
    assert manager.poll().ready == ("first",)
    assert not manager.has_news
    assert manager.acquire("third", digests[:1])
    manager.check_integrity({"first", "third"})
    manager.close()
    store.close()


def _adapter(name: str, rank: int) -> HostAdapter:
    pair = ExpertRows(torch.ones(rank, 8), torch.ones(rank, 6), 1.0, torch.ones(rank))
    return HostAdapter(name, AdapterManifest(format="peft", experts=()), {"q": pair}, 0.0)


def test_rows_on_their_way_are_waited_for_before_they_move() -> None:
    """Growing storage and closing gaps both copy rows: what is under way must have come first."""
    transfer = _Slow()
    pool = RowPool(24, dtype=torch.float32, device=CPU, transfer=transfer)
    pool.place(_adapter("a", 8))
    pool.place(_adapter("b", 8))
    before = transfer.settled
    pool.remove("a")
    pool.place(_adapter("c", 16))
    assert transfer.settled > before
    pool.check_integrity()
