"""Tasks of the arms: rows of each set in turn, and the scoring of answers."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.scoring.tasks import Split, options_of
from adaptermix.training.data import Row

Answers = Literal["texts", "options", "numbers"]

_FORMAT = re.compile(r"^Answer format: (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ExperimentTask:
    """Sets that are learnt together, and what is asked of an answer.

    texts: greedy texts against all references. options: the most likely of the prompt's options.
    numbers: the last number of a greedy text.
    """

    name: str
    sets: tuple[str, ...]
    answers: Answers
    max_new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TestRow:
    """A row with every text that would be right."""

    row: Row
    references: tuple[str, ...]


TASKS = {
    task.name: task
    for task in (
        ExperimentTask("e2e", ("e2e",), "texts", max_new_tokens=64),
        ExperimentTask("arc_easy", ("arc_easy",), "options"),
        ExperimentTask("math", ("gsm8k", "svamp"), "numbers", max_new_tokens=160),
        ExperimentTask("commonsense", ("boolq", "openbookqa", "arc_easy"), "options"),
    )
}


def task_rows(task: ExperimentTask, data: Path, split: Split, seed: int) -> list[TestRow]:
    """All rows of a split: each set shuffled by `seed`, one row of each in turn while all have one.

    Raises BenchmarkError where a set is not there.
    """
    each = []
    for path in files(task, data, split):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = [_row(json.loads(line)) for line in file]
        random.Random(seed).shuffle(rows)
        each.append(rows)
    return [row for turn in zip(*each, strict=False) for row in turn]


def files(task: ExperimentTask, data: Path, split: Split) -> list[Path]:
    """The files of a split, one a set. Raises BenchmarkError where one is not there."""
    paths = [data / name / f"{split}.jsonl.gz" for name in task.sets]
    for path in paths:
        if not path.exists():
            raise BenchmarkError(f"{path} is not there: name its folder with --data")
    return paths


def _row(value: dict[str, str | list[str]]) -> TestRow:
    row = Row(str(value["prompt"]), str(value["completion"]))
    return TestRow(row, tuple(value.get("references", [row.completion])))


def within_budget(
    rows: Sequence[TestRow], tokens: int, max_length: int, count: Callable[[Row], int]
) -> list[Row]:
    """The first rows of at most `max_length` tokens each until they have `tokens` together.

    Raises BenchmarkError where there are too few.
    """
    chosen: list[Row] = []
    total = 0
    for test_row in rows:
        if total >= tokens:
            return chosen
        length = count(test_row.row)
        if length <= max_length:
            chosen.append(test_row.row)
            total += length
    if total < tokens:
        raise BenchmarkError(f"the train rows have {total} tokens of the {tokens} asked for")
    return chosen


def completions_of(prompt: str) -> list[str]:
    """Every completion that a prompt offers: option letters, or what `Answer format:` lists."""
    offer = _FORMAT.search(prompt)
    if offer:
        return [f" the correct answer is {option}" for option in offer[1].split("/")]
    return [f" {letter}" for letter in options_of(prompt)]
