"""The sampler against its equations, transformers' processors and chi-square."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from router_engine.model.sampler import Sampler, SamplingRow, distribution, penalised, uniform
from router_engine.request import SamplingSpec

PROMPT, TEXT = (3, 1, 4, 1, 5), (9, 2, 6, 5, 3, 5)


def some_logits(rows: int, vocab: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def row(position: int = 0, **params: Any) -> SamplingRow:
    return SamplingRow(SamplingSpec(**params), PROMPT, TEXT, position)


def transformers_distribution(logits: Tensor, params: SamplingSpec) -> Tensor:
    """Probabilities [1, vocab] after transformers' processors, in the order of `generate`."""
    chain: list[Any] = []
    if params.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.min_new_tokens:
        chain.append(
            MinNewTokensLengthLogitsProcessor(
                len(PROMPT), params.min_new_tokens, list(params.stop_token_ids)
            )
        )
    chain.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        chain.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(MinPLogitsWarper(params.min_p))
    scores = LogitsProcessorList(chain)(torch.tensor([[*PROMPT, *TEXT]]), logits.clone())
    return torch.softmax(torch.as_tensor(scores), dim=-1)


def ours(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    kept = distribution(penalised(logits, rows), rows)
    return kept / kept.sum(-1, keepdim=True)


ASKED: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 20},
    {"temperature": 1.0, "top_k": 10_000},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 1e-5},
    {"temperature": 0.9, "min_p": 0.05},
    {"temperature": 0.8, "top_k": 30, "top_p": 0.7},
    {"temperature": 2.0, "top_k": 40, "top_p": 0.95, "min_p": 0.1},
    {"temperature": 1.0, "repetition_penalty": 1.4},
    {"temperature": 1.1, "repetition_penalty": 0.8, "top_p": 0.8},
    {"temperature": 1.0, "min_new_tokens": 7, "max_new_tokens": 9, "stop_token_ids": (2, 7)},
]


@pytest.mark.parametrize("params", ASKED, ids=str)
@pytest.mark.parametrize("vocab", [40, 3000])
def test_distribution_is_that_of_transformers(params: dict[str, Any], vocab: int) -> None:
    logits = some_logits(1, vocab)
    asked = row(len(TEXT), **params)
    torch.testing.assert_close(
        ours(logits, [asked]),
        transformers_distribution(logits, asked.params),
        atol=1e-6,
        rtol=1e-4,
    )


@pytest.mark.parametrize("spread", [0.01, 0.3, 1.0])
def test_top_p_looks_past_its_first_candidates(spread: float) -> None:
    """Flat distributions keep thousands of tokens, more than are looked at first."""
    logits = some_logits(1, 5000, spread=spread)
    asked = row(temperature=1.0, top_p=0.95)
    kept = ours(logits, [asked])
    assert (kept > 0).sum() > 300
    torch.testing.assert_close(kept, transformers_distribution(logits, asked.params))


def test_a_mixed_batch_has_each_rows_own_distribution() -> None:
    logits = some_logits(len(ASKED), 700)
    rows = [row(len(TEXT), **params) for params in ASKED]
    together = ours(logits, rows)
    for i, asked in enumerate(rows):
        assert torch.equal(together[i : i + 1], ours(logits[i : i + 1], [asked]))


def test_presence_and_frequency_penalties_follow_their_equation() -> None:
    logits = some_logits(2, 12)
    asked = row(presence_penalty=0.5, frequency_penalty=-0.25)
    scores = penalised(logits, [asked, row()])
    for token in range(12):
        count = TEXT.count(token)
        expected = logits[0, token] - (0.5 if count else 0.0) + 0.25 * count
        assert scores[0, token] == pytest.approx(float(expected), abs=1e-6)
    assert torch.equal(scores[1], logits[1])


def test_repetition_penalty_comes_before_the_others() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    asked = SamplingRow(SamplingSpec(repetition_penalty=2.0, presence_penalty=0.5), (0,), (1, 1), 2)
    assert penalised(logits, [asked]).tolist() == [[1.0, -4.5, 1.0]]


def test_without_penalties_nothing_is_copied_and_logits_are_left_alone() -> None:
    logits = some_logits(3, 50)
    before = logits.clone()
    assert penalised(logits, [row(), row(temperature=1.0), row()]) is logits
    Sampler().sample(logits, [row(temperature=1.0, top_k=3), row(repetition_penalty=2.0), row()])
    assert torch.equal(logits, before)


def test_greedy_is_the_argmax_with_the_raw_log_probability() -> None:
    logits = some_logits(4, 100).to(torch.bfloat16)
    expected = torch.log_softmax(logits.float(), dim=-1)
    for i, sample in enumerate(Sampler().sample(logits, [row()] * 4)):
        assert sample.token_id == int(expected[i].argmax())
        assert sample.logprob == pytest.approx(float(expected[i].max()), abs=1e-5)
        assert sample.top_tokens == ()


