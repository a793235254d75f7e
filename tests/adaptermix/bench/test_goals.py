"""The table of targets, by hand-made measurements."""

from dataclasses import asdict

import pytest

from adaptermix.bench.goals import (
    AVX2_GOALS,
    GOALS,
    INT8,
    LLAMA,
    OURS,
    PEERS,
    PEFT,
    VLLM,
    goals_of,
)
from adaptermix.bench.report import goal_table
from adaptermix.bench.verdicts import Goal, Key, judge

OVER = Key(OURS, PEERS, "base", 8)
UNDER = tuple(Key(peer, PEERS, "base", 8) for peer in (PEFT, VLLM, LLAMA))
BEST = Goal("base", 2, over=OVER, under=UNDER)


class TestRatio:
    def test_of_medians_to_the_best_of_several(self) -> None:
        rates = {
            OVER: [200.0, 100.0, 300.0],
            UNDER[0]: [10.0, 10.0, 10.0],
            UNDER[1]: [50.0, 80.0, 100.0],
            UNDER[2]: [70.0, 20.0, 75.0],
        }
        verdict = judge(BEST, rates, {})
        assert (verdict.status, verdict.value) == ("met", 2.5)  # 200 / 80
        # Round by round against the same peer: 200 / 50, 100 / 80, 300 / 100.
        assert (verdict.low, verdict.high) == (1.25, 4)

    def test_below_the_bound_is_missed(self) -> None:
        rates = {OVER: [100.0]} | {key: [60.0] for key in UNDER}
        assert judge(BEST, rates, {}).status == "missed"

    def test_a_missing_peer_leaves_a_success_open(self) -> None:
        verdict = judge(BEST, {OVER: [100.0], UNDER[0]: [10.0], UNDER[1]: [20.0]}, {})
        assert (verdict.status, verdict.value) == ("open", 5)
        assert verdict.note == f"without {LLAMA}"

    def test_a_missing_peer_does_not_excuse_a_failure(self) -> None:
        assert judge(BEST, {OVER: [10.0], UNDER[0]: [10.0]}, {}).status == "missed"

    def test_nothing_to_compare_with_is_open(self) -> None:
        verdict = judge(BEST, {OVER: [10.0]}, {})
        assert (verdict.status, verdict.value) == ("open", None)
        assert PEFT in verdict.note

    def test_a_factor_scales_it(self) -> None:
        goal = Goal("mixed", 0.9, over=OVER, under=(UNDER[0],), factor="bytes")
        rates = {OVER: [8.0], UNDER[0]: [10.0]}
        assert judge(goal, rates, {"bytes": [1.2]}).value == pytest.approx(0.96)
        assert judge(goal, rates, {}).status == "open"


class TestScalar:
    GOAL = Goal("start", 10, at_least=False, scalar="start_seconds", missing="no start")

    def test_at_most_by_the_median(self) -> None:
        verdict = judge(self.GOAL, {}, {"start_seconds": [9.0, 30.0, 8.0]})
        assert (verdict.status, verdict.value, verdict.low, verdict.high) == ("met", 9, 8, 30)
        assert judge(self.GOAL, {}, {"start_seconds": [10.1]}).status == "missed"

    def test_without_it_the_reason_is_given(self) -> None:
        verdict = judge(self.GOAL, {}, {})
        assert (verdict.status, verdict.note) == ("open", "no start")


def test_every_target_has_a_row_that_says_what_came_out() -> None:
    rows = goal_table([asdict(judge(goal, {}, {})) for goal in GOALS])
    assert len(rows) == 2 + len(GOALS)
    assert len({goal.what for goal in GOALS}) == len(GOALS)
    assert sum("not run on a GPU" in row for row in rows) == 7
    assert all(INT8 in row for row in rows if "int8 against" in row)
    assert all(row.endswith("|") and row.count("|") == 6 for row in rows)


def test_a_processor_without_bf16_has_targets_of_its_own_beside_the_peers() -> None:
    assert goals_of("avx512_bf16") == goals_of(None) == GOALS
    found = goals_of("avx2")
    assert found == AVX2_GOALS
    bounds = {goal.what: goal.bound for goal in found if goal.over and goal.over.suite == PEERS}
    assert bounds["base model, bf16 against llama.cpp in 16 bits, c = 1"] == 1.1
    assert bounds["eight LoRAs against PEFT `adapter_names`, c = 32"] == 5
    own = [goal.what for goal in GOALS if goal.what in {goal.what for goal in found}]
    assert "merged mixture against the bare base, c = 1" in own


def test_a_row_shows_value_spread_and_verdict() -> None:
    verdict = judge(BEST, {OVER: [30.0]} | {key: [20.0] for key in UNDER}, {})
    assert goal_table([asdict(verdict)])[2] == (
        "| base | at least 2x | 1.50x | 1.50-1.50 | **missed** |"
    )
