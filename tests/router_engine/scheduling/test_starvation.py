"""Nobody waits without end: for rows of adapters, for a turn, or for blocks, under any order.

Random closed loops over the real scheduler and the real residency (`simulation`), with the bound as
the assertion, and the same loops without the rule as a negative control.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from router_engine.config import Fairness, Policy, SchedulerConfig
from router_engine.request import EngineRequest
from tests.router_engine.conftest import RANKS, MakeHarness
from tests.router_engine.scheduling.harness import Drive, fixed
from tests.router_engine.scheduling.simulation import Simulation

ROWS = 16  # of the pool: as many as the largest adapter has
ANSWERS = 400
LONGEST = 6  # tokens of an answer
CONFIG = SchedulerConfig(
    max_running=4, max_step_tokens=16, max_overtaken=4, background_tokens_beside=4
)
NEVER = 1 << 40


@dataclass(slots=True)
class Adapters:
    """Published once; the simulations read their files."""

    blobs: Path
    digests: list[str] = field(default_factory=list)


@pytest.fixture
def adapters(make_harness: MakeHarness, folders: list[Path], tmp_path: Path) -> Adapters:
    harness = make_harness()
    found = Adapters(tmp_path / "0" / "store" / "blobs")
    found.digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders)]
    return found


@dataclass(slots=True)
class Client:
    """Asks for random work: most ask for one of two adapters, the others for anything.

    `number`: 7 of ten stay with what is resident; the last asks in the background, too.
    """

    number: int
    digests: list[str]
    draw: random.Random

    def __call__(self, name: str) -> EngineRequest:
        is_steady = self.number < 7
        mixture = [self.digests[3 * (self.number % 2)]] if is_steady else self._mixture()
        length = self.draw.randint(1, 6 if is_steady else 30)
        asked = fixed(
            name,
            [self.draw.randrange(40) for _ in range(length)],
            self.draw.randint(1, LONGEST),
            mixture=dict.fromkeys(mixture, 1.0),
            priority=0 if is_steady else self.draw.choice([0, 3]),
        )
        return replace(asked, is_background=self.number == 9 and self.draw.random() < 0.5)

    def _mixture(self) -> list[str]:
        """The base, an adapter, three of them, or the one that needs the whole pool."""
        whole = max(range(len(RANKS)), key=lambda index: RANKS[index])
        assert RANKS[whole] == ROWS
        chosen = self.draw.choice([(), (1,), (2,), (4,), (0, 1, 4), (whole,)])
        return [self.digests[index] for index in chosen]


def _serve(
    adapters: Adapters, config: SchedulerConfig, seed: int, host_bytes: int = 1 << 30
) -> Simulation:
    draw = random.Random(seed)
    clients = {str(i): Client(i, adapters.digests, draw) for i in range(10)}
    simulation = Simulation(adapters.blobs, adapters.digests, config, ROWS, 24, host_bytes)
    try:
        simulation.serve(clients, ANSWERS)
    finally:
        simulation.close()
    return simulation


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fairness", ["adapter", "none"])
@pytest.mark.parametrize("policy", ["fifo", "priority"])
def test_whoever_waits_is_passed_by_no_more_than_a_bound(
    policy: Policy, fairness: Fairness, seed: int, adapters: Adapters
) -> None:
    """Those before it go first. Each, and then it itself, may be passed `max_overtaken` times; from
    then on by those alone who are not in its way, while what is in its way runs to its end.
    """
    config = replace(CONFIG, policy=policy, fairness=fairness)
    most = config.max_overtaken + config.max_running * LONGEST
    for wait in _serve(adapters, config, seed).waits.values():
        assert wait.passed <= (wait.older + 1) * most


@pytest.mark.parametrize("host_bytes", [0, 60_000])
@pytest.mark.parametrize("policy", ["fifo", "priority"])
def test_the_bound_holds_where_hardly_a_copy_fits_the_host(
    policy: Policy, host_bytes: int, adapters: Adapters
) -> None:
    """One adapter's copy at a time, or some: files are read when their turn comes."""
    config = replace(CONFIG, policy=policy)
    simulation = _serve(adapters, config, seed=0, host_bytes=host_bytes)
    most = config.max_overtaken + config.max_running * LONGEST
    for wait in simulation.waits.values():
        assert wait.passed <= (wait.older + 1) * most
    assert simulation.residency.counters.loads > len(adapters.digests)


