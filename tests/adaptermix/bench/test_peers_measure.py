"""How often each cell is measured, and what a failing system costs the others."""

import asyncio
import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.goals import MIXED
from adaptermix.bench.load import Load, OnDone, Round, Sample
from adaptermix.bench.peers.plan import jobs, key_of, traffics, waves
from adaptermix.bench.rounds import (
    MOST_WAVES,
    PRACTICE,
    Cell,
    Measured,
    Pace,
    System,
    measure_at_pace,
)
from adaptermix.bench.workload import Job

PACE = Pace(rounds=3, cell_seconds=4.0, minutes=50.0)
CELLS = [
    Cell(system, case, Load(clients=8), 8, "peers")
    for system in ("fast", "slow")
    for case in ("base", "many")
]


class Timed:
    """A system of known speed, on a clock of its own. It fails in one case after some rounds."""

    def __init__(self, seconds: float, fails: str = "", after: int = 0) -> None:
        self.now = 0.0
        self.sizes: list[int] = []
        self._seconds = seconds
        self._fails = fails
        self._after = after

    async def round(self, case: str, load: Load, jobs: Sequence[Job], on_done: OnDone) -> Round:
        if case == self._fails:
            self._after -= 1
            if self._after < 0:
                raise BenchmarkError("it broke")
        seconds = self._seconds * len(jobs) / (load.clients or 1)
        self.now += seconds
        self.sizes.append(len(jobs))
        sample = Sample(0.0, (seconds,), seconds, 1, 1)
        return Round((sample,) * len(jobs), seconds)


def work(cell: Cell, turn: str) -> list[Job]:
    return [Job(turn, 1)] * cell.requests


def measured(systems: dict[str, Timed], pace: Pace = PACE) -> tuple[Measured, str]:
    seen: dict[str, System] = {**systems}
    said = io.StringIO()
    measuring = measure_at_pace(
        seen,
        CELLS,
        pace,
        work,
        lambda cell: str(key_of(cell)),
        Console(file=said, width=200),
        lambda: sum(system.now for system in systems.values()),
    )
    return asyncio.run(measuring), said.getvalue()


def test_fast_cells_repeat_their_requests_and_slow_ones_run_once() -> None:
    systems = {"fast": Timed(1.3), "slow": Timed(20.0)}
    found, said = measured(systems)
    # Practice first: one wave a cell.
    assert systems["fast"].sizes == [8, 8, *[24] * 6]
    assert systems["slow"].sizes == [8] * 8
    assert {len(rounds) for rounds in found.rounds.values()} == {3}
    assert {cell.requests for cell in found.rounds} == {24, 8}
    assert found.timing["expected_round_seconds"] == pytest.approx(47.8)
    assert "3 rounds of about 48 s: 2.4 minutes" in said


def test_no_cell_repeats_for_ever() -> None:
    systems = {"fast": Timed(1e-6), "slow": Timed(1e-6)}
    measured(systems)
    assert max(systems["fast"].sizes) == MOST_WAVES * 8


def test_rounds_end_when_the_time_is_up() -> None:
    found, said = measured({"fast": Timed(1.0), "slow": Timed(20.0)}, Pace(5, 1.0, 2.0))
    assert found.timing["round_seconds"] == pytest.approx([42.0, 42.0])
    assert "the time is up after 2 rounds" in said


def test_there_is_one_round_however_short_the_time() -> None:
    found, _ = measured({"fast": Timed(1.0), "slow": Timed(20.0)}, Pace(5, 1.0, 0.1))
    assert {len(rounds) for rounds in found.rounds.values()} == {1}


@pytest.mark.parametrize("after", [0, 2])
def test_what_a_peer_cannot_do_is_named_and_the_rest_is_measured(after: int) -> None:
    found, said = measured({"fast": Timed(1.0), "slow": Timed(1.0, "many", after)})
    assert {(cell.system, cell.case) for cell in found.rounds} == {
        ("fast", "base"),
        ("fast", "many"),
        ("slow", "base"),
    }
    assert found.missing == {"slow, many, c = 8": "it broke"}
    assert "slow, many, c = 8 is left out: it broke" in said


class TestWork:
    def test_who_runs_more_waves_has_done_the_same_work_first(self) -> None:
        traffic = traffics(4, len)["peers"]
        once = Cell("slow", "many", Load(clients=8), 8, "peers")
        thrice = Cell("fast", "many", Load(clients=8), 24, "peers")
        few, many = (jobs(cell, "round 0", traffic) for cell in (once, thrice))
        assert many[:8] == few
        assert len({job.prompt for job in many}) == 24

    def test_neither_loads_nor_suites_nor_rounds_share_prompts(self) -> None:
        cells = [
            Cell("ours", "base", Load(clients=clients), 32, suite)
            for clients in (8, 32)
            for suite in ("peers", "own")
        ]
        prompts = [
            job.prompt
            for cell in cells
            for turn in (PRACTICE, "round 0")
            for job in jobs(cell, turn, traffics(4, len)[cell.suite])
        ]
        assert len(set(prompts)) == len(prompts) == 8 * 32

    def test_a_single_client_has_two_requests_in_a_wave(self) -> None:
        cell = Cell("ours", "base", Load(clients=1), 6, MIXED)
        assert waves(cell, "round 1")[1:] == [
            "mixed 1 clients round 1 wave 1",
            "mixed 1 clients round 1 wave 2",
        ]
