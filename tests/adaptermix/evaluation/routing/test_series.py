"""Values of rows, estimates and comparisons, against numbers made by hand."""

import math
from pathlib import Path
from typing import Any

import pytest

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.asking import Answer, Ask
from adaptermix.evaluation.routing.plan import (
    Case,
    EvaluationCell,
    Rows,
    Words,
    mixture_for,
    mixture_for_mixed,
    plain_cases,
    plan_cells,
    score_ask,
    waves,
)
from adaptermix.evaluation.routing.results import (
    AVERAGE,
    NLL,
    OPENING_NLL,
    SCORE,
    Series,
    columns_of,
    comparisons_of,
    difference,
    estimate,
    mean_of,
    measures_of,
)
from adaptermix.evaluation.routing.suite import Suite, SuiteRouting, Tuning
from adaptermix.evaluation.scoring.tasks import parses_as_python, task_named
from adaptermix.evaluation.settings import EvaluationSettings
from adaptermix.training.data import Row

BASE = SuiteRouting(name="base")
ONE = SuiteRouting(name="one", mixture={"adapters": [{"name": "one"}]})
TWO = SuiteRouting(name="two", mixture={"adapters": [{"name": "two"}]})


def reply(text: str, logprobs: list[float], weights: Any = None) -> dict[str, Any]:
    """A score as the server gives it: a token a character."""
    tokens = [{"id": ord(c), "text": c, "logprob": p} for c, p in zip(text, logprobs, strict=True)]
    routing = (
        {} if weights is None else {"routing": {"adapters": ["a@1", "b@1"], "weights": weights}}
    )
    return {"logprob": sum(logprobs), "tokens": tokens, **routing}


def test_tokens_count_where_their_text_begins() -> None:
    ask = Ask("x", "/score", {"inputs": "p", "completions": ["abcd"]}, (1, 3))
    weights = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.25, 0.75]]
    kept = ask.answer_in({"scores": [reply("abcd", [-1.0, -2.0, -4.0, -8.0], weights)]})
    (score,) = kept["scores"]
    assert score["parts"] == [[1.0, 1], [6.0, 2], [8.0, 1]]
    assert score["weights"] == {"a@1": [1.0, 0.25, 0.25], "b@1": [0.0, 0.75, 0.75]}


def test_tokens_that_spell_another_text_are_an_error() -> None:
    ask = Ask("x", "/score", {"inputs": "p", "completions": ["abc"]}, (1,))
    with pytest.raises(BenchmarkError, match="do not spell"):
        ask.answer_in({"scores": [reply("abd", [-1.0] * 3)]})


def test_a_key_covers_all_that_an_answer_depends_on() -> None:
    under = {"adapters": [{"name": "a"}]}
    body = {"inputs": "p", "completions": ["a"], "mixture": under}
    ask = Ask("x", "/score", body, (1,))
    one = {"model": "m", "adapters": {"a": "1"}}
    same = Ask("another name", "/score", dict(body), (1,), cost=5.0)
    assert same.key(one) == ask.key(one)
    assert ask.key({**one, "adapters": {"a": "1", "b": "1"}}) == ask.key(one)
    others = [
        ask.key({**one, "adapters": {"a": "2"}}),
        Ask("x", "/generate", body, (1,)).key(one),
        Ask("x", "/score", {**body, "mixture": {"adapters": []}}, (1,)).key(one),
        Ask("x", "/score", {**body, "inputs": "q"}, (1,)).key(one),
        Ask("x", "/score", body, (2,)).key(one),
    ]
    assert len({ask.key(one), *others}) == 6


def scored(*rows: tuple[float, int]) -> list[Answer]:
    """Answers of one completion each: (NLL, tokens), all in the opening."""
    return [{"scores": [{"parts": [[nll, tokens], [0.0, 0]]}]} for nll, tokens in rows]


def cells_of(answers: dict[tuple[str, str], list[Answer]]) -> tuple[list[EvaluationCell], Any]:
    """Score cells {(task, routing): answers}, and how to look an answer up."""
    routings = {r.name: r for r in (BASE, ONE, TWO)}
    known: dict[int, Answer] = {}
    cells = []
    for (task, name), given in answers.items():
        asks = [Ask(name, "/score", {"inputs": f"{task}{i}"}) for i in range(len(given))]
        known.update((id(ask), answer) for ask, answer in zip(asks, given, strict=True))
        cases = [Case("p", " x", (2,)) for _ in given]
        cells.append(EvaluationCell("score", task, routings[name], cases, asks))
    return cells, lambda ask: known[id(ask)]


