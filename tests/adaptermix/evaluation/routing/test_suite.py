"""A suite is read strictly, and the project's own is whole."""

import json
from pathlib import Path
from typing import Any

import pytest

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.routing.plan import adapters_of
from adaptermix.evaluation.routing.suite import load_suite
from adaptermix.evaluation.settings import EvaluationSettings

ROUTER = {"name": "similarity", "level": "token", "every": 1, "candidates": ["a", "b"]}


def written(tmp_path: Path, **changes: Any) -> Path:
    suite: dict[str, Any] = {"tasks": ["math", "code"], "routing": [{"name": "base"}]}
    path = tmp_path / "suite.json"
    path.write_text(json.dumps(suite | changes))
    return path


def test_the_own_suite_has_every_row_of_the_table() -> None:
    suite = load_suite(None)
    assert suite.tasks == ["math", "science", "code", "reading"]
    assert [task.name for task in suite.mixed] == ["reading, then math", "science, then code"]
    assert adapters_of(suite) == {"math", "science", "code", "reading"}
    routings = {routing.name: routing for routing in suite.routing}
    assert [name for name, routing in routings.items() if routing.is_base] == ["base"]
    assert [name for name, routing in routings.items() if routing.is_single] == suite.tasks
    routers = {
        (r.router.get("name"), r.router.get("level"), r.every)
        for r in suite.routing
        if r.is_token_level
    }
    cadences = {("similarity", "token", every) for every in (1, 2, 4, 8)}
    own = {("hidden_mean", "token", 1), ("hidden_mean", "token", 2)}
    assert routers == cadences | own
    paper = routings["paper"]
    assert paper.recomputes
    assert (paper.rows, paper.completion_tokens) == (30, 32)
    assert {tuning.family for tuning in suite.tuning} == {
        r.family for r in suite.routing if r.family
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": ["math"]}, "task: Extra inputs are not permitted"),
        ({"tasks": ["maths"]}, "task maths is not known: use math, science, code, reading"),
        ({"tasks": []}, "tasks: List should have at least 1 item"),
        ({"tasks": ["math", "math"]}, "task math is there more than once"),
        ({"routing": [{"name": "x"}, {"name": "x"}]}, "routing x is there more than once"),
        ({"routing": [{"name": "x", "rows": "3"}]}, "routing.0.rows: Input should be a valid int"),
        ({"routing": [{"name": "x", "row": 3}]}, "routing.0.row: Extra inputs"),
        ({"routing": [{"name": "x", "rows": 0}]}, "routing.0.rows: Input should be greater"),
        ({"routing": [{"name": "x", "family": "f"}]}, "the mixture has none"),
        (
            {"routing": [{"name": "x", "family": "f", "mixture": {"router": ROUTER}}]},
            "family f is not known",
        ),
        ({"routing": [{"name": "x", "mixture": {}, "by_task": {}}]}, "not both"),
        ({"routing": [{"name": "x", "by_task": {"math": "a"}}]}, "by_task of 'x' code is not"),
        ({"mixed": [{"name": "m", "first": "x", "second": "math"}]}, "task x is not known"),
        ({"tuning": [{"family": "f", "mixture": {}, "grid": {"k": [1]}}]}, "must have a router"),
        (
            {"tuning": [{"family": "f", "mixture": {"router": ROUTER}, "grid": {"k": []}}]},
            "grid.k has no values",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchmarkError) as caught:
        load_suite(written(tmp_path, **changes))
    assert message in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"must be a \.toml or a \.json file"):
        load_suite(tmp_path / "suite.yaml")
    with pytest.raises(BenchmarkError, match="cannot be read"):
        load_suite(tmp_path / "gone.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("tasks = [")
    with pytest.raises(BenchmarkError, match="cannot be read"):
        load_suite(broken)


def test_names_choose_from_a_suite(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, routing=[{"name": "x"}, {"name": "y"}]))
    chosen = suite.only(["y"], ["code"])
    assert ([r.name for r in chosen.routing], chosen.tasks) == (["y"], ["code"])
    with pytest.raises(BenchmarkError, match="no such routing: z; there are x; y"):
        suite.only(["z"], [])
    with pytest.raises(BenchmarkError, match="no such task: reading"):
        suite.only([], ["reading"])


def test_chosen_parameters_go_into_the_routers_of_their_family(tmp_path: Path) -> None:
    tuning = {"family": "f", "mixture": {"router": ROUTER}, "grid": {"temperature": [0.1]}}
    routings = [
        {"name": "x", "family": "f", "mixture": {"router": ROUTER}},
        {"name": "y", "mixture": {"router": ROUTER}},
    ]
    suite = load_suite(written(tmp_path, routing=routings, tuning=[tuning]))
    x, y = suite.tuned({"f": {"temperature": 0.3}}).routing
    assert x.mixture == {"router": {**ROUTER, "temperature": 0.3}}
    assert y.mixture == {"router": ROUTER}
    with pytest.raises(BenchmarkError, match="parameters for g: no such family"):
        suite.tuned({"g": {}})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"answer_rows": -1}, "answer_rows is -1"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"tuned": Path("x.yaml")}, r"must be a \.json file"),
        ({"tune": True, "routing": ("base",)}, "routing does nothing with tune"),
    ],
)
def test_settings_are_checked(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        EvaluationSettings(Path("data"), **setting)
