"""Completion loss of padded batches, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaptermix.training.data import Example, plan_batches


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

    @property
    def prompt_mask(self) -> Tensor:
        """[rows, longest], 1 where the prompt is."""
        mask = self.attention_mask.clone()
        mask[:, mask.shape[1] - self.labels.shape[1] :] *= self.labels == -100
        return mask


def collate(examples: Sequence[Example], device: torch.device) -> Batch:
    """Pad `examples` to one batch on `device`."""
    longest = max(len(example.tokens) for example in examples)
    columns = max(example.completion_length for example in examples)
    tokens = torch.zeros(len(examples), longest, dtype=torch.long)
    mask = torch.zeros(len(examples), longest, dtype=torch.long)
    labels = torch.full((len(examples), columns), -100, dtype=torch.long)
    for row, example in enumerate(examples):
        tokens[row, longest - len(example.tokens) :] = torch.tensor(example.tokens)
        mask[row, longest - len(example.tokens) :] = 1
        labels[row, columns - example.completion_length :] = torch.tensor(
            example.tokens[example.prompt_length :]
        )
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return Batch(tokens.to(device), mask.to(device), positions.to(device), labels.to(device))


def completion_logits(model: Any, batch: Batch) -> Tensor:
    """Logits [rows, kept, vocabulary] that predict each label, in the model's dtype.

    A model that says `takes_prompt_mask` is told where the prompts are.
    """
    told = getattr(model, "takes_prompt_mask", False)
    logits: Tensor = model(
        input_ids=batch.tokens,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        logits_to_keep=batch.labels.shape[1] + 1,
        use_cache=False,
        **({"prompt_mask": batch.prompt_mask} if told else {}),
    ).logits[:, :-1]
    return logits


def nll_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood [rows, kept] in nats of each completion token, 0 at padding."""
    flat = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="none"
    )
    return flat.view_as(labels)


def completion_nll(model: Any, batch: Batch) -> Tensor:
    """`nll_of` what the model says of a batch."""
    return nll_of(completion_logits(model, batch), batch.labels)


def mean_over_targets(nll: Tensor, labels: Tensor) -> Tensor:
    """Nats per completion token, a scalar."""
    return nll.sum() / (labels != -100).sum()


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Divergence of two passes: logits [targets, classes] each, a scalar in nats per target.

    1/2 [KL(sg(softmax second) || softmax first) + KL(sg(softmax first) || softmax second)] in fp32,
    sg = no gradient: each term pulls one pass towards where the other stands (AdaMix, section 3.2).
    """
    log_p, log_q = first.float().log_softmax(dim=-1), second.float().log_softmax(dim=-1)

    def pulled(trained: Tensor, target: Tensor) -> Tensor:
        return torch.nn.functional.kl_div(
            trained, target.detach(), reduction="batchmean", log_target=True
        )

    return 0.5 * (pulled(log_p, log_q) + pulled(log_q, log_p))


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
