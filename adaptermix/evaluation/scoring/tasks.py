"""The tasks that the default adapters are trained for: their test files, and what is scored."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adaptermix.evaluation.scoring.scores import exact_match, number_match, rouge_l, token_f1
from adaptermix.training.data import Row, read_rows
from adaptermix.training.errors import DataError, TrainingError

Score = Callable[[str, str], float]
Split = Literal["train", "test"]

_OPTION = re.compile(r"^(?:Choices: )?([A-Z])\. ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Task:
    """One task. With `scores` an answer of at most `max_new_tokens` is generated, greedily.

    Without, the most likely option letter is the answer, and the score is the accuracy.
    """

    name: str
    sets: tuple[str, ...]  # folders with train.jsonl.gz and test.jsonl.gz
    scores: Mapping[str, Score]
    max_new_tokens: int = 0
    first_line_only: bool = False

    def files(self, data: Path, split: Split = "test") -> list[Path]:
        """The files of a split, one a set."""
        return [data / name / f"{split}.jsonl.gz" for name in self.sets]

    def rows(self, data: Path, count: int | None, seed: int, split: Split = "test") -> list[Row]:
        """`count` rows of a split (all for None), drawn by `seed` from all sets together."""
        rows = [row for path in self.files(data, split) for row in read_rows(path)]
        random.Random(seed).shuffle(rows)
        return rows[:count]

    def cleaned(self, answer: str) -> str:
        """The part of an answer that is scored."""
        return answer.strip().partition("\n")[0] if self.first_line_only else answer


def options_of(prompt: str) -> list[str]:
    """The option letters of a multiple-choice prompt, in order."""
    letters = _OPTION.findall(prompt)
    if len(letters) < 2:
        raise DataError(f"no lines 'A. ...', 'B. ...' to choose from in {prompt!r}")
    return letters


def task_named(name: str) -> Task:
    """One of TASKS; raises TrainingError naming them."""
    if name not in TASKS:
        raise TrainingError(f"task {name!r} is not known: use {', '.join(TASKS)}")
    return TASKS[name]


TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task("math", ("gsm8k",), {"exact match": number_match}, max_new_tokens=200),
        Task("science", ("arc_challenge", "arc_easy"), {}),
        Task("code", ("codealpaca",), {"ROUGE-L": rouge_l}, max_new_tokens=128),
        Task(
            "reading",
            ("squad",),
            {"exact match": exact_match, "F1": token_f1},
            max_new_tokens=24,
            first_line_only=True,
        ),
    )
}
