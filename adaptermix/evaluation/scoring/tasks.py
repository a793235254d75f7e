"""The tasks that the default adapters are trained for: their test files, and scores of answers."""

from __future__ import annotations

import ast
import random
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adaptermix.training.data import Row, read_rows
from adaptermix.training.errors import DataError, TrainingError

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_FENCE = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def number_match(answer: str, reference: str) -> float:
    """GSM8K: the number after `####`, or the last number where an answer has no such mark."""
    return float(_final_number(answer) == _final_number(reference))


def _final_number(text: str) -> float | None:
    marked = _NUMBER.findall(text.rpartition("####")[2]) if "####" in text else None
    if marked:
        return _value(marked[0])
    anywhere = _NUMBER.findall(text)
    return _value(anywhere[-1]) if anywhere else None


def _value(text: str) -> float:
    return float(text.replace(",", ""))


def exact_match(answer: str, reference: str) -> float:
    """SQuAD: equal after lower case, without punctuation and articles."""
    return float(_words(answer) == _words(reference))


def token_f1(answer: str, reference: str) -> float:
    """SQuAD: F1 of the bags of normalised words."""
    ours, theirs = _words(answer), _words(reference)
    return _f1(sum((Counter(ours) & Counter(theirs)).values()), len(ours), len(theirs))


def _words(text: str) -> list[str]:
    plain = "".join(char for char in text.lower() if char not in string.punctuation)
    return _ARTICLES.sub(" ", plain).split()


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F1: longest common subsequence of words and signs (Lin 2004)."""
    ours, theirs = (re.findall(r"\w+|[^\w\s]", text.lower()) for text in (answer, reference))
    return _f1(_common_subsequence(ours, theirs), len(ours), len(theirs))


def parses_as_python(answer: str) -> float:
    """Whether the code of an answer is Python: its first fenced block, or all of it without one.

    A fence that is never closed ends with the answer. Code of blanks alone does not count.
    """
    fenced = _FENCE.search(answer)
    code = (fenced[1] if fenced else answer).strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of code that is legal but odd
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0.0
    return float(bool(code))


def _common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for column, other in enumerate(right, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if common else 0.0


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
