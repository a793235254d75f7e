"""The engine without HTTP, and the commands as a user runs them, small."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adaptermix.bench.engine import curves, needs, population_of
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import Load, Round
from adaptermix.bench.offline import Offline, Sizes, Step, offline, split
from adaptermix.bench.settings import EngineSettings
from adaptermix.bench.subject import Subject, write_adapters
from adaptermix.bench.workload import Population, Traffic, parse_lengths
from adaptermix.cli.main import app
from router_engine.model.tiny import TINY_RANDOM

NAMES = tuple(f"a{index}" for index in range(4))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offline]:
    root = tmp_path_factory.mktemp("offline")
    subject = Subject.of(TINY_RANDOM)
    folders = write_adapters(subject, root / "adapters", NAMES, (2, 4))
    with offline(subject, folders, Sizes(4, 800), root / "store") as made:
        yield made


def measure(system: Offline, case: str, clients: int = 2) -> Round:
    lengths = parse_lengths("uniform:8:20"), parse_lengths("fixed:5")
    population = Population(NAMES, mixtures=4, mixture_size=2)
    jobs = Traffic(population, *lengths, len).jobs(case, 6, "test")
    return asyncio.run(system.round(case, Load(clients=clients), jobs, lambda: None))


@pytest.mark.parametrize("case", ["base", "one", "many", "mixtures", "given", "merged"])
def test_every_case_runs_and_every_token_is_timed(system: Offline, case: str) -> None:
    one = measure(system, case)
    assert len(one.samples) == 6
    assert one.output_tokens == 30
    assert all(len(sample.arrivals) == 5 for sample in one.samples)
    assert sum(step.generated_tokens for step in system.steps) == 30
    assert all(0 < step.model <= step.seconds for step in system.steps)
    system.engine.check_integrity()
    assert system.engine.merged().mode == "unmerged"


def test_what_needs_a_server_is_refused(system: Offline) -> None:
    with pytest.raises(BenchmarkError, match="bench serve"):
        measure(system, "similarity")
    with pytest.raises(BenchmarkError, match="closed loops only"):
        asyncio.run(system.round("base", Load(rate=1.0), [], lambda: None))


def test_decode_steps_have_one_token_a_request_and_no_prompt(system: Offline) -> None:
    lengths = parse_lengths("fixed:12"), parse_lengths("fixed:5")
    population = Population(NAMES, mixture_size=1)
    jobs = Traffic(population, *lengths, len).jobs("many", 4, "test")
    for _ in range(2):
        steps = system.decode_steps(jobs, 3)
        assert [step.generated_tokens for step in steps] == [4, 4, 4]
        assert not any(step.prompt_tokens for step in steps)
    system.engine.check_integrity()


def test_bytes_of_a_step_by_hand(system: Offline) -> None:
    # Two layers, two heads of keys and values of width 16, fp32.
    assert system.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    # q and o are 64 -> 64, k and v 64 -> 32; a0 has rank 2, a1 rank 4.
    assert system.adapter_bytes(["a0", "a1", "a1"]) == 2 * (2 + 4) * (128 + 128 + 96 + 96) * 4


def test_split_looks_at_decode_steps() -> None:
    steps = [Step(9.0, 9.0, 50, 1), Step(0.010, 0.008, 0, 4), Step(0.012, 0.009, 0, 4)]
    assert split(steps) == pytest.approx({"step_ms": 11, "model_ms": 8.5, "around_ms": 2.5})


class TestCurves:
    def test_all_of_them_hold_what_is_asked_for(self) -> None:
        points = curves(
            EngineSettings(curve=("requests", "context", "adapters", "mixture", "rank"))
        )
        spans = {
            name: [point.x for point in points if point.curve == name]
            for name in ("requests", "context", "adapters", "mixture", "rank")
        }
        assert (min(spans["requests"]), max(spans["requests"])) == (1, 128)
        assert (min(spans["context"]), max(spans["context"])) == (128, 4096)
        assert (min(spans["adapters"]), max(spans["adapters"])) == (1, 64)
        assert (min(spans["mixture"]), max(spans["mixture"])) == (1, 8)
        assert (min(spans["rank"]), max(spans["rank"])) == (4, 64)
        for point in points:
            if point.curve == "adapters":
                assert len(point.active) == point.x

    def test_points_can_be_left_out(self) -> None:
        points = curves(EngineSettings(curve=("requests",), smallest=2, largest=4))
        assert [point.x for point in points] == [2, 2, 4, 4]

    def test_the_engine_is_made_large_enough(self) -> None:
        points = curves(EngineSettings(curve=("adapters", "rank"), largest=16))
        ranks = population_of(points)
        assert sum(rank == 8 for rank in ranks.values()) == 16
        assert set(ranks.values()) == {4, 8, 16}
        assert needs(points, 16).requests == 64

    def test_an_unknown_curve_is_refused(self) -> None:
        with pytest.raises(BenchmarkError, match="no such curve: ranks"):
            EngineSettings(curve=("ranks",))


def bench(*arguments: str) -> None:
    done = CliRunner().invoke(app, ["bench", *arguments], env={"TERM": "dumb"})
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_serve_on_a_server_of_its_own(
    tmp_path: Path, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPTERMIX_ENCODER", str(tiny_encoder))
    cases = ("base", "one", "many", "mixtures", "given", "similarity", "merged")
    chosen = [word for case in cases for word in ("--case", case)]
    work = ["--concurrency", "4", "--per-client", "1", "--rounds", "1", "--output", "uniform:4:8"]
    model = ["--model", "tiny-random", "--kernels", "reference", "--threads", "1"]
    bench("serve", *chosen, *work, *model, "--adapters", "4", "--out", str(tmp_path / "serve"))
    result = json.loads((tmp_path / "serve.json").read_text())
    assert [cell["case"] for cell in result["cells"]] == list(cases)
    assert all(cell["output_tokens_per_second"] > 0 for cell in result["cells"])
    assert result["software"]["commit"]
    assert result["serving"]["dtype"] == "float32"


@pytest.mark.slow
def test_engine_cases_and_curves(tmp_path: Path) -> None:
    model = ["--model", "tiny-random", "--kernels", "reference", "--threads", "1", "--rounds", "1"]
    work = ["--concurrency", "2", "--output", "fixed:4"]
    bench("engine", *work, *model, "--out", str(tmp_path / "engine"))
    result = json.loads((tmp_path / "engine.json").read_text())
    assert all(cell["decode_step"]["step_ms"] > 0 for cell in result["cells"])
    chosen = [word for name in ("requests", "mixture", "rank") for word in ("--curve", name)]
    limits = ["--largest", "4", "--steps", "2"]
    bench("engine", *chosen, *limits, *model, "--out", str(tmp_path / "curves"))
    points = json.loads((tmp_path / "curves.json").read_text())["points"]
    assert {point["curve"] for point in points} == {"requests", "mixture", "rank"}
    assert all(point["floor_ms"] > 0 for point in points)
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_kernels(tmp_path: Path) -> None:
    work = ["--rows", "1", "--rounds", "1", "--threads", "1"]
    bench("kernels", "--model", "tiny-random", *work, "--out", str(tmp_path / "kernels"))
    result = json.loads((tmp_path / "kernels.json").read_text())
    assert len(result["products"]) == 5
    assert all(min(line["us"].values()) > 0 for line in result["products"])
