"""The matrix of a step under a merged mixture: what is left to add, and when nothing is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters_store.types import ResolvedMixture
from router_engine.mixture.weights import StepWeights, step_weights
from router_engine.request import EngineRequest
from router_engine.scheduling.plan import PlannedRow
from router_engine.sparse_weights import SparseWeights

MERGED = ResolvedMixture(("a", "b"), (0.75, 0.25))
CPU = torch.device("cpu")


def planned(adapters: tuple[str, ...], *runs: tuple[float, ...], **more: Any) -> PlannedRow:
    """Two tokens under each of `runs`."""
    tokens = tuple(range(2 * len(runs)))
    return PlannedRow(
        EngineRequest("r", tokens, adapters=adapters, **more),
        arrival=0,
        token_ids=tokens,
        start=0,
        block_ids=(0,),
        needs_logits=True,
        weight_runs=tuple((2, SparseWeights.from_dense(run)) for run in runs),
        known_tokens=tokens,
    )


SAME = planned(("a", "b"), (0.75, 0.25))
TURNED = planned(("b", "c", "a"), (0.25, 0.0, 0.75), (0.25, 0.0, 0.75))


def whole(weights: StepWeights | None) -> torch.Tensor:
    assert weights is not None
    assert weights.sum_weights is not None
    return weights.sum_weights


def test_under_the_merged_mixture_nothing_is_left() -> None:
    assert step_weights([SAME, TURNED], MERGED, CPU) is None


def test_what_is_left_is_the_difference() -> None:
    other = planned(("a", "c"), (1.0, 0.5), (0.75, 0.0))
    weights = step_weights([SAME, other], MERGED, CPU)
    expected = [[0.0, 0.0, 0.0]] * 2 + [[0.25, -0.25, 0.5]] * 2 + [[0.0, -0.25, 0.0]] * 2
    torch.testing.assert_close(whole(weights), torch.tensor(expected))
    assert weights is not None
    assert weights.digests == ("a", "b", "c")


def test_another_combination_of_the_same_weights_is_another_mixture() -> None:
    weights = step_weights([planned(("a", "b"), (0.75, 0.25), combination="linear")], MERGED, CPU)
    torch.testing.assert_close(whole(weights), torch.tensor([[-0.75, -0.25]] * 2))
    assert weights is not None
    assert weights.sqrt_weights is not None


def test_below_the_tap_the_base_acts_alone() -> None:
    """Its experts act from the probe layer on; what is merged is taken off below."""
    probed = planned(("a", "b"), (0.75, 0.25), reads_hidden_states=True)
    weights = step_weights([probed], MERGED, CPU)
    assert weights is not None
    torch.testing.assert_close(whole(weights.below_probe), torch.tensor([[-0.75, -0.25]] * 2))


@pytest.mark.parametrize("merged", [None, MERGED])
def test_the_bare_base(merged: ResolvedMixture | None) -> None:
    weights = step_weights([planned((), ())], merged, CPU)
    assert (weights is None) == (merged is None)
