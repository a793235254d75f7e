"""Ensembles: the mean of the members' next-token probabilities, against each member alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from adapters_store.expert_kinds.lora import LoraExpertSpec
from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from router_engine.events import FinishReason, TokenUncertainty
from router_engine.experts.variants import Side, Stochastic, variant_digest
from router_engine.model.sampler import Sampler, SamplingRow
from router_engine.request import EngineRequest, SamplingSpec
from tests.router_engine import paths
from tests.router_engine.conftest import MakeEngine, MakeHarness
from tests.router_engine.paths import EnginePath, path_params
from tests.support.copies import CopiesAdapter, make_copies
from tests.support.harness import Answer, EngineHarness, request
from tests.support.oracle import assert_agrees

PROMPT = [1, 5, 9, 13, 7, 3, 8, 4]
SEEDS = (3, 4, 5)
WEIGHT = 0.8
CONFIG = EngineConfig(cache=CacheConfig(num_blocks=512, block_size=4))
CHUNKED = replace(CONFIG, scheduler=SchedulerConfig(max_step_tokens=3))
# 3 members of at most 8 + 12 - 1 tokens take 15 blocks: not beside another request's.
TIGHT = replace(CONFIG, cache=CacheConfig(num_blocks=16, block_size=4, prefix_cache=False))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> CopiesAdapter:
    return make_copies(tmp_path_factory.mktemp("copies") / "adamix")


def ensemble(
    digests: Sequence[str], sampling: SamplingSpec, name: str = "ensemble"
) -> EngineRequest:
    """One member a digest."""
    first, *others = digests
    return EngineRequest(
        name, tuple(PROMPT), sampling, (first,), (WEIGHT,), ensemble=tuple((one,) for one in others)
    )


def drawn(digest: str, seeds: Sequence[int] = SEEDS) -> list[str]:
    return [variant_digest(digest, Stochastic(seed)) for seed in seeds]


def members(adapter: CopiesAdapter) -> list[PreTrainedModel]:
    """The members' models; the adapter's weight goes with B."""

    def member(choice: Stochastic) -> PreTrainedModel:
        def weights(expert: LoraExpertSpec, side: Side) -> list[float]:
            scale = WEIGHT if side == "up" else 1.0
            return [scale * weight for weight in choice.weights(expert, side)]

        return adapter.model(weights)

    return [member(Stochastic(seed)) for seed in SEEDS]


@torch.no_grad()
def oracle(
    models: Sequence[PreTrainedModel], sampling: SamplingSpec
) -> tuple[list[int], list[Tensor], list[TokenUncertainty]]:
    """Tokens, log p [vocab] and uncertainty of each, all recomputed each time: the equation."""
    ids = list(PROMPT)
    rows: list[Tensor] = []
    said: list[TokenUncertainty] = []
    for position in range(sampling.max_new_tokens):
        logits = torch.stack(
            [
                model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
                for model in models
            ]
        )
        each = logits.softmax(-1)
        p = each.mean(0)
        entropy = -(p * p.log()).sum()
        said.append(
            TokenUncertainty(float(entropy), float(entropy + (each * each.log()).sum(-1).mean()))
        )
        rows.append(p.log().float())
        row = SamplingRow(sampling, PROMPT, ids[len(PROMPT) :], position)
        scores = rows[-1] + logits.logsumexp(-1).mean().float()  # where penalties have their 0
        ids.append(Sampler().sample(scores[None], [row])[0].token_id)
    return ids[len(PROMPT) :], rows, said


GREEDY = SamplingSpec(max_new_tokens=12)
SAMPLED = replace(GREEDY, temperature=1.2, top_p=0.9, seed=7, repetition_penalty=1.3)
GIVEN = replace(GREEDY, given_token_ids=tuple(range(10, 22)))


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, GIVEN], ids=["greedy", "sampled", "given"])
@pytest.mark.parametrize("config", [CONFIG, CHUNKED, TIGHT], ids=["whole", "chunked", "tight"])
def test_tokens_are_drawn_from_the_mean_of_the_members_probabilities(
    adapter: CopiesAdapter,
    make_harness: MakeHarness,
    config: EngineConfig,
    sampling: SamplingSpec,
) -> None:
    harness = make_harness(config=config)
    digest = harness.publish("adamix", adapter.folder)
    others = [request("base", PROMPT, max_new_tokens=20), request("one", PROMPT, {digest: 1.0})]
    ids, rows, said = oracle(members(adapter), sampling)
    alone = [answer_of(harness, other) for other in others]
    for one in drawn(digest):  # so that all three begin in one step, however slow the disk
        harness.wait(harness.engine.load(one))
    before, answer, after = harness.run(
        replace(others[0], request_id="before"),
        ensemble(drawn(digest), sampling),
        replace(others[1], request_id="after"),
    )
    assert_agrees(answer, ids, rows)
    assert [before.ids, after.ids] == [other.ids for other in alone]
    for token, expected in zip(answer.tokens, said, strict=True):
        assert token.uncertainty is not None
        assert token.uncertainty.entropy == pytest.approx(expected.entropy, abs=1e-4)
        information = token.uncertainty.mutual_information
        assert information == pytest.approx(expected.mutual_information, abs=1e-4)
        assert information is not None
        assert information > 1e-3
    assert all(token.uncertainty is None for token in before.tokens)
    preempted = answer.end.num_preemptions + before.end.num_preemptions
    assert (preempted + after.end.num_preemptions > 0) == (config is TIGHT)
    assert harness.engine.stats().blocks_owned == 0


@pytest.mark.parametrize("path", path_params(paths.CPU, paths.CUDA), indirect=True)
def test_every_decoder_gives_the_members_logits(
    adapter: CopiesAdapter, make_engine: MakeEngine, path: EnginePath
) -> None:
    engine = make_engine(config=CHUNKED)
    digest = engine.publish("adamix", adapter.folder)
    ids, rows, said = oracle(members(adapter), GREEDY)
    answer, _ = engine.run(ensemble(drawn(digest), GREEDY), request("base", PROMPT))
    assert_agrees(answer, ids, rows, path.tolerance)
    for token, expected in zip(answer.tokens, said, strict=True):
        assert token.uncertainty is not None
        assert token.uncertainty.entropy == pytest.approx(expected.entropy, abs=1e-3)


def answer_of(harness: EngineHarness, one: EngineRequest) -> Answer:
    (answer,) = harness.run(one)
    return answer


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_equal_members_are_the_plain_request(
    adapter: CopiesAdapter, make_harness: MakeHarness, sampling: SamplingSpec
) -> None:
    harness = make_harness(config=CONFIG)
    digest = harness.publish("adamix", adapter.folder)
    (one, *_), three = drawn(digest), drawn(digest)
    plain, equal, different = harness.run(
        ensemble([one], sampling, "plain"),
        ensemble([one] * 4, sampling, "equal"),
        ensemble(three, sampling, "different"),
    )
    assert equal.ids == plain.ids
    assert equal.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
    assert different.logprobs != pytest.approx(plain.logprobs, abs=1e-2)
    for token in equal.tokens:
        assert token.uncertainty is not None
        assert token.uncertainty.mutual_information == pytest.approx(0, abs=1e-6)
        assert token.uncertainty.entropy > 0


@pytest.mark.parametrize("steps", [0, 1, 2, 4, 9])
def test_a_cancelled_ensemble_leaves_nothing(
    adapter: CopiesAdapter, make_harness: MakeHarness, steps: int
) -> None:
    harness = make_harness(config=CHUNKED)
    digest = harness.publish("adamix", adapter.folder)
    harness.run(ensemble(drawn(digest), GREEDY, "warm"))
    harness.add(ensemble(drawn(digest), GREEDY))
    for _ in range(steps):
        harness.step()
    harness.engine.cancel("ensemble")
    while harness.answers["ensemble"].final is None:
        harness.step()
    assert harness.answers["ensemble"].end.reason is FinishReason.CANCELLED
    harness.engine.check_integrity()
    stats = harness.engine.stats()
    assert (stats.running, stats.waiting, stats.blocks_owned) == (0, 0, 0)
    assert all(entry.users == 0 for entry in harness.engine.residency())


def test_a_plain_request_reports_its_entropy_where_it_is_asked_to(
    make_harness: MakeHarness,
) -> None:
    harness = make_harness(config=CONFIG)
    asked = replace(GREEDY, report_entropy=True, top_n_tokens=259)
    (answer,) = harness.run(EngineRequest("plain", tuple(PROMPT), asked))
    for token in answer.tokens:
        assert token.uncertainty is not None
        expected = -math.fsum(math.exp(logprob) * logprob for _, logprob in token.top_tokens)
        assert token.uncertainty.entropy == pytest.approx(expected, abs=1e-4)
        assert token.uncertainty.mutual_information is None


def test_an_ensemble_that_cannot_run_is_refused(
    adapter: CopiesAdapter, make_harness: MakeHarness
) -> None:
    harness = make_harness(config=TIGHT)
    digest = harness.publish("adamix", adapter.folder)
    four = ensemble(drawn(digest, range(4)), replace(GREEDY, max_new_tokens=16), "four")
    (answer,) = harness.run(four)
    assert answer.end.reason is FinishReason.REFUSED
    assert "for each of 4 members: the whole cache holds 64" in str(answer.end.error)