def test_log_probabilities_are_of_the_raw_logits() -> None:
    logits = some_logits(1, 100)
    asked = row(temperature=0.1, repetition_penalty=3.0, top_k=5, top_n_tokens=4)
    (sample,) = Sampler().sample(logits, [asked])
    raw = torch.log_softmax(logits[0], dim=-1)
    assert sample.logprob == pytest.approx(float(raw[sample.token_id]), abs=1e-5)
    values, ids = raw.topk(4)
    assert [token for token, _ in sample.top_tokens] == ids.tolist()
    assert [value for _, value in sample.top_tokens] == pytest.approx(values.tolist(), abs=1e-5)


def test_each_row_gets_as_many_alternatives_as_it_asked_for() -> None:
    samples = Sampler().sample(
        some_logits(4, 6), [row(top_n_tokens=n, temperature=1.0) for n in (0, 2, 5, 50)]
    )
    assert [len(sample.top_tokens) for sample in samples] == [0, 2, 5, 6]


def test_given_tokens_are_taken_and_scored_beside_drawn_ones() -> None:
    logits = some_logits(3, 8)
    samples = Sampler().sample(
        logits,
        [
            SamplingRow(SamplingSpec(given_token_ids=(7, 2)), position=1),
            SamplingRow(SamplingSpec()),
            SamplingRow(SamplingSpec(given_token_ids=(5,))),
        ],
    )
    best = int(logits[1].argmax())
    assert [sample.token_id for sample in samples] == [2, best, 5]
    raw = torch.log_softmax(logits, dim=-1)
    expected = [float(raw[0, 2]), float(raw[1, best]), float(raw[2, 5])]
    assert [sample.logprob for sample in samples] == pytest.approx(expected, abs=1e-5)


def test_stop_ids_wait_for_min_new_tokens() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0]]).repeat(3, 1)
    params = SamplingSpec(min_new_tokens=2, stop_token_ids=(0, 99, -1))
    rows = [SamplingRow(params, position=position) for position in range(3)]
    assert [sample.token_id for sample in Sampler().sample(logits, rows)] == [1, 1, 0]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 1.7, "top_p": 0.9},
        {"temperature": 0.8, "top_k": 4, "min_p": 0.02},
    ],
    ids=str,
)
@pytest.mark.parametrize("by", ["seed", "position"])
def test_draws_have_the_right_frequencies(params: dict[str, Any], by: str) -> None:
    """Chi-square, 8 tokens, 20000 draws: below the 99.9th percentile of 7 degrees, 24.32."""
    draws, vocab = 20_000, 8
    logits = some_logits(1, vocab, spread=1.0)
    first = SamplingRow(SamplingSpec(**params))
    rows = [
        replace(first, params=SamplingSpec(**params, seed=i))
        if by == "seed"
        else replace(first, position=i)
        for i in range(draws)
    ]
    samples = Sampler().sample(logits.expand(draws, vocab), rows)
    counts = torch.bincount(torch.tensor([s.token_id for s in samples]), minlength=vocab)
    expected = ours(logits, [first])[0] * draws
    assert counts[expected == 0].sum() == 0
    seen = expected > 0
    assert float(((counts - expected)[seen] ** 2 / expected[seen]).sum()) < 24.32


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    logits = some_logits(6, 400, spread=1.0)
    rows = [row(i, seed=i % 3, **ASKED[i]) for i in range(6)]
    alone = [Sampler().sample(logits[i : i + 1], [rows[i]])[0].token_id for i in range(6)]
    together = [sample.token_id for sample in Sampler().sample(logits, rows)]
    back = Sampler().sample(logits.flip(0), rows[::-1])
    assert together == alone
    assert [sample.token_id for sample in back] == alone[::-1]


def test_uniform_numbers_are_repeatable_distinct_and_below_one() -> None:
    seeds = [0, 1, -1, 2**40, 2**63, 2**200 + 7]
    numbers = [uniform(seed, position) for seed in seeds for position in range(50)]
    assert numbers == [uniform(seed, position) for seed in seeds for position in range(50)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 for number in numbers)


def test_temperatures_of_any_size_are_sound() -> None:
    logits = some_logits(1, 50, spread=30.0).expand(4, 50)
    rows = [row(temperature=t) for t in (1e-60, 1e-12, 1e-3, 1e30)]
    samples = Sampler().sample(logits, rows)
    best = int(logits[0].argmax())
    assert [sample.token_id for sample in samples[:3]] == [best] * 3
    assert 0 <= samples[3].token_id < 50


def test_equal_probabilities_stay_or_go_together() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]])
    assert (ours(logits, [row(temperature=1.0, top_k=2)]) > 0).tolist()[0] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_logits_that_are_not_numbers_show_in_the_log_probability() -> None:
    logits = some_logits(4, 30)
    logits[0, 3] = math.nan
    logits[1] = math.inf
    samples = Sampler().sample(logits, [row(), row(temperature=1.0, top_p=0.9), row(), row()])
    assert [math.isnan(sample.logprob) for sample in samples] == [True, True, False, False]


def test_a_row_whose_tokens_are_all_masked_still_gets_one() -> None:
    params = SamplingSpec(min_new_tokens=1, stop_token_ids=(0, 1), temperature=1.0)
    (sample,) = Sampler().sample(torch.zeros(1, 2), [SamplingRow(params)])
    assert sample.token_id in (0, 1)
