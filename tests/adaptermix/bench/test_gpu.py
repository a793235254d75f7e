"""The GPU benchmark as far as it goes without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from adaptermix.bench.goals import GOALS
from benchmarks.gpu.measure import CardPlan, run, scalars
from benchmarks.gpu.report import markdown
from benchmarks.gpu.steps import CardSizes, CardTurn


def test_what_the_targets_are_about() -> None:
    """Medians of a round's steps; the graph beside the whole step."""
    turns = {
        "base": [CardTurn((0.005, 0.004, 0.009), 0.003)],
        "eight": [CardTurn((0.010,), 0.006)],
        "mixtures": [CardTurn((0.006,), 0.0045)],
    }
    found = scalars(turns, floor=0.0025, peft=[0.2, 0.1, 0.3])
    assert found == {
        "gpu_step_over_floor": [pytest.approx(2.0)],
        "gpu_graph_over_floor": [pytest.approx(1.2)],
        "gpu_mixtures_over_base": [pytest.approx(1.2)],
        "gpu_graph_mixtures_over_base": [pytest.approx(1.5)],
        "gpu_over_peft": [pytest.approx(20.0)],
    }
    asked = {goal.scalar for goal in GOALS if (goal.scalar or "").startswith("gpu_")}
    assert asked <= set(found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_run_of_a_tiny_shape(tmp_path: Path) -> None:
    plan = CardPlan("tiny", "reference", CardSizes(2, 16, 2), rounds=1, peft_tokens=1)
    result = run(plan, tmp_path, Console(quiet=True))
    assert json.loads(json.dumps(result))["plan"]["shape"] == "tiny"
    assert len(result["peft_step_seconds"]) == 3
    assert all(len(turn["seconds"]) == 2 for own in result["steps"].values() for turn in own)
    page = markdown(result | {"machine": {**result["machine"], "gpu": None}})
    assert page.count("not run on a GPU") == 3
    judged = markdown(result | {"machine": {**result["machine"], "gpu": "NVIDIA H200"}})
    assert "not run on a GPU" not in judged
    assert list(tmp_path.iterdir()) == []
