"""Adapters kept as copies: each mode against the equation, written out in plain torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from adapters_store.expert_kinds.base import Copies
from adapters_store.expert_kinds.prompt import PromptExpertSpec
from adapters_store.formats.native import MANIFEST_FILE
from adapters_store.manifest import manifest_to_json
from router_engine.experts.variants import (
    Choice,
    Soup,
    Stochastic,
    plain_digest,
    variant_digest,
    variant_of,
)
from tests.router_engine.conftest import MakeHarness
from tests.support.copies import DOWN, UP, CopiesAdapter, average, make_copies
from tests.support.expert_adapters import SERIAL, FolderFiles, make_expert_folder
from tests.support.expert_oracle import with_experts
from tests.support.harness import request
from tests.support.oracle import assert_agrees, greedy
from tests.support.tiny import family_model

DIGEST = "sha256:" + 64 * "c"
PROMPT = [1, 5, 9, 13, 7, 3]
SOUP = Soup((1.0, -0.5, 0.25), (0.5, 2.0))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> CopiesAdapter:
    return make_copies(tmp_path_factory.mktemp("copies") / "adamix")


def test_without_a_choice_the_average_of_the_manifest_acts(
    adapter: CopiesAdapter, make_harness: MakeHarness
) -> None:
    harness = make_harness()
    digest = harness.publish("adamix", adapter.folder)
    answer, base = harness.run(request("a", PROMPT, {digest: 1.0}), request("base", PROMPT))
    assert_agrees(answer, *greedy(adapter.model(average), PROMPT, 12))
    assert answer.ids != base.ids


@pytest.mark.parametrize(
    "choice", [SOUP, Soup(up=(0.0, 1.0)), Stochastic(0), Stochastic(12)], ids=str
)
def test_a_choice_acts_as_the_copies_that_it_names(
    adapter: CopiesAdapter, make_harness: MakeHarness, choice: Choice
) -> None:
    harness = make_harness()
    digest = harness.publish("adamix", adapter.folder)
    chosen, plain = harness.run(
        request("chosen", PROMPT, {variant_digest(digest, choice): 1.0}),
        request("average", PROMPT, {digest: 1.0}),
    )
    assert_agrees(chosen, *greedy(adapter.model(choice.weights), PROMPT, 12))
    assert chosen.logprobs != pytest.approx(plain.logprobs, abs=1e-3)
    held = {entry.digest: entry.users for entry in harness.engine.residency()}
    assert held == {digest: 0, variant_digest(digest, choice): 0}
    freed = harness.engine.unload(digest)
    assert freed > 0
    assert harness.engine.residency() == ()


@pytest.mark.parametrize("choice", [Soup((0.2, -1.0, 1.5)), Stochastic(3)], ids=str)
def test_bottlenecks_have_copies_too(
    make_harness: MakeHarness, tmp_path: Path, choice: Choice
) -> None:
    """Both biases go with their sides. The oracle reads the choice as another average."""
    layers = replace(SERIAL, targets=("q_proj",), copies=3)
    folder = make_expert_folder(tmp_path / "adamix", layers)
    harness = make_harness()
    digest = harness.publish("adamix", folder)
    chosen, plain = harness.run(
        request("chosen", PROMPT, {variant_digest(digest, choice): 1.0}),
        request("average", PROMPT, {digest: 1.0}),
    )
    manifest = FolderFiles.of(folder).manifest
    experts = tuple(
        replace(
            expert,
            copies=Copies(
                tuple(choice.weights(expert, "down")), tuple(choice.weights(expert, "up"))
            ),
        )
        for expert in manifest.experts
        if not isinstance(expert, PromptExpertSpec)
    )
    (folder / MANIFEST_FILE).write_bytes(manifest_to_json(replace(manifest, experts=experts)))
    model = with_experts(family_model("llama"), [(folder, 1.0)])
    assert_agrees(chosen, *greedy(model, PROMPT, 12))
    assert chosen.logprobs != pytest.approx(plain.logprobs, abs=1e-3)


def test_a_soup_of_the_averages_weights_is_the_average(
    adapter: CopiesAdapter, make_harness: MakeHarness
) -> None:
    harness = make_harness()
    digest = harness.publish("adamix", adapter.folder)
    soup, plain = harness.run(
        request("soup", PROMPT, {variant_digest(digest, Soup(DOWN, UP)): 1.0}),
        request("average", PROMPT, {digest: 1.0}),
    )
    assert soup.ids == plain.ids
    assert soup.logprobs == pytest.approx(plain.logprobs, abs=1e-5)


def test_a_wrong_number_of_weights_fails_the_request_alone(
    adapter: CopiesAdapter, make_harness: MakeHarness
) -> None:
    harness = make_harness()
    digest = harness.publish("adamix", adapter.folder)
    bad, good = harness.run(
        request("bad", PROMPT, {variant_digest(digest, Soup((1.0, 1.0))): 1.0}),
        request("good", PROMPT, {digest: 1.0}),
    )
    assert "2 weights for 3 copies" in str(bad.end.error)
    assert len(good.tokens) == 12


def test_draws_are_uniform_and_apart(adapter: CopiesAdapter) -> None:
    """Over seeds each copy comes equally often, and so does each pair of sides or of places."""
    seeds, experts = 3000, adapter.manifest.lora_experts
    drawn: dict[tuple[int, str], list[int]] = {
        (index, side): [
            list(Stochastic(seed).weights(expert, side)).index(1.0) for seed in range(seeds)
        ]
        for index, expert in enumerate(experts)
        for side in ("down", "up")
    }
    for (_, side), draws in drawn.items():
        assert_uniform(Counter(draws).values(), len(DOWN if side == "down" else UP), seeds)
    for (first, one), (second, other) in pairwise(drawn):
        pairs = Counter(zip(drawn[first, one], drawn[second, other], strict=True))
        count = len(DOWN if one == "down" else UP) * len(DOWN if other == "down" else UP)
        assert_uniform(pairs.values(), count, seeds)


def assert_uniform(counts: Iterable[int], kinds: int, total: int) -> None:
    """Each of `kinds` outcomes within five standard deviations of its share."""
    found, share = list(counts), 1 / kinds
    assert len(found) == kinds
    spread = (total * share * (1 - share)) ** 0.5
    assert all(abs(count - total * share) < 5 * spread for count in found)


@pytest.mark.parametrize("choice", [SOUP, Soup(), Soup(up=(1e-30, 0.1)), Stochastic(2**63 - 1)])
def test_a_digest_says_what_it_is_of(choice: Choice, adapter: CopiesAdapter) -> None:
    digest = variant_digest(DIGEST, choice)
    assert plain_digest(digest) == plain_digest(DIGEST) == DIGEST
    expert = adapter.manifest.lora_experts[0]
    for side in ("down", "up"):
        assert variant_of(digest)(expert, side) == choice.weights(expert, side)


def test_equal_choices_have_equal_digests() -> None:
    assert str(Soup((0.0, 1.0))) == str(Soup((-0.0, 1)))
    assert str(Soup((1.0,))) != str(Soup(up=(1.0,)))


@pytest.mark.parametrize(
    "text", ["soup:1.0", "soup:nan/", "soup:1/", "stochastic:x", "stochastic:01", "best:1", ""]
)
def test_what_is_no_variant_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        variant_of(f"{DIGEST}~{text}")
