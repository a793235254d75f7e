"""Disk, host, device: loading beside running requests, eviction, pins, and what frees what."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adapters_store.errors import InvalidAdapterError
from router_engine.config import AdapterPoolConfig, EngineConfig
from router_engine.errors import AdapterBusyError
from router_engine.events import FinishReason
from router_engine.experts.base import AdapterContents, AdapterSource
from router_engine.info import AdapterResidency, Residency
from tests.router_engine.conftest import MakeHarness
from tests.support.harness import EngineHarness, request
from tests.support.room import slab_bytes
from tests.support.tiny import make_lora_folder
from tests.support.waiting import HANG_SECONDS

PROMPT = list(range(5, 20))
MISSING = "sha256:" + "0" * 64


def _config(memory_bytes: int) -> EngineConfig:
    return EngineConfig(adapters=AdapterPoolConfig(memory_bytes))


@pytest.fixture(scope="module")
def small(folders: list[Path]) -> EngineConfig:
    """Just enough for the first three, of ranks 4, 8 and 2."""
    return _config(slab_bytes(folders[:3]))


def _publish(harness: EngineHarness, folders: list[Path]) -> list[str]:
    return [harness.publish(f"a{index}", folder) for index, folder in enumerate(folders)]


def test_more_adapters_than_memory_take_turns(
    make_harness: MakeHarness, small: EngineConfig, folders: list[Path]
) -> None:
    """Ranks 4+8+2+4+4 through memory for 14: answers equal those with room for all."""
    tight, large = make_harness(config=small), make_harness()
    digests = _publish(tight, folders[:5])
    _publish(large, folders[:5])
    requests = [request(f"r{i}", PROMPT[i:], {digest: 1.0}) for i, digest in enumerate(digests * 2)]
    expected = [answer.ids for answer in large.run(*requests)]
    assert [answer.ids for answer in tight.run(*requests)] == expected
    assert tight.engine.stats().adapter_evictions > 0
    assert large.engine.stats().adapter_evictions == 0


def test_a_mixture_larger_than_the_memory_is_refused(
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    whole, both = slab_bytes(folders[1:2]), slab_bytes([folders[1], folders[5]])
    harness = make_harness(config=_config(both - 1))
    digests = _publish(harness, folders)
    answer, fine = harness.run(
        request("big", PROMPT, {digests[1]: 1.0, digests[5]: 1.0}),
        request("fine", PROMPT, {digests[0]: 1.0}),
    )
    assert answer.end.reason is FinishReason.FAILED
    told = f"need {both:,} bytes on the device, which has {both - 1:,} for adapters: use fewer"
    assert told in str(answer.end.error)
    assert fine.end.reason is FinishReason.LENGTH
    tight = make_harness(config=_config(whole - 1))
    with pytest.raises(InvalidAdapterError, match=f"needs {whole:,} bytes"):
        tight.publish("whole", folders[1])


def test_pins_hold_and_unload_frees(
    make_harness: MakeHarness, small: EngineConfig, folders: list[Path]
) -> None:
    harness = make_harness(config=small)
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
    before = engine.stats()
    freed = engine.unload(digests[1])
    assert freed == residents[digests[1]].device_bytes == slab_bytes(folders[1:2])
    assert before.adapter_memory_used_bytes - engine.stats().adapter_memory_used_bytes == freed
    assert engine.stats().rank_rows_used < before.rank_rows_used
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
    """A real blob store whose fetches wait until the test lets them go; it notes their order."""

    def __init__(self, source: AdapterSource) -> None:
        self._source = source
        self.go_on = threading.Event()
        self.begun = threading.Event()
        self.order: list[str] = []

    def fetch(self, digest: str) -> AdapterContents:
        self.order.append(digest)
        self.begun.set()
        if digest == MISSING:
            return self._source.fetch(digest)
        assert self.go_on.wait(HANG_SECONDS)
        return self._source.fetch(digest)


def _slow(make: MakeHarness, **options: Any) -> tuple[EngineHarness, _SlowSource]:
    sources: list[_SlowSource] = []

    def wrap(source: AdapterSource) -> AdapterSource:
        sources.append(_SlowSource(source))
        return sources[0]

    return make(wrap_source=wrap, **options), sources[0]


def test_a_load_holds_up_nobody_else(make_harness: MakeHarness, folders: list[Path]) -> None:
    harness, slow = _slow(make_harness)
    (digest,) = _publish(harness, folders[:1])
    harness.add(request("slow", PROMPT, {digest: 1.0}))
    (quick,) = harness.run(request("quick", PROMPT))
    assert len(quick.tokens) == 12
    assert not harness.answers["slow"].tokens
    slow.go_on.set()
    while harness.answers["slow"].final is None:
        harness.step()
    assert harness.answers["slow"].end.reason is FinishReason.LENGTH


@pytest.mark.parametrize("asked", ["request", "load", "pin", "unpin"])
def test_what_nobody_waits_for_any_more_is_not_read(
    asked: str, make_harness: MakeHarness, folders: list[Path]
) -> None:
    """Requests for many adapters that are cancelled at once hold up nobody's load.

    One of them is asked for by another request, too, which is served.
    """
    harness, slow = _slow(make_harness)
    *digests, mine = _publish(harness, folders)
    for index, digest in enumerate(digests):
        harness.add(request(f"r{index}", PROMPT, {digest: 1.0}))
        assert slow.begun.wait(HANG_SECONDS)
    harness.add(request("stays", PROMPT, {digests[2]: 1.0, digests[3]: 0.5}))
    for index in range(len(digests)):
        harness.engine.cancel(f"r{index}")
    engine = harness.engine
    if asked == "request":
        harness.add(request("mine", PROMPT, {mine: 1.0}))
    else:
        acts: dict[str, Callable[[str], Future[AdapterResidency]]] = {
            "load": engine.load,
            "pin": partial(engine.pin, pinned=True),
            "unpin": partial(engine.pin, pinned=False),
        }
        done = acts[asked](mine)
    slow.go_on.set()
    if asked == "request":
        while harness.answers["mine"].final is None:
            harness.step()
        assert harness.answers["mine"].end.reason is FinishReason.LENGTH
    else:
        assert harness.wait(done).digest == mine
    while harness.answers["stays"].final is None:
        harness.step()
    assert harness.answers["stays"].end.reason is FinishReason.LENGTH
    assert slow.order == [digests[0], digests[2], digests[3], mine]
    (again,) = harness.run(request("again", PROMPT, {digests[1]: 1.0}))  # it is read when asked for
    assert again.end.reason is FinishReason.LENGTH


def test_a_request_that_fails_has_the_rest_of_its_adapters_not_read(
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness, slow = _slow(make_harness)
    digests = _publish(harness, folders[:3])
    wanted = dict.fromkeys((MISSING, *digests), 1.0)
    harness.add(request("bad", PROMPT, wanted))
    while harness.answers["bad"].final is None:
        harness.step()
    slow.go_on.set()
    (good,) = harness.run(request("good", PROMPT, {digests[2]: 1.0}))
    assert good.end.reason is FinishReason.LENGTH
    assert slow.order.count(digests[1]) == 0


def test_an_adapter_that_cannot_be_read_fails_its_requests_only(
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness = make_harness()
    bad, good = harness.run(request("bad", PROMPT, {MISSING: 1.0}), request("good", PROMPT))
    assert bad.end.reason is FinishReason.FAILED
    assert MISSING in str(bad.end.error)
    assert good.end.reason is FinishReason.LENGTH


def test_coming_and_going_keeps_the_answers(make_harness: MakeHarness, folders: list[Path]) -> None:
    """8 rows answer alike before and after others came, left and came again around them."""
    harness = make_harness(config=_config(slab_bytes(folders[:4])))
    digests = _publish(harness, folders)
    (before,) = harness.run(request("8", PROMPT, {digests[1]: 1.0}))
    for index in (0, 2):
        harness.wait(harness.engine.load(digests[index]))
    harness.engine.unload(digests[1])
    harness.wait(harness.engine.load(digests[3]))
    harness.engine.unload(digests[2])
    (after,) = harness.run(request("8 again", PROMPT[:], {digests[1]: 1.0}))
    assert before.ids == after.ids


HOST_BYTES = [0, 20_000, 45_000]  # one copy at a time, room for one, room for three


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight adapters of one size, 14,848 bytes."""
    root = tmp_path_factory.mktemp("alike")
    return [make_lora_folder(root / str(index), seed=index + 1) for index in range(8)]


