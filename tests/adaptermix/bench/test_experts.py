"""What kinds of experts cost: the targets by hand, and the whole command, small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.expert_adapters import Kind, equal_rank, num_parameters, write_expert_adapters
from adaptermix.bench.experts import CASES, KINDS, ExpertTarget, markdown, result_table, run_experts
from adaptermix.bench.settings import ExpertSettings, ModelSettings
from adaptermix.bench.subject import Subject
from adaptermix.cli.main import app
from adapters_store.store import AdapterStore


@pytest.mark.parametrize("name", ["requests", "adapters", "context", "steps", "rounds"])
def test_settings_that_cannot_be_are_refused(name: str) -> None:
    given: dict[str, Any] = {name: 0}
    with pytest.raises(BenchmarkError, match=f"{name} is 0"):
        ExpertSettings(**given)


def test_an_unknown_option_is_refused() -> None:
    done = CliRunner().invoke(app, ["bench", "experts", "--expert", "x"], env={"TERM": "dumb"})
    assert done.exit_code == 2


def test_a_target_is_judged_round_by_round() -> None:
    seconds = {"soft": [2.0, 3.0, 4.0], "lora": [1.0, 2.25, 2.0]}
    judged = ExpertTarget("x", "soft", "lora", 0.5).judge(seconds)
    assert judged["ratio"] == 0.5
    assert judged["ratio_range"] == (0.5, 0.75)
    assert judged["status"] == "met"
    assert ExpertTarget("x", "soft", "lora", 0.51).judge(seconds)["status"] == "missed"


def test_plain_adapters_have_as_many_parameters_as_mixtures(tmp_path: Path) -> None:
    base = Subject.of("tiny-random").base()
    rank = equal_rank(base)
    lora, soft = (num_parameters(base, kind, rank) for kind in ("lora", "soft"))
    assert abs(lora / soft - 1) < 0.1
    assert num_parameters(base, "adamix", rank) == lora
    names: dict[str, Kind] = {kind: kind for kind in KINDS}
    store = AdapterStore.open(tmp_path / "store")
    try:
        for folder in write_expert_adapters(base, tmp_path / "adapters", names, rank):
            manifest = store.publish(folder.name, folder, base=base).manifest
            assert manifest.is_plain_lora == (folder.name == "lora")
            assert bool(manifest.routers) == (folder.name in ("soft", "sparse"))
    finally:
        store.close()


def test_every_case_is_measured() -> None:
    settings = ExpertSettings(requests=3, adapters=2, context=8, steps=2, rounds=2)
    result = run_experts(settings, ModelSettings(model="tiny-random", kernels="reference"))
    assert [cell["case"] for cell in result["cells"]] == list(CASES)
    assert all(cell["step_ms"] > 0 for cell in result["cells"])
    (lora,) = (cell for cell in result["cells"] if cell["case"] == "lora")
    assert lora["beside_lora"] == (1.0, 1.0, 1.0)
    assert [target["status"] in ("met", "missed") for target in result["targets"]] == [True] * 3
    assert result_table(result).row_count == len(CASES)
    page = markdown(result)
    assert all(cell["title"] in page for cell in result["cells"])
