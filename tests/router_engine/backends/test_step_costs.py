"""What a step asks of a card, by its kind: launches that a graph makes, and those made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from router_engine import transfers
from router_engine.config import SchedulerConfig
from router_engine.request import EngineRequest, SamplingSpec
from router_engine.runner import ModelRunner
from tests.support.capture_lint import CountedWaits
from tests.support.card_engine import EVERY_LINEAR, card_engine, publish_loras
from tests.support.fake_card import FakeCard
from tests.support.harness import EngineHarness, request

LAYERS = 2
GROUPS = 4 * LAYERS  # of modules with the same input, but for the head
LAYER = ("norm_kernel", "norm_kernel", "rope_kernel", "attend_kernel", "silu_kernel")
LIMITS = SchedulerConfig(max_step_tokens=1024, max_running=8)


def _step(
    card: FakeCard, harness: EngineHarness, *requests: EngineRequest
) -> tuple[dict[str, int], int]:
    """Launches by hand, and replays, of the step after requests were added."""
    harness.add(*requests)
    card.by_hand.clear()
    before = card.replays
    harness.step()
    return dict(card.by_hand), card.replays - before


@pytest.mark.parametrize("is_mixed", [False, True])
def test_steps_are_one_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_mixed: bool
) -> None:
    """Prompts, decodes, and both in one step; only a large one goes launch by launch.

    Then the base takes five launches a layer and one; a mixture adds two a group.
    """
    by_hand = {name: LAYERS * LAYER.count(name) for name in LAYER}
    by_hand["norm_kernel"] += 1
    if is_mixed:
        by_hand |= {"shrink_tiles_kernel": GROUPS, "expand_tiles_kernel": GROUPS}
    monkeypatch.setattr(ModelRunner, "runs_ahead", False)  # one plan a step, to count by
    with card_engine(tmp_path, LIMITS) as (card, harness):
        digests = publish_loras(harness, tmp_path, *[(8, EVERY_LINEAR)] * 2)
        mixture = dict.fromkeys(digests, 0.5) if is_mixed else {}
        harness.run(request("load", [1, 2], mixture, max_new_tokens=1))

        def asked(name: str, tokens: int, answer: int = 1) -> EngineRequest:
            return request(name, [7] * tokens, mixture, max_new_tokens=answer)

        prompts = [asked(name, 20, 8) for name in ("first", "second", "third")]
        assert _step(card, harness, *prompts) == ({}, 1)
        assert _step(card, harness) == ({}, 1)
        assert _step(card, harness, asked("late", 30)) == ({}, 1)
        large = [asked(f"large {index}", 200 + index) for index in range(3)]
        assert _step(card, harness, *large) == (by_hand, 0)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_step_reads_back_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Tokens, their log probabilities, hidden states and what is finite come by one copy."""
    monkeypatch.setattr(transfers, "is_away", lambda tensor: True)
    with card_engine(tmp_path, LIMITS) as (_, harness):
        digests = publish_loras(harness, tmp_path, (8, EVERY_LINEAR))
        mixture = dict.fromkeys(digests, 0.5)
        sampling = SamplingSpec(max_new_tokens=8, temperature=temperature, seed=1)
        for name, reads in (("first", False), ("second", True)):
            made = request(name, [5, 6, 7], mixture)
            harness.add(replace(made, sampling=sampling, reads_hidden_states=reads))
        while not all(answer.tokens for answer in harness.answers.values()):
            harness.step()
        with CountedWaits() as waits:
            harness.step()
        assert waits.counts == {"cpu": 1}


def test_the_next_step_is_begun_before_one_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steady decoding the card always has a step to do, whatever the host is about."""
    begun: list[int] = []
    arrays = transfers.ReadBack.arrays
    with card_engine(tmp_path, LIMITS) as (card, harness):

        def noted(read_back: transfers.ReadBack) -> list[transfers.Array]:
            begun.append(card.replays)
            return arrays(read_back)

        monkeypatch.setattr(transfers.ReadBack, "arrays", noted)
        first = card.replays
        harness.run(request("r", [5, 6, 7], {}, max_new_tokens=6))
        # The last of the six knows that nothing follows it.
        assert [count - first for count in begun] == [2, 3, 4, 5, 6, 6]