def _room(harness: EngineHarness, digest: str, host_bytes: int) -> int:
    """How many copies like this one fit."""
    return host_bytes // harness.engine._residency.host_copy(digest).num_bytes


@pytest.mark.parametrize("host_bytes", HOST_BYTES)
@pytest.mark.parametrize("together", [1, 3])
def test_copies_for_those_who_wait_keep_to_the_bytes_of_the_host(
    together: int, host_bytes: int, make_harness: MakeHarness, alike: list[Path]
) -> None:
    """What the first of them needs at once may pass it, or nobody would go on."""
    pool = AdapterPoolConfig(slab_bytes(alike[:3]), host_bytes=host_bytes)
    small, large = make_harness(config=EngineConfig(adapters=pool)), make_harness()
    digests = _publish(small, alike)
    _publish(large, alike)
    mixtures = [digests[i : i + together] for i in range(len(digests) - together + 1)]
    requests = [
        request(f"r{i}", PROMPT[i:], dict.fromkeys(mixture, 0.5), max_new_tokens=4)
        for i, mixture in enumerate(mixtures * 2)
    ]
    expected = [answer.ids for answer in large.run(*requests)]
    most = max(together, _room(large, digests[0], host_bytes))
    small.add(*requests)
    while any(small.answers[asked.request_id].final is None for asked in requests):
        small.step()
        assert small.engine.stats().adapters_host <= most
    assert [small.answers[asked.request_id].ids for asked in requests] == expected