def test_the_table_weighs_tokens_within_a_task_and_tasks_alike() -> None:
    cells, answer = cells_of(
        {
            ("math", "base"): scored((4.0, 2), (8.0, 2)),
            ("math", "one"): scored((2.0, 2), (4.0, 2)),
            ("math", "two"): scored((6.0, 2), (4.0, 2)),
            ("code", "base"): scored((5.0, 1), (0.0, 4)),
            ("code", "one"): scored((5.0, 1)),
            ("code", "two"): scored((1.0, 1), (0.0, 4)),
        }
    )
    columns = columns_of(cells, answer)
    suite = Suite(tasks=["math", "code"], routing=[BASE, ONE, TWO])
    found = {(m["task"], m["measure"]): m["routings"] for m in measures_of(columns, suite)}
    math_nll, code_nll, average = (found[task, NLL] for task in ("math", "code", AVERAGE))
    assert math_nll["base"]["mean"] == 12 / 4
    assert code_nll["base"]["mean"] == 5 / 5
    assert average["base"]["mean"] == (3 + 1) / 2
    assert math_nll["one"]["to_base"]["mean"] == -6 / 4
    assert "to_base" not in math_nll["base"]
    # The mean of the single adapters: (2 + 6) / 2 and (4 + 4) / 2 nats.
    assert math_nll["base"]["to_singles"]["mean"] == (4 + 8 - 4 - 4) / 4
    # Differences are of the rows that both have: here the first row alone.
    assert code_nll["one"]["to_base"] == {"rows": 1, "mean": 0.0, "low": 0.0, "high": 0.0}
    assert code_nll["one"]["rows"] == 1
    assert found["math", OPENING_NLL]["base"]["mean"] == 3.0


def test_a_choice_is_the_likeliest_option() -> None:
    case = Case("p", " B", (2,), (" A", " B"))
    options = [[(1.0, 1), (2.0, 1)], [(2.0, 1), (1.0, 1)], [(1.0, 1), (1.0, 1)]]
    answers: list[Answer] = [
        {"scores": [{"parts": [option, [0.0, 0]]} for option in row]} for row in options
    ]
    asks = [Ask("base", "/score", {"inputs": str(i)}) for i in range(3)]
    known = {ask.body["inputs"]: a for ask, a in zip(asks, answers, strict=True)}
    cells = [EvaluationCell("score", "science", BASE, [case] * 3, asks)]
    columns = columns_of(cells, lambda ask: known[ask.body["inputs"]])
    assert columns["science", "accuracy"]["base"][0].values == (0.0, 1.0, 0.0)
    assert columns["science", NLL]["base"][0].values == (2.0, 1.0, 1.0)
    assert (AVERAGE, NLL) not in columns


def test_answers_are_scored() -> None:
    rows = {" x = 1": "```python\nx = 1\n```", " for (;;) {}": " x", " y = 2": " y ="}
    cases = [Case("p", completion, (1,)) for completion in rows]
    asks = [Ask("base", "/generate", {"inputs": completion}) for completion in rows]
    cells = [EvaluationCell("answer", "code", BASE, cases, asks)]
    columns = columns_of(cells, lambda ask: {"text": rows[ask.body["inputs"]]})
    # The second row's own solution is no Python.
    assert columns["code", "parses"]["base"][0].values == (1.0, 0.0)
    assert len(columns["code", "ROUGE-L"]["base"][0].values) == 3


@pytest.mark.parametrize(
    ("answer", "parses"),
    [
        (" def f(x):\n    return x", 1.0),
        ("Here:\n```py\nx = 1\n```\nand this is no code", 1.0),
        ("```\nx = 1", 1.0),
        ("```\nx =\n```\nx = 1", 0.0),
        ("let x = 1;", 0.0),
        ("  \n", 0.0),
        ("```python\n```", 0.0),
        ("x = '\\d' is 1", 1.0),
        ("a\0b", 0.0),
        ("(" * 5000, 0.0),
    ],
)
def test_python_is_what_parses(answer: str, parses: float) -> None:
    assert parses_as_python(answer) == parses


def test_an_average_has_an_interval_of_its_own() -> None:
    certain = Series((1.0,) * 50, (1.0,) * 50)
    spread = Series((0.0, 1.0) * 25, (1.0,) * 50)
    assert estimate([certain])["low"] == estimate([certain])["high"] == 1.0
    alone, halved = estimate([spread]), estimate([certain, spread])
    assert halved["mean"] == 0.75
    assert halved["high"] - halved["low"] == pytest.approx(
        (alone["high"] - alone["low"]) / 2, rel=0.1
    )


def test_pairs_cancel_what_rows_have_in_common() -> None:
    theirs = Series(tuple(float(n) for n in range(50)), (1.0,) * 50)
    ours = Series(tuple(n + 0.5 for n in theirs.values), theirs.weights)
    gap = difference([ours], [theirs])
    assert (gap["mean"], gap["low"], gap["high"]) == (0.5, 0.5, 0.5)
    middle = mean_of([[ours], [theirs]])
    assert difference(middle, [theirs])["mean"] == 0.25


