"""All that a card compiles and captures is there before the first step; no card is needed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from adapters_store.types import Combination
from router_engine.backends.cuda.graphs import GraphSizes
from router_engine.config import SchedulerConfig
from router_engine.kernels.triton import fused
from router_engine.kernels.triton.compilation import compiled_ahead
from router_engine.kernels.triton.device.fused_kernels import norm_kernel
from router_engine.request import EngineRequest
from router_engine.scheduling.plan import StepLimits
from tests.support.card_engine import EVERY_LINEAR, card_engine, publish_loras
from tests.support.fake_card import fake_card
from tests.support.harness import Answer, request
from tests.support.tiny import ATTENTION

STEPS = 2000
LIMITS = SchedulerConfig(max_step_tokens=160, max_running=24)
GRAPHS = GraphSizes.of(StepLimits(LIMITS.max_step_tokens, LIMITS.max_running, 512, 16)).count
LORAS = (
    *((4, ATTENTION[:1]), (8, ATTENTION[:2]), (16, ATTENTION), (24, EVERY_LINEAR)),
    *((8 * times, EVERY_LINEAR) for times in range(1, 9)),
    *((12, EVERY_LINEAR),) * 3,  # of one rank, as `linear` wants them
)


def _request(draw: random.Random, number: int, digests: Sequence[str]) -> EngineRequest:
    """Any mixture of any size, or the base; some read hidden states."""
    combination: Combination = "linear" if draw.random() < 0.3 else "sum"
    among = list(digests) if combination == "sum" else list(digests[-3:])
    count = min(draw.choice([0, 0, 1, 1, 2, 4, 8, len(among)]), len(among))
    mixture = {digest: draw.uniform(0.1, 1) for digest in draw.sample(among, count)}
    made = request(
        f"r{number}",
        [draw.randrange(60) for _ in range(draw.choice([1, 3, 17, 40, 90]))],
        mixture,
        combination=combination,
        max_new_tokens=draw.randint(1, 24),
    )
    return replace(made, reads_hidden_states=draw.random() < 0.2)


def test_no_step_compiles_or_captures(tmp_path: Path) -> None:
    with card_engine(tmp_path, LIMITS) as (card, harness):
        assert harness.engine.backend.capabilities.has_decoder
        assert card.captures == GRAPHS
        compiled, draw = card.compiles.copy(), random.Random(5)
        digests = publish_loras(harness, tmp_path, *LORAS)
        live: list[Answer] = []
        for _ in range(STEPS):
            while not live or draw.random() < 0.3:
                made = _request(draw, len(harness.answers), digests)
                harness.add(made)
                live.append(harness.answers[made.request_id])
            harness.step()
            live = [answer for answer in live if not answer.is_finished]
        ended = [answer for answer in harness.answers.values() if answer.is_finished]
        assert {answer.end.error for answer in ended} == {None}
        assert card.compiles == compiled
        assert card.captures == GRAPHS
        assert card.replays > STEPS / 2


def test_a_head_that_moves_is_captured_again(tmp_path: Path) -> None:
    """One that shares the embedding's weight has another while it is merged."""
    with card_engine(tmp_path, LIMITS, family="llama-tied") as (card, harness):
        backend = harness.engine.backend
        for times in (2, 3):
            backend.write_weight("lm_head", backend.read_weight("lm_head") + 1)
            assert card.captures in (GRAPHS * n for n in (1, times))
        made = card.captures
        assert made > GRAPHS
        harness.run(request("r", range(5, 15), {}))
        assert card.captures == made


def test_without_graphs_nothing_is_captured(tmp_path: Path) -> None:
    with card_engine(tmp_path, LIMITS, enforce_eager=True) as (card, harness):
        compiled = card.compiles.copy()
        harness.run(request("r", range(5, 15), {}))
        assert harness.engine.backend.captures is None
        assert (card.captures, card.replays) == (0, 0)
        assert card.compiles == compiled


def test_kernels_are_compiled_together_and_run_nothing() -> None:
    """Really, by Triton's compiler; what was compiled is not compiled again."""
    told: list[tuple[int, int]] = []
    x = torch.ones(3, 64)
    with fake_card(compiling=True) as card:
        with compiled_ahead(lambda *each: told.append(each)):
            for add in (False, True):
                fused.norm(x, torch.ones_like(x), x[0], 1e-5, add=add)
        assert told == [(1, 2), (2, 2)]
        assert not card.launches
        assert len(norm_kernel.device_caches[0][0]) == 2
        fused.norm(x, torch.ones_like(x), x[0], 1e-5, add=True)
        assert card.launches == {"norm_kernel": 1}
        assert len(norm_kernel.device_caches[0][0]) == 2
