"""Completion loss of padded batches, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.data import Example, plan_batches


@dataclass(frozen=True, slots=True)
class Batch:
    """Left-padded tokens, so that all completions end in the last column.

    tokens, attention_mask, position_ids: [rows, longest]. labels: [rows, kept], the completion
    tokens at the right, -100 elsewhere; the logits of the `kept` columns before them predict them.
    """

    tokens: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor


def collate(examples: Sequence[Example], device: torch.device) -> Batch:
    """Pad `examples` to one batch on `device`."""
    longest = max(len(example.tokens) for example in examples)
    kept = max(example.completion_length for example in examples)
    tokens = torch.zeros(len(examples), longest, dtype=torch.long)
    mask = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full((len(examples), kept), -100, dtype=torch.long)
    for row, example in enumerate(examples):
        tokens[row, longest - len(example.tokens) :] = torch.tensor(example.tokens)
        mask[row, longest - len(example.tokens) :] = 1
        labels[row, kept - example.completion_length :] = torch.tensor(
            example.tokens[example.prompt_length :]
        )
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return Batch(tokens.to(device), mask.to(device), positions.to(device), labels.to(device))


def completion_nll(model: Any, batch: Batch) -> Tensor:
    """Negative log-likelihood [rows, kept] in nats of each completion token, 0 at padding."""
    logits = model(
        input_ids=batch.tokens,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        logits_to_keep=batch.labels.shape[1] + 1,
        use_cache=False,
    ).logits[:, :-1]
    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), batch.labels.flatten(), ignore_index=-100, reduction="none"
    )
    return flat.view_as(batch.labels)


@torch.no_grad()
def nll_per_row(
    model: Any, examples: Sequence[Example], *, batch_tokens: int, device: torch.device
) -> tuple[list[float], list[int]]:
    """Summed completion NLL in nats and number of completion tokens of every example, in order."""
    was_training = model.training
    model.eval()
    sums, counts = [0.0] * len(examples), [0] * len(examples)
    lengths = [len(example.tokens) for example in examples]
    if examples:
        for indices in plan_batches(lengths, batch_tokens=batch_tokens, epochs=1, seed=0):
            batch = collate([examples[index] for index in indices], device)
            rows = completion_nll(model, batch).sum(dim=1).tolist()
            for index, nll in zip(indices, rows, strict=True):
                sums[index], counts[index] = nll, examples[index].completion_length
    model.train(was_training)
    return sums, counts
