"""Who waits for rows on a real engine: it gets its turn, or is told why it never will."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from adapters_store.types import ResolvedMixture
from router_engine.config import (
    AdapterPoolConfig,
    CacheConfig,
    EngineConfig,
    MergeConfig,
    SchedulerConfig,
)
from router_engine.errors import RequestRefusedError
from router_engine.events import FinalEvent, FinishReason
from router_engine.request import EngineRequest
from tests.router_engine.conftest import MakeHarness
from tests.support.harness import EngineHarness, request
from tests.support.room import slab_bytes
from tests.support.tiny import make_lora_folder

PROMPT = list(range(5, 20))
CLIENTS = 12
FOUR = 14_848  # bytes of an adapter of rank 4
MEMORY = 2 * FOUR
CONFIG = EngineConfig(
    cache=CacheConfig(num_blocks=256),
    scheduler=SchedulerConfig(max_running=8),
    adapters=AdapterPoolConfig(MEMORY),
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters of rank 4, of which two have room, and one of rank 8, which needs it all."""
    root = tmp_path_factory.mktemp("small")
    made = [
        make_lora_folder(root / str(index), rank=rank, seed=index + 1)
        for index, rank in enumerate((4, 4, 4, 8))
    ]
    assert slab_bytes(made[:1]) == FOUR < slab_bytes(made[3:]) <= MEMORY
    return made


def _publish(harness: EngineHarness, folders: Iterable[Path]) -> list[str]:
    return [harness.publish(f"a{index}", folder) for index, folder in enumerate(folders)]


def _passed_by(harness: EngineHarness, busy: list[str], asked: EngineRequest) -> int:
    """Twelve clients keep the adapters `busy`; how many were answered before `asked` was.

    They ask before it does, and again as soon as they are answered.
    """

    def ask(number: int) -> None:
        mixture = {busy[number % len(busy)]: 1.0}
        harness.add(request(f"busy {number}", PROMPT[number % 9 :], mixture, max_new_tokens=4))

    for number in range(CLIENTS):
        ask(number)
    while len(harness.answers["busy 0"].tokens) == 0:
        harness.step()
    harness.add(asked)
    number, answered = CLIENTS, 0
    while harness.answers[asked.request_id].final is None:
        assert answered < 200, "it waits still"
        for event in harness.step():
            if isinstance(event, FinalEvent) and event.request_id != asked.request_id:
                ask(number)
                number, answered = number + 1, answered + 1
    harness.engine.check_integrity()
    return answered


@pytest.mark.parametrize("columns", [(2,), (3,), (0, 2), (1, 2)])
def test_a_third_adapter_gets_its_turn_beside_two_that_are_busy(
    columns: tuple[int, ...], make_harness: MakeHarness, small: list[Path]
) -> None:
    """A third of two that have room, one and mixtures that need all the memory."""
    harness = make_harness(config=CONFIG)
    digests = _publish(harness, small)
    asked = request("asked", PROMPT, {digests[index]: 1.0 for index in columns}, max_new_tokens=4)
    answered = _passed_by(harness, digests[:2], asked)
    most = CONFIG.scheduler.max_overtaken + CLIENTS + CONFIG.scheduler.max_running
    assert answered <= most
    assert harness.answers["asked"].end.reason is FinishReason.LENGTH


def test_loads_and_merges_get_their_turn(make_harness: MakeHarness, small: list[Path]) -> None:
    """The clients go on in the rows that the merged mixture leaves them."""
    harness = make_harness(config=CONFIG)
    digests = _publish(harness, small)
    loads = [harness.engine.load(digest) for digest in digests[:3]]
    merged = harness.engine.merge(ResolvedMixture((digests[2],), (0.5,)))
    asked = request("asked", PROMPT, {digests[1]: 1.0}, max_new_tokens=4)
    answered = _passed_by(harness, digests[:1], asked)
    assert answered <= CONFIG.scheduler.max_overtaken + CLIENTS + CONFIG.scheduler.max_running
    for load in loads:
        harness.wait(load)
    assert harness.wait(merged).mode == "merged"
    harness.wait(harness.engine.merge(None))


