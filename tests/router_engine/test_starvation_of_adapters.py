"""Nobody waits without end for rows of adapters or for a turn, under any order.

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
from tests.router_engine.conftest import MakeHarness
from tests.router_engine.scheduling.harness import fixed
from tests.router_engine.simulation import Simulation
from tests.support.room import slab_bytes

LARGEST = (0, 1, 4)
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
    memory_bytes: int  # for adapters: as many as the largest mixture needs
    digests: list[str] = field(default_factory=list)


@pytest.fixture
def adapters(make_harness: MakeHarness, folders: list[Path], tmp_path: Path) -> Adapters:
    harness = make_harness()
    memory_bytes = slab_bytes(folders[index] for index in LARGEST)
    assert slab_bytes(folders[:2]) + slab_bytes(folders[3:4]) > memory_bytes
    found = Adapters(tmp_path / "0" / "store" / "blobs", memory_bytes)
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
        """The base, an adapter, or three that need all the memory."""
        chosen = self.draw.choice([(), (1,), (2,), (4,), (5,), LARGEST])
        return [self.digests[index] for index in chosen]


def _serve(
    adapters: Adapters, config: SchedulerConfig, seed: int, host_bytes: int = 1 << 30
) -> Simulation:
    draw = random.Random(seed)
    clients = {str(i): Client(i, adapters.digests, draw) for i in range(10)}
    memory, digests = adapters.memory_bytes, adapters.digests
    simulation = Simulation(adapters.blobs, digests, config, memory, 24, host_bytes)
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