@pytest.mark.parametrize("policy", ["fifo", "priority"])
def test_without_the_rule_some_wait_without_end(policy: Policy, adapters: Adapters) -> None:
    """Negative control: what the bound says is not so by itself."""
    config = replace(CONFIG, policy=policy, max_overtaken=NEVER)
    waits = _serve(adapters, config, seed=0).waits.values()
    assert max(wait.passed for wait in waits) > 0.9 * ANSWERS


def _overtakers(drive: Drive, name: str, asked: int) -> int:
    """How many of `asked` that come one a step, later, end before `name` does."""
    for number in range(asked):
        drive.add(fixed(f"later {number}", [number % 40, *range(6)], 4))
        drive.step()
        if name in drive.finals:
            return number
    raise AssertionError(f"{name} waits still")


@pytest.mark.parametrize("running", [1, 2, 8])
def test_a_late_priority_gets_its_turn(running: int) -> None:
    config = replace(CONFIG, policy="priority", max_running=running)
    drive = Drive(config)
    for number in range(running + 4):
        drive.add(fixed(f"first {number}", [number, *range(6)], 4))
    drive.add(fixed("late", range(9), 4, priority=7))
    _overtakers(drive, "late", 100)
    ended = list(drive.finals).index("late")
    assert ended <= running + 4 + config.max_overtaken + running
    drive.drain()
    drive.check_texts()


@pytest.mark.parametrize("policy", ["fifo", "priority"])
def test_the_background_gets_its_turn_behind_a_queue_that_never_ends(policy: Policy) -> None:
    drive = Drive(replace(CONFIG, policy=policy, max_running=2))
    for number in range(6):
        drive.add(fixed(f"first {number}", [number, *range(6)], 4))
    drive.add(replace(fixed("texts", range(20), 1), is_background=True))
    _overtakers(drive, "texts", 200)
    drive.drain()
    drive.check_texts()


def test_one_in_the_background_that_waits_for_its_tokens_holds_up_nobody() -> None:
    """The first takes all tokens of the background for many steps: who is next goes on."""
    drive = Drive(replace(CONFIG, max_running=8, background_tokens=1, background_tokens_beside=1))
    for name in ("first", "second"):
        drive.add(replace(fixed(name, range(40), 1), is_background=True))
    for number in range(60):
        drive.add(fixed(f"live {number}", [number % 40], 1))
        drive.step()
    assert sum(name.startswith("live") for name in drive.finals) > 50
    drive.drain()
    drive.check_texts()


@pytest.mark.parametrize("policy", ["fifo", "priority"])
@pytest.mark.parametrize("priority", [0, 5])
def test_a_long_prompt_finds_its_blocks_beside_short_ones(policy: Policy, priority: int) -> None:
    """It needs all blocks but one, and is of a later level, too."""
    config = replace(CONFIG, policy=policy, max_running=8, max_step_tokens=8)
    drive = Drive(config, num_blocks=12, prefix_cache=False)
    for number in range(6):
        drive.add(fixed(f"first {number}", [number], 6))
    drive.add(fixed("long", range(40), 4, priority=priority))
    _overtakers(drive, "long", 300)
    drive.drain()
    drive.check_texts()


def test_one_that_runs_is_not_starved_of_tokens_by_new_texts() -> None:
    """A long text of a late level, admitted while nobody else was there."""
    drive = Drive(replace(CONFIG, policy="priority", max_step_tokens=8, max_running=8))
    drive.add(fixed("long", range(40), 2, priority=9))
    drive.step()
    for number in range(200):
        drive.add(fixed(f"text {number}", [number % 40, *range(12)], 1))
        drive.step()
        if "long" in drive.finals:
            break
    assert "long" in drive.finals
    drive.drain()
    drive.check_texts()