def test_what_pins_leave_no_room_for_is_refused(
    make_harness: MakeHarness, small: list[Path]
) -> None:
    harness = make_harness(config=CONFIG)
    digests = _publish(harness, small)
    for digest in digests[:2]:
        harness.wait(harness.engine.pin(digest, pinned=True))
    (beside, base, third) = harness.run(
        request("beside", PROMPT, {digests[0]: 1.0, digests[1]: 0.5}),
        request("base", PROMPT),
        request("third", PROMPT, {digests[2]: 1.0}),
    )
    assert beside.end.reason is base.end.reason is FinishReason.LENGTH
    assert third.end.reason is FinishReason.REFUSED
    assert f"need {FOUR:,} bytes" in str(third.end.error)
    assert f"pinned and merged adapters keep {MEMORY:,}: unpin some" in str(third.end.error)
    with pytest.raises(RequestRefusedError, match="unpin some"):
        harness.wait(harness.engine.load(digests[2]))
    with pytest.raises(RequestRefusedError, match="unpin some"):
        harness.wait(harness.engine.pin(digests[2], pinned=True))
    with pytest.raises(RequestRefusedError, match="unpin some"):
        harness.wait(harness.engine.merge(ResolvedMixture((digests[2],), (0.5,))))
    harness.wait(harness.engine.pin(digests[0], pinned=False))
    (third,) = harness.run(request("third again", PROMPT, {digests[2]: 1.0}))
    assert third.end.reason is FinishReason.LENGTH


def test_a_pin_ends_the_wait_of_those_that_it_leaves_no_room(
    make_harness: MakeHarness, small: list[Path]
) -> None:
    """It waits for users of what is then pinned."""
    harness = make_harness(config=CONFIG)
    digests = _publish(harness, small)
    harness.add(request("user", PROMPT, {digests[0]: 1.0}, max_new_tokens=30))
    while not harness.answers["user"].tokens:
        harness.step()
    harness.add(request("whole", PROMPT, {digests[3]: 1.0}))
    harness.wait(harness.engine.pin(digests[0], pinned=True))
    while harness.answers["whole"].final is None:
        harness.step()
    assert harness.answers["user"].final is None
    assert harness.answers["whole"].end.reason is FinishReason.REFUSED


def test_what_an_admin_merged_keeps_its_rows_and_another_merge_is_told(
    make_harness: MakeHarness, small: list[Path]
) -> None:
    harness = make_harness(config=CONFIG)
    digests = _publish(harness, small)
    harness.wait(harness.engine.merge(ResolvedMixture((digests[3],), (0.5,))))
    (third,) = harness.run(request("third", PROMPT, {digests[2]: 1.0}))
    assert third.end.reason is FinishReason.REFUSED
    assert "restore the base" in str(third.end.error)
    with pytest.raises(RequestRefusedError, match="restore the base"):
        harness.wait(harness.engine.merge(ResolvedMixture((digests[2],), (0.5,))))
    harness.wait(harness.engine.merge(None))
    assert harness.wait(harness.engine.merge(ResolvedMixture((digests[2],), (0.5,)))).mixture


def test_what_the_traffic_merged_gives_way(make_harness: MakeHarness, small: list[Path]) -> None:
    """Under `auto` the merged mixture takes the whole pool; nobody asked for that to stay."""
    config = EngineConfig(
        cache=CacheConfig(num_blocks=256),
        adapters=AdapterPoolConfig(MEMORY),
        merge=MergeConfig(mode="auto", half_life=32),
    )
    harness = make_harness(config=config)
    digests = _publish(harness, small)
    whole = {digests[3]: 0.5}
    harness.run(*(request(f"whole {i}", PROMPT[i:], whole) for i in range(12)))
    assert harness.engine.merged().mixture == ResolvedMixture((digests[3],), (0.5,))
    (third,) = harness.run(request("third", PROMPT, {digests[2]: 1.0}))
    assert third.end.reason is FinishReason.LENGTH
    answered = _passed_by(harness, digests[3:], request("again", PROMPT, {digests[2]: 1.0}))
    assert answered <= config.scheduler.max_overtaken + CLIENTS + config.scheduler.max_running
