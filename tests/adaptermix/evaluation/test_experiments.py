"""Experiments: rows, measures, one run, the harness and its journal."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.recipes.arms import EXPERIMENTS
from adaptermix.evaluation.recipes.harness import (
    Place,
    TrainingJob,
    from_json,
    jobs_of,
    run_experiment,
    to_json,
)
from adaptermix.evaluation.recipes.measure import answers, draws_nll, row_nll
from adaptermix.evaluation.recipes.run import run
from adaptermix.evaluation.recipes.tasks import TASKS, completions_of, task_rows, within_budget
from adaptermix.evaluation.settings import ExperimentSettings, ExperimentSizes
from adaptermix.training.adamix.draws import seeded
from adaptermix.training.base import padding_tokenizer
from adaptermix.training.data import Row
from adaptermix.training.recipes.adamix import AdamixTrainee, adamix_recipe
from adaptermix.training.settings import AdamixSettings, RunSettings
from router_engine.model.tiny import save_tiny

SIZES = ExperimentSizes(
    tokens=300,
    batch_tokens=128,
    nll_rows=5,
    answer_rows=3,
    draws=3,
    draw_rows=4,
    ensemble=2,
    dtype="float32",
)
OPTIONS = "Question: {}\nChoices: A. one\nB. two\n\nAnswer:"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    texts = [
        {
            "prompt": f"name : {n} ||",
            "completion": f" It is {n} .",
            "references": [f"It is {n} .", f"{n} it is ."],
        }
        for n in range(30)
    ]
    choices = [{"prompt": OPTIONS.format(n), "completion": " A"} for n in range(30)]
    for name, rows in (("e2e", texts), ("boolq", choices), ("openbookqa", choices[:3])):
        (folder / name).mkdir()
        for split in ("train", "test"):
            with gzip.open(folder / name / f"{split}.jsonl.gz", "wt") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder


def _job(arm: str, task: str = "e2e") -> TrainingJob:
    return TrainingJob("adamix", arm, task, 0, SIZES, "tiny")


def test_sets_are_taken_in_turn_and_short_rows_up_to_the_budget(data: Path) -> None:
    two = replace(TASKS["commonsense"], sets=("boolq", "openbookqa"))
    assert len(task_rows(two, data, "train", 0)) == 6  # as many of each as the smallest has
    rows = task_rows(TASKS["e2e"], data, "train", 0)
    assert rows != task_rows(TASKS["e2e"], data, "train", 1)
    assert len(rows[0].references) == 2
    lengths = {one.row: 3 if index % 2 else 9 for index, one in enumerate(rows)}
    chosen = within_budget(rows, 10, 5, lengths.__getitem__)
    assert chosen == [one.row for one in rows[1:9:2]]
    with pytest.raises(BenchmarkError, match="have 45 tokens of the 100 asked for"):
        within_budget(rows, 100, 5, lengths.__getitem__)
    with pytest.raises(BenchmarkError, match=r"arc_easy/train\.jsonl\.gz is not there"):
        task_rows(TASKS["arc_easy"], data, "train", 0)


def test_options_are_those_of_the_prompt() -> None:
    assert completions_of(OPTIONS.format(1)) == [" A", " B"]
    prompt = "Is it?\n\nAnswer format: true/false\n\nAnswer:"
    assert completions_of(prompt) == [
        " the correct answer is true",
        " the correct answer is false",
    ]


@pytest.fixture
def trainee(base: Path) -> AdamixTrainee:
    settings = RunSettings(
        base=str(base), base_name="tiny", files=(), licence="CC0", dtype="float32"
    )
    adamix = AdamixSettings(kind="bottleneck", size=4, copies=3, share="none")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = adamix_recipe(adamix).build(settings)
        assert isinstance(made, AdamixTrainee)
        for parameter in made.model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    made.model.eval()
    return made


def test_a_draw_is_one_choice_for_all_rows_and_the_ensemble_the_mean_of_probabilities(
    base: Path, trainee: AdamixTrainee
) -> None:
    """Against each row alone, under the same seeds."""
    tokenizer = padding_tokenizer(str(base))
    rows = [Row("ab", "cde"), Row("a longer prompt", " x"), Row("q", "r")]
    draws, ensemble = draws_nll(trainee, rows, tokenizer, draws=3, ensemble=2)
    totals, tokens = [0.0] * 3, 0
    for row, whole in zip(rows, ensemble, strict=True):
        prompt = tokenizer(row.prompt).input_ids
        targets = tokenizer(row.completion, add_special_tokens=False).input_ids
        probabilities = []
        for seed in range(3):
            with trainee.draws.random(seeded(seed)), torch.no_grad():
                logits = trainee.model(torch.tensor([prompt + targets])).logits[0]
            after = logits[len(prompt) - 1 : -1].softmax(dim=-1)
            each = [float(after[place, target]) for place, target in enumerate(targets)]
            totals[seed] -= sum(map(math.log, each))
            probabilities.append(each)
        tokens += len(targets)
        mean = [(one + two) / 2 for one, two in zip(*probabilities[:2], strict=True)]
        assert whole == pytest.approx(-sum(map(math.log, mean)), abs=2e-3)
    assert draws == pytest.approx([total / tokens for total in totals], abs=1e-3)
    assert max(draws) - min(draws) > 0.01  # negative control
    merged, counts = row_nll(trainee.model, rows, tokenizer)
    assert sum(counts) == tokens
    assert sum(merged) / tokens not in draws


def test_answers_are_scored_against_every_reference(base: Path, data: Path) -> None:
    tokenizer = padding_tokenizer(str(base))
    rows = task_rows(TASKS["e2e"], data, "test", 0)[:3]
    prompts = [one.row.prompt for one in rows]

    class Speaker:
        """Says the second reference of each row."""

        def parameters(self) -> Any:
            return iter([torch.zeros(1)])

        def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
            said = []
            for ids in input_ids:
                place = prompts.index(tokenizer.decode(ids, skip_special_tokens=True))
                said.append(tokenizer(f" {rows[place].references[1]}\nmore").input_ids)
            longest = max(map(len, said))
            padded = [one + [tokenizer.pad_token_id] * (longest - len(one)) for one in said]
            return torch.cat([input_ids, torch.tensor(padded)], dim=1)

    measured = answers(Speaker(), TASKS["e2e"], rows, tokenizer)
    assert measured["ROUGE-L"] == [1.0] * 3
    assert measured["BLEU"] == [[4, 3, 2, 1, 4, 3, 2, 1, 4, 4]] * 3


@pytest.mark.parametrize("arm", ["lora", "adamix-bottleneck", "adamix-lora-c0"])
def test_a_run_trains_and_measures(arm: str, base: Path, data: Path, tmp_path: Path) -> None:
    job = _job(arm)
    result = run(*from_json(to_json(job, Place(str(base), data, tmp_path))))
    assert result["job"] == json.loads(job.key)
    assert result["tokens"] >= 300
    assert len(result["nll"]) == len(result["weights"]) == 5
    assert {name: len(rows) for name, rows in result["answers"].items()} == {
        "ROUGE-L": 3,
        "BLEU": 3,
    }
    assert ("draws" in result) == (arm != "lora")
    if arm != "lora":
        assert (len(result["draws"]), len(result["ensemble"])) == (3, 4)
        assert result["trained"] > result["served"]
    json.dumps(result)


def test_a_run_that_is_there_is_not_repeated_and_a_failed_one_only_on_request(
    base: Path, data: Path, tmp_path: Path
) -> None:
    settings = ExperimentSettings(
        data=data,
        only=("lora",),
        journal=tmp_path / "journal.jsonl",
        work=tmp_path / "runs",
    )
    assert run_experiment("adamix", settings, SIZES, str(base), "tiny") == 1
    entries = [json.loads(line) for line in settings.journal.read_text().splitlines()]
    by_task = {entry["answer"]["job"]["task"]: entry["answer"] for entry in entries}
    assert by_task["e2e"]["trained"] > 0
    assert "arc_easy/train.jsonl.gz is not there" in by_task["arc_easy"]["failed"]
    before = settings.journal.read_text()
    assert run_experiment("adamix", settings, SIZES, str(base), "tiny") == 0
    assert settings.journal.read_text() == before
    again = replace(settings, retry_failed=True)
    assert run_experiment("adamix", again, SIZES, str(base), "tiny") == 1
    assert len(settings.journal.read_text().splitlines()) == 3


def test_jobs_are_whole_by_seed_and_unknown_names_are_refused(tmp_path: Path) -> None:
    settings = ExperimentSettings(data=tmp_path, seeds=(0, 1))
    jobs = jobs_of("moa", settings, SIZES, "tiny")
    half = len(EXPERIMENTS["moa"].arms) * 2
    assert [job.seed for job in jobs] == [0] * half + [1] * half
    assert len({job.key for job in jobs}) == len(jobs)
    with pytest.raises(BenchmarkError, match="arm 'x' is not known: use lora, adamix-lora"):
        jobs_of("adamix", replace(settings, only=("x",)), SIZES, "tiny")
    with pytest.raises(BenchmarkError, match="ensemble is 4; it must be from 1 to draws, 2"):
        ExperimentSizes(draws=2)
