"""Cells in turn: who fails is left out with the reason, and the others keep what they have."""

import asyncio
from collections.abc import Sequence

import pytest
from rich.console import Console

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import Load, OnDone, Round, Sample
from adaptermix.bench.report import cell_of, markdown
from adaptermix.bench.rounds import Cell, Measured, measure
from adaptermix.bench.workload import Job

GOOD, BAD = (Cell("s", case, Load(clients=1), 2) for case in ("good", "bad"))


class Fragile:
    """Refuses a case from its n-th turn on; the warm-up is the first."""

    def __init__(self, case: str, turn: int) -> None:
        self._case = case
        self._left = turn - 1

    async def round(self, case: str, load: Load, jobs: Sequence[Job], on_done: OnDone) -> Round:
        if case == self._case:
            if self._left == 0:
                raise BenchmarkError("refused:\nno such router")
            self._left -= 1
        return Round(tuple(Sample(0.0, (1.0, 2.0), 2.0, 1, 2) for _ in jobs), 1.0)


def run(system: Fragile, *cells: Cell) -> Measured:
    def jobs_of(cell: Cell, part: str) -> list[Job]:
        return [Job(part, 2)] * cell.requests

    return asyncio.run(measure({"s": system}, cells, 3, jobs_of, Console(quiet=True)))


@pytest.mark.parametrize("turn", [1, 2, 4])
def test_a_cell_that_fails_is_left_out_with_its_reason(turn: int) -> None:
    measured = run(Fragile("bad", turn), BAD, GOOD)
    assert set(measured.rounds) == {GOOD}
    assert len(measured.rounds[GOOD]) == 3
    assert list(measured.missing.values()) == ["refused:\nno such router"]
    assert all("bad" in name for name in measured.missing)


def test_nothing_is_missing_of_what_went_well() -> None:
    measured = run(Fragile("other", 1), BAD, GOOD)
    assert {cell: len(rounds) for cell, rounds in measured.rounds.items()} == {BAD: 3, GOOD: 3}
    assert measured.missing == {}


def test_where_all_fail_the_first_reason_is_the_error() -> None:
    with pytest.raises(BenchmarkError, match="no such router"):
        run(Fragile("bad", 2), BAD)


def test_the_page_says_what_is_missing() -> None:
    measured = run(Fragile("bad", 3), BAD, GOOD)
    result = {
        "kind": "serve",
        "model": "m",
        "machine": {"processor": "p", "cores": 1},
        "software": {"commit": "c", "date": "2026-01-01"},
        "cells": [cell_of("good", GOOD, measured.rounds[GOOD])],
        "missing": dict(measured.missing),
    }
    assert "- s, bad, 1 clients is missing: refused: no such router" in markdown(result)
