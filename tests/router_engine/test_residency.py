"""Disk, host, device: loading beside running requests, eviction, pins, and what frees what."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from router_engine.client.base import Residency
from router_engine.config import AdapterPoolConfig, EngineConfig
from router_engine.errors import AdapterBusyError, EngineError
from router_engine.events import FinishReason
from router_engine.experts.allocator import RowAllocator, Span
from router_engine.experts.base import AdapterFiles, AdapterSource
from tests.router_engine.conftest import MakeHarness
from tests.support.harness import EngineHarness, request
from tests.support.waiting import HANG_SECONDS

PROMPT = list(range(5, 20))
SMALL = EngineConfig(adapters=AdapterPoolConfig(max_rank_rows=14))


def _publish(harness: EngineHarness, folders: list[Path]) -> list[str]:
    return [harness.publish(f"a{index}", folder) for index, folder in enumerate(folders)]


def test_more_adapters_than_rows_take_turns(make_harness: MakeHarness, folders: list[Path]) -> None:
    """Ranks 4+8+2+4+4 through 14 rows: all answers equal those of a pool with room for all."""
    small, large = make_harness(config=SMALL), make_harness()
    digests = _publish(small, folders[:5])
    _publish(large, folders[:5])
    requests = [request(f"r{i}", PROMPT[i:], {digest: 1.0}) for i, digest in enumerate(digests * 2)]
    expected = [answer.ids for answer in large.run(*requests)]
    assert [answer.ids for answer in small.run(*requests)] == expected
    assert small.engine.stats().adapter_evictions > 0
    assert large.engine.stats().adapter_evictions == 0


def test_a_mixture_larger_than_the_pool_is_refused(
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness = make_harness(config=SMALL)
    digests = _publish(harness, folders)
    answer, fine = harness.run(
        request("big", PROMPT, {digests[1]: 1.0, digests[5]: 1.0}),
        request("fine", PROMPT, {digests[0]: 1.0}),
    )
    assert answer.end.reason is FinishReason.FAILED
    assert "24 rank rows" in str(answer.end.error)
    assert "14" in str(answer.end.error)
    assert fine.end.reason is FinishReason.LENGTH
    with pytest.raises(EngineError, match="16 rank rows"):
        harness.wait(harness.engine.load(digests[5]))


def test_pins_hold_and_unload_frees(make_harness: MakeHarness, folders: list[Path]) -> None:
    harness = make_harness(config=SMALL)
    digests = _publish(harness, folders[:5])
    engine = harness.engine
    state = harness.wait(engine.pin(digests[1], pinned=True))
    assert (state.residency, state.pinned) == (Residency.DEVICE, True)
    harness.run(*(request(f"r{i}", PROMPT, {d: 1.0}) for i, d in enumerate(digests)))
    residents = {entry.digest: entry for entry in engine.residency()}
    assert residents[digests[1]].residency is Residency.DEVICE
    with pytest.raises(AdapterBusyError, match="pinned"):
        engine.unload(digests[1])
    harness.wait(engine.pin(digests[1], pinned=False))
    used = engine.stats().rank_rows_used
    freed = engine.unload(digests[1])
    assert freed >= residents[digests[1]].device_bytes > 0
    assert engine.stats().rank_rows_used < used
    assert digests[1] not in {entry.digest for entry in engine.residency()}


def test_an_adapter_in_use_is_not_unloaded(make_harness: MakeHarness, folders: list[Path]) -> None:
    harness = make_harness()
    (digest,) = _publish(harness, folders[:1])
    harness.add(request("r", PROMPT, {digest: 1.0}))
    while not harness.answers["r"].tokens:
        harness.step()
    with pytest.raises(AdapterBusyError, match="1 live request"):
        harness.engine.unload(digest)
    harness.engine.cancel("r")
    harness.step()
    assert harness.engine.unload(digest) > 0


class _SlowSource:
    """A real blob store whose first fetch waits until the test lets it go."""

    def __init__(self, source: AdapterSource) -> None:
        self._source = source
        self.go_on = threading.Event()

    def fetch(self, digest: str) -> AdapterFiles:
        assert self.go_on.wait(HANG_SECONDS)
        return self._source.fetch(digest)


def test_a_load_holds_up_nobody_else(make_harness: MakeHarness, folders: list[Path]) -> None:
    gates: list[_SlowSource] = []

    def gated(source: AdapterSource) -> AdapterSource:
        gates.append(_SlowSource(source))
        return gates[0]

    harness = make_harness(wrap_source=gated)
    (slow,) = gates
    (digest,) = _publish(harness, folders[:1])
    harness.add(request("slow", PROMPT, {digest: 1.0}))
    (quick,) = harness.run(request("quick", PROMPT))
    assert len(quick.tokens) == 12
    assert not harness.answers["slow"].tokens
    slow.go_on.set()
    while harness.answers["slow"].final is None:
        harness.step()
    assert harness.answers["slow"].end.reason is FinishReason.LENGTH


def test_an_adapter_that_cannot_be_read_fails_its_requests_only(
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness = make_harness()
    missing = "sha256:" + "0" * 64
    bad, good = harness.run(request("bad", PROMPT, {missing: 1.0}), request("good", PROMPT))
    assert bad.end.reason is FinishReason.FAILED
    assert missing in str(bad.end.error)
    assert good.end.reason is FinishReason.LENGTH


def test_rows_are_compacted_where_gaps_are_too_short() -> None:
    allocator = RowAllocator(12)
    for owner in "abc":
        assert allocator.place(owner, 4) is not None
    allocator.release("a")
    allocator.release("c")
    assert allocator.place("d", 8) is None
    assert allocator.compact() == [(Span(4, 4), Span(0, 4))]
    assert allocator.place("d", 8) == Span(4, 8)
    assert allocator.used == 12


def test_compaction_keeps_the_answers(make_harness: MakeHarness, folders: list[Path]) -> None:
    """4 + 8 rows, the 4 leave, 2 + 4 come: the 8 are moved and still answer as before."""
    harness = make_harness(config=EngineConfig(adapters=AdapterPoolConfig(max_rank_rows=16)))
    digests = _publish(harness, folders)
    (before,) = harness.run(request("8", PROMPT, {digests[1]: 1.0}))
    for index in (0, 2):
        harness.wait(harness.engine.load(digests[index]))
    harness.engine.unload(digests[1])
    harness.wait(harness.engine.load(digests[3]))
    harness.engine.unload(digests[2])
    (after,) = harness.run(request("8 again", PROMPT[:], {digests[1]: 1.0}))
    assert before.ids == after.ids
