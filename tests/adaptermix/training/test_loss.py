"""The loss reads the completion only, whatever the padding."""

from __future__ import annotations

import math

import pytest
import torch

from adaptermix.training.data import Example
from adaptermix.training.loss import collate, completion_nll, nll_per_row, symmetric_kl
from router_engine.model.tiny import tiny_model

CPU = torch.device("cpu")
EXAMPLES = [
    Example(tuple(range(10, 30)), prompt_length=15),
    Example(tuple(range(40, 47)), prompt_length=1),
    Example(tuple(range(50, 62)), prompt_length=11),
]


def _by_hand(example: Example) -> list[float]:
    """-log p of each completion token from the full logits of the unpadded row."""
    tokens = torch.tensor(example.tokens)
    with torch.no_grad():
        logits = tiny_model()(input_ids=tokens[None]).logits[0].log_softmax(dim=-1)
    return [
        -float(logits[position - 1, tokens[position]])
        for position in range(example.prompt_length, len(tokens))
    ]


def test_nll_equals_that_of_unpadded_rows() -> None:
    with torch.no_grad():
        nll = completion_nll(tiny_model(), collate(EXAMPLES, CPU))
    assert nll.shape == (3, 6)
    for row, example in zip(nll, EXAMPLES, strict=True):
        length = example.completion_length
        expected = torch.tensor(_by_hand(example))
        torch.testing.assert_close(row[-length:], expected, rtol=1e-4, atol=1e-4)
        assert not row[:-length].any()


def test_rows_come_back_in_order_from_any_batches() -> None:
    for batch_tokens in (20, 1000):
        sums, counts = nll_per_row(tiny_model(), EXAMPLES, batch_tokens=batch_tokens, device=CPU)
        assert counts == [5, 6, 1]
        assert sums == pytest.approx([sum(_by_hand(example)) for example in EXAMPLES], rel=1e-4)


def test_no_rows_have_no_loss() -> None:
    assert nll_per_row(tiny_model(), [], batch_tokens=10, device=CPU) == ([], [])


def test_a_prompt_token_is_no_target() -> None:
    batch = collate(EXAMPLES, CPU)
    for labels, example in zip(batch.labels, EXAMPLES, strict=True):
        assert [int(label) for label in labels if label != -100] == list(
            example.tokens[example.prompt_length :]
        )


def test_gradients_through_padding_are_finite() -> None:
    model = tiny_model()
    torch.autograd.backward(completion_nll(model, collate(EXAMPLES, CPU)).sum())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_distance_of_two_passes_is_the_kl_written_out() -> None:
    p, q = (torch.randn(4, 7, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    total = 0.0
    for a, b in zip(p.softmax(dim=-1), q.softmax(dim=-1), strict=True):
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            total += 0.5 * (y * math.log(y / x) + x * math.log(x / y))
    assert float(symmetric_kl(p, q)) == pytest.approx(total / 4, rel=1e-5)
    assert float(symmetric_kl(p, p)) == pytest.approx(0.0, abs=1e-7)
    in_half = symmetric_kl(p.bfloat16(), q.bfloat16())
    assert in_half.dtype == torch.float32
    assert torch.equal(in_half, symmetric_kl(p.bfloat16().float(), q.bfloat16().float()))


def test_the_target_of_each_term_is_detached() -> None:
    """Only the other side is pulled: d/dp is (softmax p - softmax q) / 2 a row, and so for q."""
    p, q = (torch.randn(4, 7, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    for logits in (p, q):
        logits.requires_grad_()
    torch.autograd.backward(symmetric_kl(p, q))
    apart = (p.softmax(dim=-1) - q.softmax(dim=-1)).detach() / (2 * len(p))
    torch.testing.assert_close(p.grad, apart)
    torch.testing.assert_close(q.grad, -apart)

    attached = p.detach().requires_grad_()
    log_p, log_q = attached.log_softmax(dim=-1), q.detach().log_softmax(dim=-1)
    both = 0.5 * (log_q.exp() * (log_q - log_p) + log_p.exp() * (log_p - log_q)).sum() / len(p)
    torch.autograd.backward(both)
    assert attached.grad is not None
    assert (attached.grad - apart).abs().max() > 1e-2  # negative control
