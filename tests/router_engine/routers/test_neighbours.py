"""`retrieval` against its equation, written out example by example; the bank that holds them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from router_engine.routers.encoder.examples import ExampleBank
from router_engine.routers.errors import RouterInputError
from router_engine.routers.knn import (
    MAX_EXAMPLES,
    RetrievalParams,
    example_indices,
    nearest,
    weights_from_neighbours,
)

DIMENSION = 8
Sets = dict[str, NDArray[np.float32]]


def unit(vector: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(vector, dtype=np.float64) / np.linalg.norm(vector)


def random_sets(seed: int, count: int, most: int = 6) -> Sets:
    """Examples of `count` adapters, 1 to `most` each, of any length."""
    random = np.random.default_rng(seed)
    return {
        f"t{i}": random.normal(size=(random.integers(1, most + 1), DIMENSION)).astype(np.float32)
        for i in range(count)
    }


def bank_of(sets: Sets, **options: int) -> ExampleBank:
    bank = ExampleBank(DIMENSION, **options)
    for key, rows in sets.items():
        bank.put(key, rows)
    return bank


def weigh(
    bank: ExampleBank, embedding: NDArray[Any], keys: list[str], **params: Any
) -> tuple[float, ...]:
    parsed = RetrievalParams.parse(params)
    owners, cosines = nearest(unit(embedding), bank.view(keys), parsed.k)
    return weights_from_neighbours(owners, cosines, len(keys), parsed)


def equation(
    sets: Sets, embedding: NDArray[Any], keys: list[str], params: RetrievalParams
) -> list[float]:
    """Step by step as the page has it."""
    e = unit(embedding)
    pairs = sorted(
        ((float(e @ unit(x)), j) for j, key in enumerate(keys) for x in sets[key]), reverse=True
    )
    best: dict[int, float] = {}
    for cosine, j in pairs[: params.k]:
        best[j] = max(best.get(j, -2.0), cosine)
    if params.threshold is not None and max(best.values()) < params.threshold:
        return [0.0] * len(keys)
    chosen = sorted(best, key=lambda j: -best[j])[: params.top_k]
    if params.weighting == "uniform":
        return [1 / len(chosen) if j in chosen else 0.0 for j in range(len(keys))]
    powers = {j: math.exp(best[j] / params.temperature) for j in chosen}
    return [powers.get(j, 0.0) / sum(powers.values()) for j in range(len(keys))]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"k": 1},
        {"k": 5, "temperature": 0.3},
        {"k": 12, "top_k": 3},
        {"k": 12, "top_k": 3, "weighting": "uniform"},
        {"k": 7, "weighting": "uniform"},
        {"k": 4000},
        {"threshold": 0.5},
        {"threshold": 0.999},
        {"threshold": 0.999, "weighting": "uniform"},
    ],
)
def test_weights_follow_the_equation(params: dict[str, Any]) -> None:
    sets = random_sets(0, 30)
    bank = bank_of(sets)
    random = np.random.default_rng(1)
    for _ in range(10):
        keys = list(random.permutation(sorted(sets))[:20])
        embedding = random.normal(size=DIMENSION)
        found = weigh(bank, embedding, keys, **params)
        expected = equation(sets, embedding, keys, RetrievalParams.parse(params))
        assert found == pytest.approx(expected, abs=1e-6)
        assert sum(found) == pytest.approx(1) or found == (0.0,) * 20


def test_examples_count_and_not_their_mean() -> None:
    """The mean of `both` is nearer to the prompt than any of its texts; `one` has a nearer one."""
    both = np.array([[1.0, 1.0], [1.0, -1.0]])
    one = np.array([[0.9, 0.4], [-1.0, 0.0]])
    bank = ExampleBank(2)
    bank.put("both", both)
    bank.put("one", one)
    prompt = np.array([1.0, 0.0])
    assert weigh(bank, prompt, ["both", "one"], k=1) == (0.0, 1.0)
    means = [unit(rows.mean(axis=0)) @ prompt for rows in (both, one)]
    assert means[0] > means[1]  # negative control


def test_equal_examples_go_to_the_earlier_candidate_wherever_they_lie() -> None:
    rows = np.random.default_rng(2).normal(size=(1, DIMENSION)).astype(np.float32)
    sets: Sets = {f"t{i}": rows for i in range(500)}
    bank = bank_of(sets)
    keys = sorted(sets, reverse=True)
    for count in (3, 100, 500):
        weights = weigh(bank, rows[0] + 0.1, keys[:count], k=1)
        assert weights == (1.0, *[0.0] * (count - 1))


def test_weights_do_not_depend_on_who_else_is_there() -> None:
    sets = random_sets(3, 700)
    small = bank_of({key: sets[key] for key in list(sets)[-5:]})
    large = bank_of(sets)
    keys, prompt = list(sets)[-5:], np.random.default_rng(4).normal(size=DIMENSION)
    assert weigh(small, prompt, keys) == weigh(large, prompt, keys)  # to the last bit


def test_one_adapter_may_have_the_texts_of_another() -> None:
    sets = random_sets(5, 2)
    prompt = np.random.default_rng(6).normal(size=DIMENSION)
    weights = weigh(bank_of(sets), prompt, ["t0", "t1", "t0"], k=50)
    assert weights[0] == weights[2] > 0


def test_a_thousand_candidates_of_32_examples() -> None:
    random = np.random.default_rng(7)
    sets = {f"t{i}": random.normal(size=(32, DIMENSION)).astype(np.float32) for i in range(1000)}
    prompt = random.normal(size=DIMENSION)
    weights = weigh(bank_of(sets), prompt, list(sets))
    expected = equation(sets, prompt, list(sets), RetrievalParams())
    assert weights == pytest.approx(expected, abs=1e-6)


def test_examples_are_all_texts_or_64_evenly() -> None:
    assert example_indices(0).tolist() == []
    assert example_indices(3).tolist() == [0, 1, 2]
    assert example_indices(64).tolist() == list(range(64))
    assert example_indices(4096).tolist() == list(range(0, 4096, 64))
    assert len(set(example_indices(65).tolist())) == MAX_EXAMPLES


def test_the_bank_says_what_it_lacks() -> None:
    bank = bank_of(random_sets(8, 2))
    assert bank.lacking(["t0", "t1"]) == ()
    assert bank.lacking(["x", "t1", "y", "x"]) == ("x", "y")


def test_the_set_asked_for_longest_ago_gives_way() -> None:
    sets = random_sets(9, 4)
    bank = bank_of({key: sets[key] for key in ("t0", "t1", "t2")}, num_sets=3)
    bank.lacking(["t0"])
    bank.put("t3", sets["t3"])
    assert bank.lacking(["t0", "t1", "t2", "t3"]) == ("t1",)
    view = bank.view(["t3", "t0"])
    expected = np.concatenate([[unit(x) for x in sets[key]] for key in ("t3", "t0")])
    np.testing.assert_allclose(view.rows[view.index], expected, atol=1e-6)
    assert view.owners.tolist() == [0] * len(sets["t3"]) + [1] * len(sets["t0"])


def test_a_set_that_is_put_again_replaces_the_old() -> None:
    sets = random_sets(10, 2)
    bank = bank_of(sets, num_sets=2)
    for _ in range(5):
        bank.put("t0", sets["t1"])
    assert bank.lacking(["t0", "t1"]) == ()
    prompt = np.ones(DIMENSION)
    weights = weigh(bank, prompt, ["t0", "t1"], k=100)
    assert weights[0] == weights[1]


@pytest.mark.parametrize("rows", [np.zeros((0, 8)), np.zeros((65, 8)), np.full((1, 8), np.nan)])
def test_examples_that_are_none_are_refused(rows: NDArray[np.float64]) -> None:
    with pytest.raises(RouterInputError, match="examples of mine must be 1 to 64"):
        ExampleBank(8).put("mine", rows)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"neighbours": 3}, "'neighbours'"),
        ({"k": 0}, "k = 0"),
        ({"k": 5000}, "k = 5000"),
        ({"top_k": 0}, "top_k = 0"),
        ({"weighting": "mean"}, "weighting = 'mean'"),
        ({"threshold": 2.0}, "threshold = 2.0"),
        ({"weighting": "uniform", "temperature": 0.2}, "temperature does nothing under"),
        ({"scoring": "paper"}, "takes no parameter 'scoring'"),
    ],
)
def test_wrong_parameters_are_refused_by_name(params: dict[str, Any], said: str) -> None:
    with pytest.raises(RouterInputError) as caught:
        RetrievalParams.parse(params)
    assert said in str(caught.value)
