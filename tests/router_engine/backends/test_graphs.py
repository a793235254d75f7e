"""When a graph is captured, and the adapters that it finds: no GPU needed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adapters_store.types import AdapterManifest
from router_engine.backends.cuda.graphs import (
    DECODE_BUCKETS,
    MIXED_BUCKETS,
    Capture,
    GraphKey,
    Graphs,
    GraphSizes,
    Replay,
    bucket_for,
)
from router_engine.backends.cuda.slots import AdapterSlots, StaticTiles
from router_engine.experts.base import AdapterParts, ExpertRows, HostAdapter
from router_engine.experts.memory import HostMemory
from router_engine.experts.rows import RowPool
from router_engine.scheduling.plan import StepLimits

CPU = torch.device("cpu")
MODULES = ("q", "k", "v")


@pytest.mark.parametrize(("count", "bucket"), [(1, 1), (3, 4), (32, 32), (33, 48), (257, None)])
def test_the_smallest_bucket_that_holds_a_batch(count: int, bucket: int | None) -> None:
    assert bucket_for(count, DECODE_BUCKETS) == bucket


@pytest.mark.parametrize(
    ("tokens", "requests", "expected"),
    [
        (24, 3, GraphSizes((1, 2, 4), (32,))),
        (64, 8, GraphSizes((1, 2, 4, 8), (32, 64))),
        (9999, 9999, GraphSizes(DECODE_BUCKETS, MIXED_BUCKETS)),
    ],
)
def test_sizes_hold_every_step_or_all_that_there_are(
    tokens: int, requests: int, expected: GraphSizes
) -> None:
    sizes = GraphSizes.of(StepLimits(tokens, requests, 512, 16))
    assert sizes == expected
    assert sizes.count == 14 * (len(expected.decodes) + len(expected.mixed))


class _Captures:
    """Captures that note whose they are, or fail."""

    def __init__(self) -> None:
        self.made = 0
        self.captured: list[int] = []  # by which capture
        self.error: Exception | None = None

    def __call__(self) -> Capture:
        self.made += 1
        number = self.made

        def capture(work: Callable[[], Tensor]) -> Replay:
            if self.error is not None:
                raise self.error
            self.captured.append(number)
            return work

        return capture


def _zeros() -> Tensor:
    return torch.zeros(1)


def test_a_graph_is_captured_once_a_key() -> None:
    """Once all are forgotten others are captured in memory of their own."""
    captures = _Captures()
    graphs = Graphs(captures)
    for key in (
        GraphKey(4),
        GraphKey(4, 64),
        GraphKey(4),
        GraphKey(4, 64, frozenset({1})),
    ):
        graphs.run(key, _zeros)
    assert len(graphs) == 3
    graphs.clear()
    graphs.run(GraphKey(4), _zeros)
    assert captures.captured == [1, 1, 1, 2]


def test_of_too_many_graphs_the_one_that_was_not_used_for_longest_goes() -> None:
    captures = _Captures()
    graphs = Graphs(captures, most=2)
    for batch in (1, 2, 1, 4, 1, 2):
        graphs.run(GraphKey(batch), _zeros)
        assert len(graphs) <= 2
    assert len(captures.captured) == 4  # 2 again, not 1


def test_what_cannot_be_captured_runs_launch_by_launch(caplog: pytest.LogCaptureFixture) -> None:
    captures = _Captures()
    graphs, runs = Graphs(captures), list[int]()
    captures.error = RuntimeError("operation not permitted when stream is capturing")

    def work() -> Tensor:
        runs.append(1)
        return torch.zeros(1)

    for _ in range(3):
        graphs.run(GraphKey(4), work)
    assert len(runs) == 3
    assert caplog.text.count("no graph for GraphKey(tokens=4") == 1
    captures.error = None
    graphs.run(GraphKey(4), work)
    assert captures.captured == []  # not tried again
    graphs.run(GraphKey(8), work)
    assert captures.captured == [1]


def test_a_capture_without_memory_is_the_step_s_error() -> None:
    captures = _Captures()
    graphs = Graphs(captures)
    captures.error = torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run(GraphKey(4), _zeros)
    captures.error = None
    graphs.run(GraphKey(4), _zeros)
    assert captures.captured == [1]


def _adapter(name: str, ranks: dict[str, int]) -> HostAdapter:
    pairs = {
        module: ExpertRows(torch.randn(rank, 8), torch.randn(rank, 6), 1.0, torch.randn(rank))
        for module, rank in ranks.items()
    }
    manifest = AdapterManifest(format="peft", experts=())
    return HostAdapter.packed(name, manifest, AdapterParts(pairs, {}), 0.0)


RANKS = {"a": {"q": 20, "v": 3}, "b": {"q": 4}, "c": {"v": 1}}


def _slots(count: int) -> tuple[RowPool, AdapterSlots]:
    pool = RowPool(HostMemory(1 << 20), dtype=torch.float32, device=CPU)
    for name, ranks in RANKS.items():
        pool.place(_adapter(name, ranks))
    return pool, AdapterSlots(pool, MODULES, CPU, slots=count)


def test_slots_lead_to_the_rows() -> None:
    """By address; an adapter keeps its slot whoever comes, and another has it once it has left."""
    pool, slots = _slots(3)
    for digests in (("a", "b"), ("b", "a"), ("c",), ("a", "b", "c")):
        _check(pool, slots, digests)
    before = slots.table.addresses.clone()
    pool.remove("b")
    pool.place(_adapter("d", {"k": 5, "v": 17}))
    _check(pool, slots, ("a", "c", "d"))
    changed = (slots.table.addresses != before).flatten(1).any(1)
    assert int(changed.sum()) == 1


def test_who_was_not_used_for_longest_gives_its_slot_up() -> None:
    pool, slots = _slots(2)
    for digests in (("a", "b"), ("a",), ("c",), ("a", "c"), ("b", "a")):
        _check(pool, slots, digests)
    with pytest.raises(ValueError, match="3 adapters in one step, 2 slots"):
        slots.tiles(("a", "b", "c"))


def test_a_list_keeps_its_address() -> None:
    _, slots = _slots(3)
    static = StaticTiles(8, CPU)
    places, count = static.tiles.places.data_ptr(), static.tiles.count.data_ptr()
    for digests, expected in ((("a", "b"), 3), (("c",), 1)):
        tiles = slots.tiles(digests)
        static.write(tiles)
        assert int(static.tiles.count) == expected
        assert torch.equal(static.tiles.places[:expected], torch.from_numpy(tiles.places))
        assert torch.equal(tiles.on(CPU).places, torch.from_numpy(tiles.places))
    assert (places, count) == (static.tiles.places.data_ptr(), static.tiles.count.data_ptr())


def _check(pool: RowPool, slots: AdapterSlots, digests: tuple[str, ...]) -> None:
    tiles = slots.tiles(digests)
    assert slots.tiles(digests) is tiles  # steady decoding computes nothing
    found: dict[tuple[str, str], list[int]] = {}
    for slot, column, first in tiles.places.tolist():
        for module, name in enumerate(MODULES):
            rows = pool.residents[digests[column]].rows(name)
            rank = int(slots.table.ranks[slot, module])
            assert rank == (0 if rows is None else rows.count)
            if rows is None or first >= rank:
                continue
            found.setdefault((digests[column], name), []).extend(
                range(first, min(first + 16, rank))
            )
            for address, part in zip(
                slots.table.addresses[slot, module], (rows.a, rows.b), strict=True
            ):
                held = _read(int(address), part.numel())
                assert held == pytest.approx(part.flatten().tolist())
    every = {
        (digest, name): list(range(count))
        for digest in digests
        for name, count in pool.residents[digest].num_rows.items()
    }
    assert found == every
    touched = [any(name in pool.residents[each].num_rows for each in digests) for name in MODULES]
    assert tiles.touched.tolist() == touched


def _read(address: int, count: int) -> list[float]:
    return list((ctypes.c_float * count).from_address(address))
