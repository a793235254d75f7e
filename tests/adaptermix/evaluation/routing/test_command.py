"""`adaptermix eval` as a user runs it: a real server, a tiny model, a handful of rows."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from adaptermix.bench.machine import ROOT
from adaptermix.cli.main import app
from adaptermix.evaluation.routing import run, tune
from adaptermix.evaluation.routing.run import EvaluationSite, site
from scripts.figures import EVALUATION
from tests.support.tiny import make_lora_folder

NAMES = ("math", "science", "code", "reading")
SIMILARITY = {"name": "similarity", "candidates": list(NAMES)}
TOKEN = {**SIMILARITY, "level": "token"}
PAPER = {"scoring": "paper", "combination": "linear", "context": "recompute"}


def routed(name: str, router: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": name, "mixture": {"router": router}, **fields}


SUITE = {
    "tasks": ["math", "science", "reading"],
    "mixed": [{"name": "reading, then math", "first": "reading", "second": "math"}],
    "routing": [
        {"name": "base"},
        *({"name": name, "mixture": {"adapters": [{"name": name}]}} for name in NAMES[:2]),
        {"name": "oracle", "by_task": {name: name for name in NAMES}},
        routed("once", {**SIMILARITY, "level": "request"}),
        routed("every token", {**TOKEN, "every": 1}, family="similarity", rows=1, cost=2.0),
        routed("every 2", {**TOKEN, "every": 2}, family="similarity", answer_rows=0, cost=2.0),
        routed("paper", {**TOKEN, "every": 1, **PAPER}, rows=1, completion_tokens=4, cost=3.0),
    ],
    "tuning": [
        {
            "family": "similarity",
            "mixture": {"router": {**TOKEN, "every": 1}},
            "grid": {"temperature": [0.05, 0.5], "top_k": [2]},
        }
    ],
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> Path:
    """Adapters with sample texts, a suite, and a sentence encoder."""
    folder = tmp_path_factory.mktemp("desk")
    for seed, name in enumerate(NAMES):
        path = make_lora_folder(folder / "adapters" / name, seed=seed)
        (path / "texts.jsonl").write_text(json.dumps({"text": f"all about {name}"}) + "\n")
    (folder / "suite.json").write_text(json.dumps(SUITE))
    (folder / "encoder").symlink_to(tiny_encoder)
    return folder


@pytest.fixture
def one_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The first command starts its server; the next ones of the same suite find it there."""
    opened: list[EvaluationSite] = []
    with ExitStack() as stack:

        @contextmanager
        def shared(*arguments: Any) -> Iterator[EvaluationSite]:
            if not opened:
                opened.append(stack.enter_context(site(*arguments)))
            yield opened[0]

        for module in (run, tune):
            monkeypatch.setattr(module, "site", shared)
        yield


def evaluate(desk: Path, data: Path, *arguments: str) -> Result:
    options = ["eval", "--model", "tiny-random", "--kernels", "reference", "--data", str(data)]
    options += ["--suite", str(desk / "suite.json"), "--adapters", str(desk / "adapters")]
    options += ["--out", str(desk / "evaluation"), "--tuned", str(desk / "tuned.json")]
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    environment["ADAPTERMIX_ENCODER"] = str(desk / "encoder")
    return CliRunner().invoke(app, [*options, *arguments], env=environment)


def tuned_on_train_rows(desk: Path, data: Path, tmp_path: Path) -> dict[str, Any]:
    """A tuning run on a folder whose test files cannot be read."""
    folder = tmp_path / "train-only"
    shutil.copytree(data, folder)
    for path in folder.glob("*/test.jsonl.gz"):
        path.write_bytes(b"not even gzip")
    done = evaluate(desk, folder, "--tune", "--tune-rows", "1")
    assert done.exit_code == 0, done.output
    written: dict[str, Any] = json.loads((desk / "tuned.json").read_text())
    return written


@pytest.mark.slow
@pytest.mark.usefixtures("one_server")
def test_a_whole_evaluation_and_a_part_of_it(desk: Path, data: Path, tmp_path: Path) -> None:
    tuned = tuned_on_train_rows(desk, data, tmp_path)
    assert all(name.endswith("/train.jsonl.gz") for name in tuned["files"])
    assert len(tuned["files"]) == 4
    family = tuned["families"]["similarity"]
    assert family["chosen"] in [entry["params"] for entry in family["grid"]]
    assert family["chosen"] == min(family["grid"], key=lambda entry: entry["nll"])["params"]

    sizes = ["--rows", "2", "--answer-rows", "1", "--mixed-rows", "1"]
    done = evaluate(desk, data, *sizes, "--speed-rounds", "1")
    assert done.exit_code == 0, done.output
    assert "minutes for all of it" in done.output
    result = json.loads((desk / "evaluation.json").read_text())
    assert all(name.endswith("/test.jsonl.gz") for name in result["files"])
    check_result(result, family["chosen"])
    page = filled_from(result, tmp_path / "whole", tuned)
    assert "Not measured" not in page
    assert "| oracle | by task: math: math" in page

    answered = (desk / "evaluation.jsonl").read_text()
    part = ["--task", "reading", "--routing", "base", "--routing", "math", "--speed-rounds", "0"]
    again = evaluate(desk, data, *sizes, *part)
    assert again.exit_code == 0, again.output
    assert (desk / "evaluation.jsonl").read_text() == answered
    less = json.loads((desk / "evaluation.json").read_text())
    check_part(less, result)
    for ending in ("md", "png"):
        assert (desk / f"evaluation.{ending}").stat().st_size > 1000
    page = filled_from(less, tmp_path / "part")
    assert "Does token-level routing beat the base?** Not measured in this run." in page
    assert "| math | " in page


