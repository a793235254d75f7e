"""The running mean of hidden states: any cut into chunks, blocks and repetitions gives the same."""

from __future__ import annotations

import numpy as np
import pytest

from router_engine.scheduling.hidden_means import RunningMeans
from router_engine.scheduling.plan import StepOutput

STATES = np.random.default_rng(0).normal(size=(23, 8)).astype(np.float32)


def _mean(stop: int) -> list[float]:
    return [float(x) for x in STATES[1:stop].astype(np.float64).mean(axis=0)]


@pytest.mark.parametrize("cuts", [[23], [1, 2, 3, 23], [5, 10, 16, 23], list(range(1, 24))])
def test_chunks_give_the_mean_of_all_but_the_first(cuts: list[int]) -> None:
    running = RunningMeans(4).open("r")
    start = 0
    for stop in cuts:
        running.add(start, STATES[start:stop])
        start = stop
        mean = running.mean()
        assert (mean is None) == (stop == 1)
        if mean is not None:
            assert mean == pytest.approx(_mean(stop), abs=1e-6)
    assert len(running.block_sums) == 5


def test_what_is_computed_again_counts_once() -> None:
    running = RunningMeans(4).open("r")
    running.add(0, STATES[:13])
    running.add(0, STATES[:9])
    running.add(9, STATES[9:20])
    assert running.mean() == pytest.approx(_mean(20), abs=1e-6)
    assert len(running.block_sums) == 5


@pytest.mark.parametrize("blocks", [1, 3, 5])
def test_going_on_behind_cached_blocks(blocks: int) -> None:
    together = RunningMeans(4)
    other, running = together.open("other"), together.open("r")
    other.add(0, STATES)
    for index in range(blocks):
        other.publish(index, 100 + index)
    running.resume(range(100, 100 + blocks))
    running.add(4 * blocks, STATES[4 * blocks :])
    assert running.mean() == pytest.approx(_mean(23), abs=1e-5)
    assert len(running.block_sums) == len(other.block_sums)
    for one, two in zip(running.block_sums, other.block_sums, strict=True):
        assert one == pytest.approx(two, abs=1e-4)


def test_a_hole_is_refused() -> None:
    running = RunningMeans(4).open("r")
    running.add(0, STATES[:3])
    with pytest.raises(ValueError, match="known until 3, not until 5"):
        running.add(5, STATES[5:6])


def test_requests_of_one_step_are_read_together_as_each_alone() -> None:
    """Of ten requests, each a token further than the one before; some end and leave their place."""
    together, live, ended = RunningMeans(4), [], []
    for step in range(40):
        if step < 10:
            live.append(together.open(f"r{step}"))
        if step % 9 == 8:
            ended.append(live.pop(0))
            ended[-1].close()
            live.append(together.open(f"after {step}"))
        parts = [(r, r.until, slice(i, i + 1)) for i, r in enumerate(live) if r.until < 23]
        out = StepOutput((), np.stack([STATES[min(r.until, 22)] for r in live]))
        for running, start, tokens in parts:
            running.read(start, tokens, out)
        together.flush()
        for running, mean in zip(live, together.means(live), strict=True):
            assert (mean is None) == (running.until < 2)
            if mean is not None:
                assert mean == pytest.approx(_mean(running.until), abs=1e-6)
            assert len(running.block_sums) == running.until // 4
    assert len(ended) == 4


def test_a_step_that_reads_no_states_changes_nothing() -> None:
    running = RunningMeans(4).open("r")
    running.read(0, slice(0, 3), StepOutput((), STATES))
    running.read(3, slice(0, 2), StepOutput(()))
    assert running.mean() == pytest.approx(_mean(3), abs=1e-6)


@pytest.mark.parametrize("window", [1, 4, 6, 99])
def test_a_window_leaves_whole_blocks_out(window: int) -> None:
    """Blocks hold four; the first token counts in none."""
    together = RunningMeans(4)
    running, whole = together.open("r"), together.open("whole")
    running.window = window
    for stop in range(1, 24):
        for each in (running, whole):
            each.add(stop - 1, STATES[stop - 1 : stop])
        first = max(1, 4 * (max(0, stop - window) // 4))
        if stop > 1:
            expected = STATES[first:stop].astype(np.float64).mean(axis=0)
            mean, mean_of_all = together.means([running, whole])
            assert mean == pytest.approx(expected, abs=1e-5)
            assert mean_of_all == pytest.approx(_mean(stop), abs=1e-6)
