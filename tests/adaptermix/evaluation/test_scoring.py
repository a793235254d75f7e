"""Scores, intervals, tasks, and a whole evaluation on a tiny model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from adaptermix.evaluation.scoring import bootstrap
from adaptermix.evaluation.scoring.models import BASE, Systems
from adaptermix.evaluation.scoring.run import ScoringSettings, evaluate, markdown, provenance
from adaptermix.evaluation.scoring.tasks import (
    TASKS,
    exact_match,
    number_match,
    options_of,
    rouge_l,
    task_named,
    token_f1,
)
from adaptermix.training.data import Row, tokenize
from adaptermix.training.errors import DataError, TrainingError
from adaptermix.training.recipes.lora import train_lora
from router_engine.model.tiny import tiny_model, tiny_tokenizer
from tests.adaptermix.training.conftest import MakeRun, make_run, rows_file, tiny_base

__all__ = ["make_run", "rows_file", "tiny_base"]  # fixtures


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (" so 6*7 = <<6*7=42>>42.\n#### 42", 1.0),
        ("#### 42.00 dollars, not 7", 1.0),
        ("The answer is 1,042", 0.0),
        ("I counted 3 and 42", 1.0),
        ("none", 0.0),
    ],
)
def test_numbers_match_by_value(answer: str, right: float) -> None:
    assert number_match(answer, "x\n#### 42") == right


def test_squad_scores_ignore_case_articles_and_punctuation() -> None:
    assert exact_match(" the Eiffel tower.", "Eiffel Tower") == 1.0
    assert exact_match("tower", "Eiffel Tower") == 0.0
    assert token_f1("tall Eiffel tower", "the Eiffel Tower") == pytest.approx(0.8)
    assert token_f1("bridge", "tower") == token_f1("", "tower") == 0.0


def test_rouge_l_is_f1_of_the_longest_common_subsequence() -> None:
    # "police killed the gunman" and "police kill the gunman" (Lin 2004) share three of four words.
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    assert rouge_l("gunman the police", "police the gunman") == pytest.approx(1 / 3)
    assert rouge_l("f(x)", "f(x)") == 1.0
    assert rouge_l("", "f(x)") == 0.0


def test_intervals_hold_the_mean_and_narrow_with_more_rows() -> None:
    few = bootstrap.mean([0.0, 1.0] * 10)
    many = bootstrap.mean([0.0, 1.0] * 500)
    for estimate in (few, many):
        assert estimate.mean == 0.5
        assert estimate.low < 0.5 < estimate.high
    # The normal interval of a proportion: 1.96 sqrt(p (1 - p) / n).
    assert many.high - many.low == pytest.approx(2 * 1.96 * (0.25 / 1000) ** 0.5, rel=0.1)
    assert few.high - few.low > 4 * (many.high - many.low)


def test_a_ratio_weighs_rows_by_their_tokens() -> None:
    assert bootstrap.ratio([1.0, 9.0], [1.0, 3.0]).mean == 2.5
    with pytest.raises(ValueError, match="at least one row"):
        bootstrap.ratio([], [])


def test_options_are_read_from_the_prompt() -> None:
    prompt = "Question: Which?\nChoices: A. x\nB. y A. z\nC. w\n\nAnswer:"
    assert options_of(prompt) == ["A", "B", "C"]
    with pytest.raises(DataError, match="no lines"):
        options_of("Question: Which?")


def test_unknown_tasks_and_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="'maths' is not known: use math, science"):
        task_named("maths")
    with pytest.raises(TrainingError, match="nll_rows is 0"):
        ScoringSettings(tmp_path, nll_rows=0)
    with pytest.raises(TrainingError, match="at least one adapter"):
        Systems("unused", {}, "float32", "cpu")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few rows of each test set."""
    root = tmp_path_factory.mktemp("sets")
    choice = "Question: {}?\nChoices: A. a\nB. b\n\nAnswer:"
    for name, prompt, completion in (
        ("gsm8k", "{} and 1?", " #### 7"),
        ("arc_challenge", choice, " A"),
        ("arc_easy", choice, " B"),
        ("codealpaca", "Write {}", " x = 1"),
        ("squad", "Context {}", " yes"),
    ):
        rows = [{"prompt": prompt.format(n), "completion": completion} for n in range(6)]
        (root / name).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with gzip.open(root / name / "test.jsonl.gz", "wt") as file:
            file.write(text)
    return root


def test_every_system_is_measured_on_every_task(
    make_run: MakeRun, tiny_base: Path, sets: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        train_lora(make_run(lora={"rank": len(name)}), tmp_path / name)
    adapters = {name: tmp_path / name for name in ("one", "two")}
    systems = Systems(str(tiny_base), adapters, "float32", "cpu")
    settings = ScoringSettings(sets, nll_rows=5, answer_rows=3)
    cells: list[tuple[str, str]] = []
    results = evaluate(
        systems, list(TASKS.values()), settings, lambda task, name: cells.append((task, name))
    )
    assert cells == [(task, name) for task in TASKS for name in (BASE, "one", "two")]
    assert {task: list(measures) for task, measures in results.items()} == {
        "math": ["NLL", "exact match"],
        "science": ["NLL", "accuracy"],
        "code": ["NLL", "ROUGE-L"],
        "reading": ["NLL", "exact match", "F1"],
    }
    for measures in results.values():
        for measure, summary in measures.items():
            assert summary["rows"] == (5 if measure == "NLL" else 3)
            base, ours = summary["systems"][BASE], summary["systems"]["one"]
            assert ours["difference"]["mean"] == pytest.approx(ours["mean"] - base["mean"])
    text = markdown(results)
    assert text.count("| one |") == text.count("| two |") == 4
    assert text.count("| base |") == 2
    assert provenance("tiny", "float32", settings)["nll_rows"] == 5


def test_each_system_is_the_one_that_peft_loads(
    make_run: MakeRun, tiny_base: Path, tmp_path: Path
) -> None:
    for name, seed in (("one", 1), ("two", 2)):
        train_lora(make_run(loop={"seed": seed}, data={"max_rows": 16}), tmp_path / name)
    adapters = {name: tmp_path / name for name in ("one", "two")}
    systems = Systems(str(tiny_base), adapters, "float32", "cpu")
    row = Row("3 cat:", " yes cat")
    [example], _ = tokenize([row], tiny_tokenizer(), 100)
    tokens = torch.tensor([example.tokens[:-1]])
    answers = set()
    for name in ("two", BASE, "one", BASE):
        model = tiny_model()
        if name != BASE:
            model = PeftModel.from_pretrained(model, str(adapters[name]))
        with torch.no_grad():
            log_p = model(input_ids=tokens).logits[0, :-1].log_softmax(dim=-1)
        expected = -log_p.gather(1, tokens[0, 1:, None])[example.prompt_length - 1 :].sum()
        [nll], [count] = systems.nll(name, [row])
        assert nll == pytest.approx(float(expected), rel=1e-4)
        assert count == 8
        answers.add(round(nll, 4))
    assert len(answers) == 3


def test_answers_come_in_the_order_of_the_rows(
    make_run: MakeRun, tiny_base: Path, tmp_path: Path
) -> None:
    train_lora(make_run(data={"max_rows": 16}), tmp_path / "one")
    systems = Systems(str(tiny_base), {"one": tmp_path / "one"}, "float32", "cpu")
    rows = [Row("7 bee and more:", " x"), Row("1:", " x"), Row("22 foxes:", " x")]
    together = systems.generate("one", rows, 8)
    assert together == [systems.generate("one", [row], 8)[0] for row in rows]