def test_questions_are_answered_by_pairs() -> None:
    def routed(name: str, **router: Any) -> SuiteRouting:
        return SuiteRouting(name=name, mixture={"router": {"name": "similarity", **router}})

    suite = Suite(
        tasks=["math", "code"],
        routing=[
            BASE,
            routed("once", level="request"),
            *(routed(f"every {n}", level="token", every=n) for n in (1, 2, 4)),
            routed("paper", level="token", every=1, context="recompute"),
        ],
    )
    values = {"base": 4.0, "once": 3.0, "every 1": 2.0, "every 2": 1.0, "every 4": 2.5}
    column = {name: [Series((value,), (1.0,))] for name, value in values.items()}
    columns = {
        (AVERAGE, NLL): column,
        (AVERAGE, OPENING_NLL): {**column, "paper": [Series((1.5,), (1.0,))]},
    }
    found = comparisons_of(columns, suite)
    told = [(gap["kind"], gap["ours"], gap["theirs"], gap["mean"]) for gap in found]
    assert told == [
        ("cadence", "every 2", "every 1", -1.0),
        ("cadence", "every 2", "every 4", -1.5),
        ("context", "paper", "every 1", -0.5),
        ("level", "every 1", "once", -1.0),
    ]


def test_a_router_of_tokens_alone_is_compared_with_all_that_choose_once() -> None:
    """And a cadence with those of its own family only."""

    def routed(label: str, family: str | None = None, **router: Any) -> SuiteRouting:
        return SuiteRouting(name=label, family=family, mixture={"router": router})

    suite = Suite(
        tasks=["math"],
        routing=[
            BASE,
            routed("once", name="similarity", level="request"),
            routed("near", name="retrieval", level="request"),
            routed("every 1", "a", name="hidden_mean", level="token", every=1),
            routed("every 2", "a", name="hidden_mean", level="token", every=2),
            routed("whole", "b", name="hidden_mean", level="token", every=1),
        ],
        tuning=[Tuning(family=f, grid={"top_k": [2]}, mixture={"router": {}}) for f in "ab"],
    )
    values = {"base": 4.0, "once": 3.0, "near": 2.0, "every 1": 1.0, "every 2": 1.5, "whole": 5.0}
    columns = {(AVERAGE, NLL): {name: [Series((v,), (1.0,))] for name, v in values.items()}}
    told = [(gap["kind"], gap["ours"], gap["theirs"]) for gap in comparisons_of(columns, suite)]
    assert told == [
        ("cadence", "every 2", "every 1"),
        ("level", "every 1", "once"),
        ("level", "every 1", "near"),
        ("level", "whole", "once"),
        ("level", "whole", "near"),
    ]


def test_an_oracle_changes_over_between_the_answers(words: Words) -> None:
    oracle = SuiteRouting(name="oracle", by_task={"reading": "a", "math": "b"})
    assert mixture_for(oracle, "math") == {"adapters": [{"name": "b"}]}
    case = Case("p", " 308\n\nAnswer: 18", (4, 13))
    mixture = mixture_for_mixed(oracle, "reading", "math", case, words)
    assert mixture is not None
    router = mixture["router"]
    assert router["candidates"] == ["a", "b"]
    assert router["weights"] == [[1.0, 0.0]] * 13 + [[0.0, 1.0]] * 3
    assert mixture_for_mixed(ONE, "reading", "math", case, words) == ONE.mixture


def test_a_cut_completion_is_the_opening_of_the_whole(words: Words) -> None:
    cut = SuiteRouting(name="cut", completion_tokens=32)
    (case,) = plain_cases(task_named("math"), [Row("p", "x" * 40)], words)
    ask = score_ask(case, cut, None, words)
    assert ask.body["completions"] == ["x" * 32]
    assert ask.cuts == case.cuts


def test_cheap_lanes_come_first_and_rows_run_side_by_side(data: Path, words: Words) -> None:
    suite = Suite(
        tasks=["reading"],
        routing=[
            SuiteRouting(name="slow", mixture={"router": {}}, cost=5.0, rows=1, answer_rows=0),
            BASE,
            ONE,
        ],
    )
    settings = EvaluationSettings(data, rows=2, answer_rows=1, mixed_rows=1)
    cells = plan_cells(suite, settings, Rows(data, "test"), words)
    order = [[(ask.routing, ask.path) for ask in wave] for wave in waves(cells)]
    assert order == [
        [("base", "/score"), ("one", "/score"), ("base", "/score"), ("one", "/score")],
        [("base", "/generate"), ("one", "/generate")],
        [("slow", "/score")],
    ]
    assert math.isclose(sum(len(cell.asks) for cell in cells), 7)
    assert (AVERAGE, SCORE) not in columns_of(
        [cell for cell in cells if cell.kind == "score"],
        lambda ask: {"scores": [{"parts": [[1.0, 1], [0.0, 0]]}]},
    )
