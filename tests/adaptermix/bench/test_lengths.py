"""Distributions of lengths, and prompts that have them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.workload import make_prompts, parse_lengths, stratified


def count(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("text", "low", "middle", "high"),
    [
        ("fixed:64", 64, 64, 64),
        ("uniform:48:80", 48, 64, 80),
        ("lognormal:100:0.5:200", 1, 100, 200),
        ("lognormal:100:0:200", 100, 100, 100),
    ],
)
def test_quantiles(text: str, low: int, middle: int, high: int) -> None:
    lengths = parse_lengths(text)
    assert low <= lengths.quantile(1e-9) <= lengths.quantile(0.5) == middle
    assert lengths.quantile(1 - 1e-9) == high
    assert high <= lengths.longest


def test_a_lognormal_has_the_quantile_of_its_formula() -> None:
    # exp(log 100 + 0.5 * 1.2816) at 90 %: the normal distribution's quantile is 1.2816.
    assert parse_lengths("lognormal:100:0.5:1000").quantile(0.9) == round(100 * 2.71828**0.6408)


@pytest.mark.parametrize(
    "text",
    ["", "64", "fixed", "fixed:0", "fixed:a", "uniform:9:8", "lognormal:9:1", "lognormal:9:-1:10"],
)
def test_what_is_no_distribution_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(BenchmarkError, match="lengths"):
        parse_lengths(text)


@given(st.integers(1, 50), st.integers(0, 100), st.integers(1, 60))
def test_stratified_lengths_are_the_same_in_another_order(low: int, more: int, size: int) -> None:
    lengths = parse_lengths(f"uniform:{low}:{low + more}")
    one, two = (stratified(lengths, size, random.Random(seed)) for seed in (1, 2))
    assert sorted(one) == sorted(two)
    assert low <= min(one) <= max(one) <= low + more


def test_as_many_as_there_are_lengths_take_each_once() -> None:
    drawn = stratified(parse_lengths("uniform:48:80"), 33, random.Random(0))
    assert sorted(drawn) == list(range(48, 81))


def test_prompts_have_their_lengths_and_their_seed() -> None:
    targets = [48, 60, 80, 1]
    prompts = make_prompts(targets, "seed", count)
    assert [count(prompt) for prompt in prompts] == targets
    assert prompts == make_prompts(targets, "seed", count)
    assert not set(prompts[:3]) & set(make_prompts(targets, "another seed", count))


def test_prompts_of_bytes_stay_within_their_limits() -> None:
    for prompt in make_prompts([48, 200, 1000], "seed", len):
        assert len(prompt) <= 1000
    assert len(make_prompts([1000], "seed", len)[0]) > 980