def check_part(less: dict[str, Any], whole: dict[str, Any]) -> None:
    measures = [entry["measure"] for entry in less["measures"]]
    assert measures == ["NLL", "NLL of the opening", "exact match", "F1"]
    nll = cell(less, "reading", "NLL")
    assert [nll[name]["rows"] for name in ("base", "math")] == [2, 2]
    assert nll["math"]["to_base"]["mean"] == pytest.approx(
        nll["math"]["mean"] - nll["base"]["mean"]
    )
    assert nll["base"]["mean"] == cell(whole, "reading", "NLL")["base"]["mean"]


def cell(result: dict[str, Any], task: str, measure: str) -> dict[str, Any]:
    (found,) = [
        entry["routings"]
        for entry in result["measures"]
        if (entry["task"], entry["measure"]) == (task, measure)
    ]
    return dict(found)


def check_result(result: dict[str, Any], chosen: dict[str, Any]) -> None:
    whole = ["base", "math", "science", "oracle", "once", "every token", "every 2"]
    nll = cell(result, "math", "NLL")
    assert list(nll) == whole
    assert nll["oracle"]["mean"] == nll["math"]["mean"] != nll["base"]["mean"]
    assert nll["every token"]["rows"] == 1
    assert list(cell(result, "math", "NLL of the opening")) == [*whole, "paper"]
    assert list(cell(result, "math", "exact match")) == whole[:-1]
    assert set(cell(result, "science", "accuracy")) == {*whole, "paper"}
    assert list(cell(result, "average", "NLL")) == whole
    assert list(cell(result, "reading, then math", "NLL of the second part")) == whole
    assert cell(result, "average", "NLL")["once"]["to_singles"]["rows"] == 6
    kinds = {gap["kind"] for gap in result["comparisons"]}
    assert kinds == {"cadence", "context", "level", "switch"}
    weights = result["weights"]["reading, then math"]["oracle"]
    assert (weights["reading"][0], weights["math"][-1]) == (1.0, 1.0)
    assert {leak["routing"] for leak in result["leaks"]} == {*whole, "paper"} - {"oracle"}
    assert all(not leak["weights"] for leak in result["leaks"])
    assert result["speed"]["math"]["relative"] == 1.0
    assert set(result["speed"]) == {*whole, "paper"} - {"oracle"}
    routings = {routing["name"]: routing for routing in result["suite"]["routing"]}
    assert chosen.items() <= routings["every 2"]["mixture"]["router"].items()


def filled_from(result: dict[str, Any], results: Path, tuned: dict[str, Any] | None = None) -> str:
    """The page, made of these results and of them alone, in a folder to be made."""
    results.mkdir()
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    empty = EVALUATION.fill(page, results, "pictures")
    assert (
        empty.count("Not measured yet: `adaptermix eval --data data`.")
        == len(EVALUATION.writers) - 1
    )
    assert empty.count("Not measured yet: `adaptermix eval --tune --data data`.") == 1
    (results / "evaluation.json").write_text(json.dumps(result))
    (results / "evaluation.png").write_bytes(b"")
    if tuned is not None:
        (results / "tuned.json").write_text(json.dumps(tuned))
    full = EVALUATION.fill(empty, results, "pictures")
    assert "](pictures/evaluation.png)" in full
    assert EVALUATION.fill(full, results, "pictures") == full
    assert EVALUATION.fill(full, results / "none", "pictures") == empty
    return full


def test_the_page_asks_for_every_figure() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert all(f"<!-- figures: {name} -->" in page for name in EVALUATION.writers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--routing", "bass"), "no such routing: bass; there are base; math"),
        (("--task", "chess"), "no such task: chess"),
        (("--rows", "0"), "rows is 0"),
        (("--suite", "suite.yaml"), "must be a .toml or a .json file"),
        (("--adapters", "nowhere"), "nowhere has no adapter code, math, reading, science"),
        (("--data", "nowhere"), "nowhere/gsm8k/test.jsonl.gz is not there"),
        (("--tune", "--routing", "base"), "routing does nothing with tune"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_line(
    desk: Path, data: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = evaluate(desk, data, *arguments)
    assert done.exit_code == 1
    assert message in done.output


def test_a_broken_file_of_parameters_is_told_in_a_line(
    desk: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "tuned.json").write_text("{}")
    done = evaluate(desk, data, "--tuned", str(tmp_path / "tuned.json"))
    assert done.exit_code == 1
    assert "is no file of chosen parameters" in done.output
