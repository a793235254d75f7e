"""Rows of {prompt, completion}, their tokens, and batches of similar length."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptermix.training.errors import DataError
from adapters_store.texts import is_utf8

_GROUP = 32  # batches sorted by length together: little padding, still well shuffled


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to learn: after `prompt` comes `completion` (with its leading space, if any)."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Example:
    """A row's tokens. `tokens[prompt_length:]` is the completion, the only part with a loss."""

    tokens: tuple[int, ...]
    prompt_length: int

    @property
    def completion_length(self) -> int:
        return len(self.tokens) - self.prompt_length

    def without_end(self) -> Example:
        """The same row without the end-of-text token that `tokenize` appended."""
        return Example(self.tokens[:-1], self.prompt_length)


@dataclass(frozen=True, slots=True)
class Split:
    """Train and dev rows, and the number of rows of the files that neither of them uses."""

    train: tuple[Row, ...]
    dev: tuple[Row, ...]
    unused: int

    @property
    def digest(self) -> str:
        """Content address of the rows in their order, to recognise the data on resume."""
        parts = [[row.prompt, row.completion] for row in (*self.dev, *self.train)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_rows(path: Path) -> list[Row]:
    """Read a .jsonl or .jsonl.gz file; keys other than prompt and completion are not read.

    Raises DataError with file and line for what is not a row.
    """
    try:
        return list(_rows(path))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as JSON lines: {error}") from error


def _rows(path: Path) -> Iterator[Row]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: no JSON: {error}") from error
            yield _row(value, f"{path}:{number}")


def _row(value: object, where: str) -> Row:
    texts = []
    for key in ("prompt", "completion"):
        text = value.get(key) if isinstance(value, dict) else None
        if not isinstance(text, str) or not text:
            raise DataError(f"{where}: {key!r} must be a text that is not empty")
        if not is_utf8(text):
            raise DataError(f"{where}: {key!r} holds half of a surrogate pair: no character")
        texts.append(text)
    return Row(prompt=texts[0], completion=texts[1])


def split_rows(rows: Sequence[Row], *, dev_rows: int, max_rows: int | None, seed: int) -> Split:
    """Shuffle by `seed`, then take `dev_rows` for dev and at most `max_rows` of the rest to train.

    Prompts of the dev rows are left out of the train rows.
    """
    order = list(rows)
    random.Random(seed).shuffle(order)
    dev = order[:dev_rows]
    held_out = {row.prompt for row in dev}
    train = [row for row in order[dev_rows:] if row.prompt not in held_out][:max_rows]
    if not train:
        raise DataError(f"{len(rows)} rows leave none to train on beside {dev_rows} dev rows")
    return Split(tuple(train), tuple(dev), len(rows) - len(train) - len(dev))


def tokenize(rows: Sequence[Row], tokenizer: Any, max_length: int) -> tuple[list[Example], int]:
    """Tokens of each row, end-of-text appended; and the number of rows longer than `max_length`.

    Rows that are too long are left out, since a cut completion would teach to stop early.
    Prompt and completion are tokenized apart, as they are when the model is used.
    """
    if tokenizer.eos_token_id is None:
        raise DataError("the base model's tokenizer has no end-of-text token to learn to stop with")
    examples = []
    for row in rows:
        prompt = tokenizer(row.prompt).input_ids
        completion = tokenizer(row.completion, add_special_tokens=False).input_ids
        tokens = (*prompt, *completion, tokenizer.eos_token_id)
        if len(tokens) <= max_length:
            examples.append(Example(tokens, len(prompt)))
    return examples, len(rows) - len(examples)


def plan_batches(
    lengths: Sequence[int], *, batch_tokens: int, epochs: int, seed: int
) -> list[list[int]]:
    """Every batch of the whole run, as indices of examples: one batch is one optimizer step.

    rows * longest row <= batch_tokens, except where one row alone is longer. The plan depends on
    the arguments only, so a position in it is all that a checkpoint must remember.
    """
    plan: list[list[int]] = []
    for epoch in range(epochs):
        shuffler = random.Random(f"{seed}/{epoch}")
        order = list(range(len(lengths)))
        shuffler.shuffle(order)
        mean = max(1, sum(lengths) // len(lengths))
        group = max(1, _GROUP * batch_tokens // mean)
        batches: list[list[int]] = []
        for start in range(0, len(order), group):
            by_length = sorted(order[start : start + group], key=lambda index: lengths[index])
            batches.extend(_pack(by_length, lengths, batch_tokens))
        shuffler.shuffle(batches)
        plan.extend(batches)
    return plan


def _pack(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Cut indices, sorted by length, into batches of at most `batch_tokens` padded tokens."""
    batches: list[list[int]] = []
    current: list[int] = []
    for index in order:
        if current and (len(current) + 1) * lengths[index] > batch_tokens:
            batches.append(current)
            current = []
        current.append(index)
    if current:
        batches.append(current)
    return batches
