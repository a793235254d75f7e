"""The cells of an evaluation: rows, the requests about each, and the order of all."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.asking import Ask, Body, named_in
from adaptermix.evaluation.routing.suite import MixedTask, Suite, SuiteRouting
from adaptermix.evaluation.scoring.tasks import Split, Task, options_of, task_named
from adaptermix.evaluation.settings import EvaluationSettings
from adaptermix.training.data import Row

END = "\n\nAnswer:"  # of every prompt
OPENING = 32  # tokens of a completion whose likelihood is also told apart
_ADAPTERS_SEED = 0  # of the order in which `train lora` takes rows, where it is not told another

Ids = Callable[[str], Sequence[int]]  # text -> token ids, without special tokens
Text = Callable[[Sequence[int]], str]  # and back


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt and its completion."""

    prompt: str
    completion: str  # the right one
    cuts: tuple[int, ...]  # in characters: they divide the completion into parts
    options: tuple[str, ...] = ()  # completions to choose from, the right one among them


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


def score_ask(case: Case, routing: SuiteRouting, mixture: Body | None, words: Words) -> Ask:
    """A request for the likelihood of the completion, or of all options of a choice."""
    completion, cuts = case.completion, case.cuts
    if routing.completion_tokens is not None:
        completion = words.prefix(completion, routing.completion_tokens)
        cuts = tuple(cut for cut in cuts if cut < len(completion)) or (len(completion),)
    body: Body = {"inputs": case.prompt, "completions": list(case.options or (completion,))}
    return Ask(routing.name, "/score", _under(body, mixture), cuts, routing.cost)


def answer_ask(case: Case, routing: SuiteRouting, mixture: Body | None, max_new_tokens: int) -> Ask:
    """A greedy answer, up to the end of text or `max_new_tokens`."""
    parameters = {"max_new_tokens": max_new_tokens, "temperature": 0}
    body: Body = {"inputs": case.prompt, "parameters": parameters}
    return Ask(routing.name, "/generate", _under(body, mixture), cost=routing.cost)


def mixture_for(routing: SuiteRouting, task: str) -> Body | None:
    """The mixture for rows of a plain task: of `by_task` its one adapter."""
    if routing.by_task is None:
        return routing.mixture
    return {"adapters": [{"name": routing.by_task[task]}]}


def mixture_for_mixed(
    routing: SuiteRouting, first: str, second: str, case: Case, words: Words
) -> Body | None:
    """The mixture for a mixed prompt: `by_task` gives the weights of each token.

    The first task's adapter has weight 1 up to the second `Answer:`, the second's from there on.
    """
    if routing.by_task is None:
        return routing.mixture
    whole = len(words.ids(case.completion))
    before = min(whole, len(words.ids(case.completion[: case.cuts[-1]])))
    router = {
        "name": "given",
        "level": "token",
        "candidates": [routing.by_task[first], routing.by_task[second]],
        "weights": [[1.0, 0.0]] * before + [[0.0, 1.0]] * (whole - before),
    }
    return {"router": router}


def _under(body: Body, mixture: Body | None) -> Body:
    return body if mixture is None else {**body, "mixture": mixture}


Kind = Literal["score", "mixed", "answer"]  # likelihoods, those of mixed prompts, generation
_KINDS: tuple[Kind, ...] = ("score", "mixed", "answer")


@dataclass(frozen=True, slots=True)
class EvaluationCell:
    """One task under one routing, asked about in one way."""

    kind: Kind
    task: str  # its name
    routing: SuiteRouting
    cases: Sequence[Case]
    asks: Sequence[Ask]  # one a case

    @property
    def lane(self) -> tuple[float, int]:
        """Cells of a lane and task run together; lanes run from the least to the greatest."""
        return self.routing.cost, _KINDS.index(self.kind)


def plan_cells(
    suite: Suite, settings: EvaluationSettings, rows: Rows, words: Words
) -> list[EvaluationCell]:
    """Every cell of the suite; an empty one is left out."""
    read = _Reader(settings, rows)
    cells: list[EvaluationCell] = []
    for name in suite.tasks:
        task = task_named(name)
        cases = plain_cases(task, read(task), words)
        for routing in suite.routing:
            cells += _plain(task, routing, cases, settings, words)
    for mixed in suite.mixed:
        cases = mixed_cases(read(task_named(mixed.first)), read(task_named(mixed.second)))
        for routing in suite.routing:
            cells.append(_mixed(mixed, routing, cases, settings, words))
    return [cell for cell in cells if cell.asks]


class _Reader:
    """The test rows of a task, read once."""

    def __init__(self, settings: EvaluationSettings, rows: Rows) -> None:
        self._settings = settings
        self._rows = rows
        self._known: dict[str, list[Row]] = {}

    def __call__(self, task: Task) -> list[Row]:
        if task.name not in self._known:
            count = max(self._settings.rows, self._settings.answer_rows, self._settings.mixed_rows)
            self._known[task.name] = self._rows.test(task, count, self._settings.seed)
        return self._known[task.name]


def _plain(
    task: Task,
    routing: SuiteRouting,
    cases: Sequence[Case],
    settings: EvaluationSettings,
    words: Words,
) -> Iterator[EvaluationCell]:
    mixture = mixture_for(routing, task.name)
    chosen = cases[: _least(settings.rows, routing.rows)]
    asks = [score_ask(case, routing, mixture, words) for case in chosen]
    yield EvaluationCell("score", task.name, routing, chosen, asks)
    if task.scores and routing.completion_tokens is None:
        chosen = cases[: _least(settings.answer_rows, routing.answer_rows)]
        asks = [answer_ask(case, routing, mixture, task.max_new_tokens) for case in chosen]
        yield EvaluationCell("answer", task.name, routing, chosen, asks)


def _mixed(
    task: MixedTask,
    routing: SuiteRouting,
    cases: Sequence[Case],
    settings: EvaluationSettings,
    words: Words,
) -> EvaluationCell:
    count = _least(settings.mixed_rows, routing.mixed_rows)
    chosen = cases[:count] if routing.completion_tokens is None else ()
    asks = []
    for case in chosen:
        mixture = mixture_for_mixed(routing, task.first, task.second, case, words)
        asks.append(score_ask(case, routing, mixture, words))
    return EvaluationCell("mixed", task.name, routing, chosen, asks)


def _least(wanted: int, bound: int | None) -> int:
    return wanted if bound is None else min(wanted, bound)


def waves(cells: Sequence[EvaluationCell]) -> Iterator[list[Ask]]:
    """The asks of each lane and task, row by row over the cells: the cheapest lane first.

    The same row is asked under every routing at about the same time: what depends on its text
    alone is then computed once, and a run that is stopped leaves all routings the same rows.
    """
    ordered = sorted(cells, key=lambda cell: cell.lane)
    for _, lane in itertools.groupby(ordered, key=lambda cell: (cell.lane, cell.task)):
        rows = itertools.zip_longest(*(cell.asks for cell in lane))
        yield [ask for row in rows for ask in row if ask is not None]


def adapters_of(suite: Suite) -> set[str]:
    """Every adapter that the suite names."""
    names: set[str] = set()
    for routing in suite.routing:
        names.update(named_in(routing.mixture), (routing.by_task or {}).values())
    for tuning in suite.tuning:
        names.update(named_in(tuning.mixture))
    return names
