"""What routers cost: the arithmetic by hand, and the whole command, small."""

from __future__ import annotations

import gzip
import json
import math
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.offline import Window
from adaptermix.bench.routing.cases import (
    CASES,
    FREE,
    TARGETS,
    RoutingCase,
    Size,
    around,
    even_mixture,
    groups,
    line_of,
)
from adaptermix.bench.routing.run import dearest, fitting_rounds, own_ms, run_routing
from adaptermix.bench.settings import ModelSettings, RoutingSettings
from adaptermix.cli.main import app
from adaptermix.evaluation.contexts import ContextRow, bucketed_kl, summary
from router_engine.routers.encoder.tiny_encoder import save_tiny_encoder
from scripts.figures import PERFORMANCE
from tests.support.tiny import make_lora_folder, save_family


def window(seconds: float, model: float = 0.0) -> Window:
    return Window(seconds, model, 16, {})


class TestSettings:
    @pytest.mark.parametrize(
        ("given", "named"),
        [
            ({"requests": (0,)}, "requests is 0"),
            ({"candidates": (4, 0)}, "candidates is 0"),
            ({"steps": 0}, "steps is 0"),
            ({"rounds": 0}, "rounds is 0"),
            ({"minutes": 0.0}, "minutes is 0"),
            ({"rows": 3}, "rows and adapters"),
            ({"adapters": Path("mine")}, "rows and adapters"),
        ],
    )
    def test_what_cannot_be_is_refused(self, given: dict[str, Any], named: str) -> None:
        with pytest.raises(BenchmarkError, match=named):
            RoutingSettings(**given)

    def test_rows_go_with_data(self) -> None:
        assert RoutingSettings(data=Path("data"), rows=3).rows == 3

    def test_an_unknown_option_is_refused(self) -> None:
        done = CliRunner().invoke(app, ["bench", "routing", "--router", "x"], env={"TERM": "dumb"})
        assert done.exit_code == 2

    def test_an_encoder_that_is_not_there_is_refused(self) -> None:
        settings = RoutingSettings(encoder="/nowhere")
        with pytest.raises(BenchmarkError, match="'/nowhere'"):
            run_routing(settings, ModelSettings("tiny-random"), {**os.environ, **THREADS})


THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


class TestNumbers:
    def test_ratios_are_those_of_rounds(self) -> None:
        routed = [window(0.012, 0.009), window(0.030, 0.021), window(0.011, 0.010)]
        fixed = [window(0.010, 0.008), window(0.020, 0.020), window(0.011, 0.009)]
        line = line_of(CASES[0], Size(8, 64), routed, fixed, 12)
        assert line["ratio"] == pytest.approx(1.2)  # of 1.2, 1.5, 1.0
        assert line["ratio_range"] == pytest.approx([1.0, 1.5])
        assert line["step_ms"] == pytest.approx(12)
        assert line["fixed_ms"] == pytest.approx(11)
        assert line["added_ms"] == pytest.approx(2)  # of 2, 10, 0
        assert line["added_in_model_ms"] == pytest.approx(1)
        assert (line["requests"], line["candidates"], line["active_adapters"]) == (8, 64, 12)

    def test_a_target_is_judged_where_it_is_worst(self) -> None:
        lines = [
            {"case": "hidden_mean", "requests": n, "candidates": k, "ratio": ratio}
            | {"ratio_range": [ratio, ratio]}
            for n, k, ratio in ((1, 4, 1.01), (8, 4, 1.02), (32, 1000, 1.03))
        ]
        assert FREE.judge(lines).status == "met"
        lines[1]["ratio"] = 1.04
        verdict = FREE.judge(lines)
        assert (verdict.status, verdict.value) == ("missed", 1.04)
        assert verdict.note == "worst at 8 requests, 4 candidates"

    def test_a_target_of_one_size_leaves_the_others_out(self) -> None:
        lag = TARGETS[1]
        line = {"case": lag.case, "requests": 32, "candidates": 4, "ratio": 9.0}
        assert lag.judge([line]).status == "open"
        line |= {"requests": 8, "ratio": 1.1, "ratio_range": [1.0, 1.2]}
        assert lag.judge([line]).status == "met"

    def test_rounds_fit_into_the_minutes(self) -> None:
        settings = RoutingSettings(rounds=5, minutes=1)
        assert [fitting_rounds(settings, s) for s in (1, 12, 25, 100)] == [5, 5, 2, 1]

    def test_each_router_is_compared_with_fixed_weights_of_its_own(self) -> None:
        found = groups(["similarity", "unheard of"])
        ((fixed, cases),) = found
        assert not fixed.is_routed
        assert [case.router for case in cases] == ["similarity"] * 3
        assert cases[0].is_routed
        assert [case.name for _, cases in groups(["hidden_mean"]) for case in cases] == [
            "hidden_mean",
            "hidden_mean, every 2",
            "fixed, above the tap",
        ]
        assert not RoutingCase("fixed", "x", {"reads_hidden_states": True}).is_routed

    def test_even_mixtures_take_turns(self) -> None:
        digests = [f"{i}" for i in range(6)]
        assert even_mixture(digests, 1) == (("4", "5", "0", "1"), (0.25,) * 4)
        assert even_mixture(digests[:2], 3) == (("0", "1"), (0.5, 0.5))

    def test_centroids_lie_around_the_texts(self) -> None:
        mean = np.array([3.0, 0, 0, 0, 0, 0])
        embeddings = mean + 0.1 * np.eye(6)
        centroids = around(embeddings, 50, seed=1)
        centre = embeddings.mean(axis=0)
        offsets = centroids - centre
        spread = math.sqrt(((embeddings - centre) ** 2).sum(axis=1).mean())
        assert np.linalg.norm(offsets, axis=1) == pytest.approx([spread] * 50, rel=1e-4)
        assert np.abs(offsets @ centre).max() < 1e-5
        # Different texts are nearest to different centroids.
        cosines = embeddings @ (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).T
        assert len(set(cosines.argmax(axis=1).tolist())) > 1


