"""What goes into a decode graph's buffers, and when a graph is captured: no GPU needed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adapters_store.types import AdapterManifest
from router_engine.backends.cuda.graphs import (
    BATCH_BUCKETS,
    DecodeArrays,
    GraphKey,
    Graphs,
    Replay,
    StaticInputs,
    bucket_for,
)
from router_engine.backends.cuda.tables import RowLocator, StaticTables
from router_engine.experts.base import AdapterParts, ExpertRows, HostAdapter
from router_engine.experts.rows import RowPool
from router_engine.request import EngineRequest, SamplingSpec
from router_engine.scheduling.plan import PlannedRow

CPU = torch.device("cpu")


def _row(token: int, start: int, blocks: tuple[int, ...]) -> PlannedRow:
    return PlannedRow(
        EngineRequest(str(token), (), SamplingSpec(max_new_tokens=1)),
        arrival=0,
        token_ids=(token,),
        start=start,
        block_ids=blocks,
        needs_logits=True,
        weight_runs=(),
        known_tokens=(),
    )


@pytest.mark.parametrize(("count", "bucket"), [(1, 1), (3, 4), (32, 32), (33, 48), (257, None)])
def test_the_smallest_bucket_that_holds_a_batch(count: int, bucket: int | None) -> None:
    assert bucket_for(count, BATCH_BUCKETS) == bucket


def test_arrays_of_a_step() -> None:
    """Slots follow from the blocks; a block beyond the context is left out."""
    arrays = DecodeArrays.of([_row(7, 9, (5, 2, 8)), _row(3, 0, (4, 9))], block_size=4)
    assert arrays.numbers.tolist() == [[7, 3], [9, 0], [8 * 4 + 1, 4 * 4], [10, 1]]
    assert arrays.blocks.tolist() == [[5, 2, 8], [4, 0, 0]]


def test_padding_stores_nothing_and_sees_nothing() -> None:
    numbers = DecodeArrays.of([_row(7, 9, (5, 2, 8))], block_size=4).padded(3)
    assert numbers[2].tolist() == [33, -1, -1]
    assert numbers[3].tolist() == [10, 0, 0]


def test_buffers_keep_their_addresses() -> None:
    inputs = StaticInputs(4, max_blocks=6, hidden=8, device=CPU)
    parts = (inputs.numbers, inputs.tables, inputs.weights, inputs.contexts)
    before = [part.data_ptr() for part in parts]
    weights = torch.tensor([[0.5, -1.0]])
    inputs.write(DecodeArrays.of([_row(7, 9, (5, 2, 8))], block_size=4), weights)
    assert inputs.tables[0, :3].tolist() == [5, 2, 8]
    assert inputs.weights[0, :2].tolist() == [0.5, -1.0]
    inputs.write(DecodeArrays.of([_row(8, 0, (1,)), _row(9, 4, (3, 0))], block_size=4), None)
    assert inputs.numbers[:, :3].tolist() == [[8, 9, 0], [0, 4, 0], [4, 0, -1]]
    assert [part.data_ptr() for part in parts] == before


def test_a_graph_is_captured_once_a_key() -> None:
    captured: list[Callable[[], Tensor]] = []

    def capture(work: Callable[[], Tensor]) -> Replay:
        captured.append(work)
        return work

    graphs = Graphs(capture)
    for key in (GraphKey(4), GraphKey(4, 64), GraphKey(4), GraphKey(4, 64, frozenset({1}))):
        graphs.run(key, lambda: torch.zeros(1))
    assert len(captured) == len(graphs) == 3
    graphs.clear()
    graphs.run(GraphKey(4), lambda: torch.zeros(1))
    assert len(captured) == 4


def _adapter(name: str, ranks: dict[str, int]) -> HostAdapter:
    pairs = {
        module: ExpertRows(torch.randn(rank, 8), torch.randn(rank, 6), 1.0, torch.randn(rank))
        for module, rank in ranks.items()
    }
    manifest = AdapterManifest(format="peft", experts=())
    return HostAdapter.packed(name, manifest, AdapterParts(pairs, {}), 0.0)


def test_tables_lead_to_the_rows() -> None:
    """By address, rank by rank, in the order of the columns; also after the pool has changed."""
    pool = RowPool(64, dtype=torch.float32, device=CPU)
    adapters = {
        "a": _adapter("a", {"q": 2, "v": 3}),
        "b": _adapter("b", {"q": 4}),
        "c": _adapter("c", {"v": 1}),
    }
    for adapter in adapters.values():
        pool.place(adapter)
    locator = RowLocator(pool, ("q", "k", "v"), [(32, 24)] * 3)
    tables = StaticTables(3, 16, CPU)
    for digests in (("a", "b", "c"), ("b", "a"), ("c",)):
        _check(pool, locator, tables, digests)
    pool.remove("a")
    _check(pool, locator, tables, ("b", "c"))


def _check(
    pool: RowPool, locator: RowLocator, tables: StaticTables, digests: tuple[str, ...]
) -> None:
    rows = locator.rows(digests)
    assert locator.rows(digests) is rows  # steady decoding computes nothing
    tables.write(rows)
    table = tables.group(0, 3)
    for index, module in enumerate(("q", "k", "v")):
        active = pool.active(module, digests)
        count = int(table.counts[index])
        assert count == (0 if active is None else len(active.owner))
        if active is None:
            continue
        assert table.owner[index, :count].tolist() == active.owner.tolist()
        for addresses, expected in ((table.a, active.a), (table.b, active.b)):
            for place in range(count):
                assert _read(int(addresses[index, place]), expected.shape[1]) == pytest.approx(
                    expected[place].tolist()
                )


def _read(address: int, count: int) -> list[float]:
    return list((ctypes.c_float * count).from_address(address))
