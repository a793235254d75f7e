"""Counts and sums of gates, on numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from router_engine.scheduling.gate_statistics import GateCounts, GateSums
from router_engine.scheduling.plan import GateValues

NAN = float("nan")
# One layer, three tokens, two gates of adapter a and one of b; the second token does not use a.
VALUES = np.array([[[0.0, 0.1, 0.5], [NAN, NAN, 0.05], [0.6, 1.0, NAN]]], dtype=np.float32)
STEP = GateValues(VALUES, (("a", 0, 2), ("b", 2, 1)))


def test_a_gate_on_a_bound_counts_below_it() -> None:
    counts = GateCounts()
    counts.add(STEP, np.array([0, 2]))
    first = counts.counts
    assert first == (1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 0)
    assert counts.total == pytest.approx(2.2)
    counts.add(STEP, np.array([1]))
    assert np.subtract(counts.counts, first).tolist() == [0, 1] + [0] * 10


def test_a_request_counts_its_own_adapters_and_each_token_once() -> None:
    sums = GateSums(("a", "other"))
    sums.add(0, STEP, slice(0, 2))
    sums.add(0, STEP, slice(0, 1))  # again, as after a preemption
    sums.add(1, STEP, slice(1, 3))  # the first of these too
    (said,) = sums.statistics()
    assert (said.adapter, said.tokens) == ("a", 2)
    assert said.mean[0] == pytest.approx((0.3, 0.55))
    assert said.std[0] == pytest.approx((0.3, 0.45))
    assert said.spread == pytest.approx((0.05 + 0.2) / 2)
    assert said.closed == 0.25


def test_what_was_not_read_has_no_statistics() -> None:
    sums = GateSums(("a",))
    sums.add(0, STEP, slice(1, 2))
    assert sums.statistics() == ()