@pytest.mark.parametrize("host_bytes", HOST_BYTES)
def test_no_more_is_read_ahead_than_fits(
    host_bytes: int, make_harness: MakeHarness, alike: list[Path]
) -> None:
    """While one request has all rows: copies of those in front, and one that proves too large."""
    pool = AdapterPoolConfig(slab_bytes(alike[:1]), host_bytes=host_bytes)
    harness, slow = _slow(make_harness, config=EngineConfig(adapters=pool))
    slow.go_on.set()
    digests = _publish(harness, alike)
    for index, digest in enumerate(digests):
        harness.add(request(f"r{index}", PROMPT, {digest: 1.0}, max_new_tokens=40))
    while harness.answers["r0"].final is None:
        harness.step()
    assert len(slow.order) <= 1 + max(1, _room(harness, digests[0], host_bytes)) + 1
    assert slow.order[:2] == digests[:2]
    while harness.answers["r7"].final is None:
        harness.step()
    ends = [harness.answers[f"r{index}"].end.reason for index in range(len(digests))]
    assert ends == [FinishReason.LENGTH] * len(digests)


def test_who_waits_for_a_file_does_not_hold_up_those_whose_copy_is_there(
    make_harness: MakeHarness, alike: list[Path]
) -> None:
    """Neither where the host has room for one copy only."""
    pool = AdapterPoolConfig(slab_bytes(alike[:3]), host_bytes=20_000)
    harness, slow = _slow(make_harness, config=EngineConfig(adapters=pool))
    digests = _publish(harness, alike)
    slow.go_on.set()
    harness.wait(harness.engine.load(digests[1]))
    slow.go_on.clear()
    harness.add(request("waits", PROMPT, {digests[0]: 1.0}))
    (there,) = harness.run(request("there", PROMPT, {digests[1]: 1.0}))
    assert there.end.reason is FinishReason.LENGTH
    assert not harness.answers["waits"].tokens
    slow.go_on.set()
    while harness.answers["waits"].final is None:
        harness.step()
    assert harness.answers["waits"].end.reason is FinishReason.LENGTH