def test_a_profile_names_what_takes_the_time() -> None:
    def spend(count: int) -> None:
        while count > 0:
            count -= 1

    def run(count: int) -> dict[str, float]:
        def measured(within: AbstractContextManager[object]) -> Window:
            with within:
                spend(count)
            return Window(1.0, 1.0, 2, {})

        return own_ms(measured)

    first, *_ = dearest(run(1_000_000), run(10))
    assert first["function"].endswith("spend")
    assert first["ms"] > first["fixed_ms"] >= 0


class TestContexts:
    def test_kl_over_shared_tokens_and_one_bucket(self) -> None:
        p, q = {1: 0.5, 2: 0.3, 3: 0.1}, {2: 0.25, 1: 0.6, 4: 0.1}
        expected = 0.5 * math.log(0.5 / 0.6) + 0.3 * math.log(0.3 / 0.25)
        expected += 0.2 * math.log(0.2 / 0.15)
        ours, theirs = ([(t, math.log(v)) for t, v in part.items()] for part in (p, q))
        assert bucketed_kl(ours, theirs) == pytest.approx(expected)
        assert bucketed_kl(ours, ours) == pytest.approx(0)

    def test_means_are_over_tokens(self) -> None:
        rows = [ContextRow("math", (0.0, 0.3), (True, False)), ContextRow("code", (0.6,), (True,))]
        found = summary(rows)
        means = {line["task"]: line["kl"]["mean"] for line in found["tasks"]}
        assert means == pytest.approx({"math": 0.15, "code": 0.6, "all": 0.3})
        assert found["tasks"][-1]["equal"]["mean"] == pytest.approx(2 / 3)
        assert found["positions"] == [
            {"rows": 2, "kl": 0.3, "equal": 1.0},
            {"rows": 1, "kl": 0.3, "equal": 0.0},
        ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, an encoder, adapters for two tasks, and test rows of these."""
    root = tmp_path_factory.mktemp("routing")
    save_family(root / "model", "llama")
    save_tiny_encoder(root / "encoder")
    for seed, (task, name) in enumerate((("math", "gsm8k"), ("reading", "squad"))):
        adapter = make_lora_folder(root / "adapters" / task, seed=seed)
        lines = [json.dumps({"text": f"{task} {n}"}) for n in range(3)]
        (adapter / "texts.jsonl").write_text("\n".join(lines))
        (root / "data" / name).mkdir(parents=True)
        rows = [{"prompt": f"{task} {n}?\n\nAnswer:", "completion": f" {n * n}"} for n in range(9)]
        with gzip.open(root / "data" / name / "test.jsonl.gz", "wt") as lines_out:
            lines_out.writelines(json.dumps(row) + "\n" for row in rows)
    return root


@pytest.mark.slow
def test_the_command_measures_routers_and_contexts(folder: Path) -> None:
    (folder / "adapters" / "of no task").mkdir()
    sizes = ["--requests", "1", "--requests", "3", "--candidates", "4", "--candidates", "9"]
    times = ["--steps", "3", "--rounds", "1", "--rows", "3"]
    model = ["--model", str(folder / "model"), "--kernels", "reference", "--threads", "1"]
    places = [f"--{name}={folder / name}" for name in ("encoder", "data", "adapters")]
    out = f"--out={folder / 'routing'}"
    arguments = ["bench", "routing", *sizes, *times, *model, *places, out]
    done = CliRunner().invoke(app, arguments, env={"TERM": "dumb"})
    assert done.exit_code == 0, done.output
    result = json.loads((folder / "routing.json").read_text())
    check(result)
    page = PERFORMANCE.fill("<!-- figures: routing -->\n<!-- end of figures -->", folder, "results")
    assert page.count("| hidden_mean |") == 2
    assert "| reading | 3 |" in page
    assert "at most 1.03x" in page
    assert "## Once a request" in (folder / "routing.md").read_text()
    assert (folder / "routing.png").stat().st_size > 10_000


def check(result: dict[str, Any]) -> None:
    assert result["settings"]["candidates"] == [4, 9]
    names = [line["case"] for line in result["steps"]]
    assert names == [case.name for case in CASES for _ in range(4)]
    for line in result["steps"]:
        assert line["step_ms"] > 0
        assert line["ratio_range"][0] <= line["ratio"] <= line["ratio_range"][1]
        assert 4 <= line["active_adapters"] <= min(line["candidates"], 4 * line["requests"])
    assert [verdict["status"] for verdict in result["targets"]][1] == "open"
    routed = {line["router"] for line in result["routes"]}
    assert "similarity" in routed
    assert {line["candidates"] for line in result["routes"]} == {4, 9}
    first, *later = result["contexts"]["positions"]
    # The prompt's weights hold in both, so the first token comes from the same pass.
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["equal"] == 1
    assert max(one["kl"] for one in later) > 1e-5


def test_a_folder_without_adapters_of_tasks_is_refused_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    (tmp_path / "math").mkdir()
    options = ["--model", "tiny-random", "--data", str(tmp_path), "--adapters", str(tmp_path)]
    done = CliRunner().invoke(app, ["bench", "routing", *options], env={"TERM": "dumb"})
    assert done.exit_code == 1
    assert "named as tasks: math, science" in " ".join(done.output.split())
