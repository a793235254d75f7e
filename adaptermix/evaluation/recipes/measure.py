"""NLL and answers of a trained model on test rows, in training's own forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from sacrebleu.metrics.bleu import BLEU
from torch import Tensor

from adaptermix.evaluation.recipes.tasks import ExperimentTask, TestRow, completions_of
from adaptermix.evaluation.scoring.tasks import number_match, rouge_l
from adaptermix.training.adamix.draws import seeded
from adaptermix.training.data import Example, Row, plan_batches, tokenize
from adaptermix.training.loss import Batch, collate, completion_nll
from adaptermix.training.recipes.adamix import AdamixTrainee

T = TypeVar("T")

_BATCH_TOKENS = 2048
_GENERATE_ROWS = 30
_DIGITS = 4  # of what is kept of a row


def row_nll(model: Any, rows: Sequence[Row], tokenizer: Any) -> tuple[list[float], list[int]]:
    """Summed NLL in nats of each completion without end-of-text, and its tokens."""
    examples = _examples(rows, tokenizer)
    sums = _per_row(examples, lambda batch: completion_nll(model, batch).sum(dim=1)[:, None])
    return [_kept(values[0]) for values in sums], [
        example.completion_length for example in examples
    ]


def draws_nll(
    trainee: AdamixTrainee, rows: Sequence[Row], tokenizer: Any, draws: int, ensemble: int
) -> tuple[list[float], list[float]]:
    """Nats per token of each draw over all rows; and each row's NLL under the first `ensemble`.

    A draw is one choice of copies for all rows, by the seeds 0, 1, ... The ensemble's probability
    of a token is the mean of the draws' (AdaMix, section 3.5).
    """

    def of(batch: Batch) -> Tensor:
        each = []
        for seed in range(draws):
            with trainee.draws.random(seeded(seed)):
                each.append(completion_nll(trainee.model, batch))
        mean = math.log(ensemble) - torch.stack(each[:ensemble]).neg().logsumexp(dim=0)
        mean = mean * (batch.labels != -100)
        return torch.stack([*each, mean]).sum(dim=2).T

    examples = _examples(rows, tokenizer)
    sums = _per_row(examples, of)
    tokens = sum(example.completion_length for example in examples)
    by_draw = [sum(values[seed] for values in sums) / tokens for seed in range(draws)]
    return by_draw, [_kept(values[draws]) for values in sums]


@torch.no_grad()
def answers(
    model: Any, task: ExperimentTask, rows: Sequence[TestRow], tokenizer: Any
) -> dict[str, list[Any]]:
    """{measure: a value of each row}, of what the model answers.

    BLEU's value is the row's counts: matches of 1 to 4 words, words of 1 to 4, both lengths.
    """
    plain = [test_row.row for test_row in rows]
    if task.answers == "options":
        chosen = _choose(model, plain, tokenizer)
        pairs = zip(chosen, plain, strict=True)
        return {"accuracy": [float(answer == row.completion) for answer, row in pairs]}
    texts = _greedy(model, [row.prompt for row in plain], tokenizer, task.max_new_tokens)
    if task.answers == "numbers":
        pairs = zip(texts, plain, strict=True)
        return {"exact match": [number_match(text, row.completion) for text, row in pairs]}
    texts = [text.strip().partition("\n")[0] for text in texts]
    both = [
        (text, [r.strip() for r in test_row.references])
        for text, test_row in zip(texts, rows, strict=True)
    ]
    return {
        "ROUGE-L": [
            _kept(max(rouge_l(text, reference) for reference in texts)) for text, texts in both
        ],
        "BLEU": [_counts(text, texts) for text, texts in both],
    }


def _counts(text: str, references: list[str]) -> list[int]:
    score = BLEU(effective_order=True).sentence_score(text, references)
    return [*score.counts, *score.totals, score.sys_len, score.ref_len]


def _choose(model: Any, rows: Sequence[Row], tokenizer: Any) -> list[str]:
    """The most likely completion of those that each prompt offers."""
    offered = [
        (index, Row(row.prompt, text))
        for index, row in enumerate(rows)
        for text in completions_of(row.prompt)
    ]
    losses, _ = row_nll(model, [row for _, row in offered], tokenizer)
    best: dict[int, tuple[float, str]] = {}
    for (index, row), loss in zip(offered, losses, strict=True):
        best[index] = min(best.get(index, (math.inf, "")), (loss, row.completion))
    return [best[index][1] for index in range(len(rows))]


def _greedy(model: Any, prompts: Sequence[str], tokenizer: Any, max_new_tokens: int) -> list[str]:
    """The most likely next token, again and again; in the order of the prompts."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    for chunk in _chunks(order, _GENERATE_ROWS):
        batch = tokenizer([prompts[index] for index in chunk], return_tensors="pt", padding=True)
        output = model.generate(
            **batch.to(next(model.parameters()).device),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        new = output[:, batch.input_ids.shape[1] :]
        for index, text in zip(
            chunk, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True
        ):
            texts[index] = text
    return texts


def _examples(rows: Sequence[Row], tokenizer: Any) -> list[Example]:
    examples, _ = tokenize(rows, tokenizer, 1 << 30)
    return [example.without_end() for example in examples]


@torch.no_grad()
def _per_row(examples: Sequence[Example], of: Callable[[Batch], Tensor]) -> list[list[float]]:
    """`of` every batch, [rows, values], put back into the order of the examples."""
    values: list[list[float]] = [[] for _ in examples]
    lengths = [len(example.tokens) for example in examples]
    for indices in plan_batches(lengths, batch_tokens=_BATCH_TOKENS, epochs=1, seed=0):
        batch = collate([examples[index] for index in indices], torch.device("cpu"))
        for index, row in zip(indices, of(batch).tolist(), strict=True):
            values[index] = row
    return values


def _kept(value: float) -> float:
    return round(value, _DIGITS)


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
