"""The rows that are asked about: those of the tasks, and prompts that need two skills."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.scoring.tasks import Split, Task, options_of
from adaptermix.training.data import Row

END = "\n\nAnswer:"  # of every prompt
OPENING = 32  # tokens of a completion whose likelihood is also told apart
_ADAPTERS_SEED = 0  # of the order in which `train lora` takes rows, where it is not told another

Ids = Callable[[str], Sequence[int]]  # text -> token ids, without special tokens
Text = Callable[[Sequence[int]], str]  # and back


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt and its completion, which `cuts` (in characters) divide into parts.

    `options` are the completions to choose from, the right one among them.
    """

    prompt: str
    completion: str
    cuts: tuple[int, ...]
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Words:
    """The base model's tokenizer, as far as it is needed to divide completions."""

    ids: Ids
    text: Text

    def prefix(self, completion: str, count: int) -> str:
        """The longest beginning of at most `count` tokens that are the whole's first tokens.

        Shorter than `count` where a token ends within a character or would be another alone.
        """
        whole = list(self.ids(completion))
        for length in range(min(count, len(whole)), 0, -1):
            text = self.text(whole[:length])
            if completion.startswith(text) and list(self.ids(text)) == whole[:length]:
                return text
        raise BenchmarkError(f"no beginning of {completion!r} is made of whole tokens")


class Rows:
    """The rows of one split of a data folder: no other split's file is ever opened."""

    def __init__(self, data: Path, split: Split) -> None:
        self._data = data
        self._split: Split = split
        self.files: dict[str, str] = {}  # each file that was read, with its digest

    def test(self, task: Task, count: int, seed: int) -> list[Row]:
        """`count` rows, drawn by `seed`. Raises BenchmarkError where this is another split."""
        self._require("test")
        return self._read(task, seed)[:count]

    def tuning(self, task: Task, count: int) -> list[Row]:
        """`count` train rows from the end of the order in which `train lora` takes them.

        It takes them from the beginning, so that an adapter which was trained on a part of the
        rows has not seen these. Raises BenchmarkError where this is another split.
        """
        self._require("train")
        return self._read(task, _ADAPTERS_SEED)[-count:]

    def _require(self, split: Split) -> None:
        if self._split != split:
            raise BenchmarkError(f"these are the {self._split} rows, and {split} rows were asked")

    def _read(self, task: Task, seed: int) -> list[Row]:
        for path in task.files(self._data, self._split):
            if not path.is_file():
                raise BenchmarkError(f"{path} is not there: --data names the folder above it")
            name = str(path.relative_to(self._data))
            self.files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return task.rows(self._data, None, seed, self._split)


def plain_cases(task: Task, rows: Sequence[Row], words: Words) -> list[Case]:
    """Rows of one task: two parts each, the opening and the rest.

    A task without scores of answers is one of choice: its options are completions.
    """
    cases = []
    for row in rows:
        cut = len(words.prefix(row.completion, OPENING))
        options = () if task.scores else _options(row)
        cases.append(Case(row.prompt, row.completion, (cut,), options))
    return cases


def _options(row: Row) -> tuple[str, ...]:
    options = tuple(f" {letter}" for letter in options_of(row.prompt))
    if row.completion not in options:
        raise BenchmarkError(f"the completion {row.completion!r} is no option of {row.prompt!r}")
    return options


def mixed_cases(first: Sequence[Row], second: Sequence[Row]) -> list[Case]:
    """Row i of one task joined with row i of another, as far as both have rows.

    The prompt is the first's without its `Answer:`, a blank line, and the second's. The
    completion is the first's, a blank line with `Answer:`, and the second's: three parts.
    """
    cases = []
    for one, two in zip(first, second, strict=False):
        for row in (one, two):
            if not row.prompt.endswith(END):
                raise BenchmarkError(f"the prompt {row.prompt!r} does not end in {END!r}")
        prompt = f"{one.prompt.removesuffix(END)}\n\n{two.prompt}"
        completion = f"{one.completion}{END}{two.completion}"
        ends = (len(one.completion), len(one.completion) + len(END))
        cases.append(Case(prompt, completion, ends))
    return cases
