"""Requests that can never run, refused with field, value and what would work."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from router_engine.request import EngineRequest, LayerRouting, SamplingSpec, TokenRouting
from router_engine.scheduling.request_validation import Limits, refusal

LIMITS = Limits(max_model_len=100, block_size=4, num_blocks=10, max_running=4)
GOOD = EngineRequest(
    "r", (1, 2, 3), SamplingSpec(), ("sha256:a", "sha256:b"), (0.5, -2.0), priority=-3
)
ROUTED = replace(GOOD, weights=(), routing=TokenRouting("similarity", every=2))
LAYERED = replace(GOOD, weights=(), layer_routing=LayerRouting("arrow"))


@pytest.mark.parametrize(
    "request_",
    [
        GOOD,
        ROUTED,
        LAYERED,
        EngineRequest("base", (1,)),
        replace(GOOD, prompt_token_ids=tuple(range(25))),  # 25 + 16 - 1 tokens fill the cache
        replace(
            GOOD,
            sampling=SamplingSpec(
                temperature=2.0,
                top_k=5,
                top_p=0.1,
                min_p=1.0,
                repetition_penalty=0.5,
                presence_penalty=-2.0,
                frequency_penalty=2.0,
                min_new_tokens=16,
                seed=-5,
            ),
        ),
    ],
)
def test_what_can_run_is_not_refused(request_: EngineRequest) -> None:
    assert refusal(request_, LIMITS) is None


@pytest.mark.parametrize(
    ("base", "change", "reason"),
    [
        (GOOD, {"prompt_token_ids": ()}, "prompt_token_ids is empty"),
        (GOOD, {"prompt_token_ids": tuple(range(100))}, "100 tokens: the model takes 100"),
        (GOOD, {"prompt_token_ids": tuple(range(26))}, "26 + 16 - 1 tokens: the whole cache"),
        (GOOD, {"weights": (1.0,)}, "weights has 1 values: 2 adapters"),
        (GOOD, {"weights": (1.0, float("nan"))}, "weights has nan"),
        (GOOD, {"weights": (float("-inf"), 1.0)}, "weights has -inf"),
        (GOOD, {"weights": (1e39, 1.0)}, "weights has 1e+39"),
        (GOOD, {"adapters": ("sha256:a", "sha256:a")}, "adapters has sha256:a more than once"),
        (ROUTED, {"weights": (1.0, 1.0)}, "with routing it must be empty"),
        (ROUTED, {"adapters": ()}, "at least 1 candidate"),
        (ROUTED, {"routing": TokenRouting("x", every=0)}, "routing.every is 0"),
        (
            GOOD,
            {"sampling": SamplingSpec(max_new_tokens=3, given_token_ids=(1, 2))},
            "given_token_ids has 2 tokens: max_new_tokens, 3, must be as many",
        ),
        (ROUTED, {"routing": TokenRouting("x", lag=-1)}, "routing.lag is -1"),
        (
            ROUTED,
            {"routing": TokenRouting("x", lag=65)},
            "routing.lag is 65: it must be from 0 to 64",
        ),
        (
            ROUTED,
            {"routing": TokenRouting("x", context="recompute", lag=1)},
            "routing.lag is 1: context 'recompute' waits for the newest weights",
        ),
        (LAYERED, {"weights": (1.0, 1.0)}, "with routing it must be empty"),
        (LAYERED, {"adapters": ()}, "at least 1 candidate"),
        (LAYERED, {"routing": TokenRouting("x")}, "routing and layer_routing are both given"),
        (LAYERED, {"combination": "linear"}, "combination is 'linear': layer_routing is"),
    ],
)
def test_what_cannot_run_is_refused(
    base: EngineRequest, change: dict[str, Any], reason: str
) -> None:
    assert reason in str(refusal(replace(base, **change), LIMITS))


@pytest.mark.parametrize(
    "sampling",
    [
        {"max_new_tokens": 0},
        {"min_new_tokens": -1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("-inf")},
        {"top_n_tokens": -1},
        {"min_new_tokens": 17},
    ],
    ids=str,
)
def test_sampling_out_of_range_is_refused_by_name(sampling: dict[str, Any]) -> None:
    reason = str(refusal(replace(GOOD, sampling=SamplingSpec(**sampling)), LIMITS))
    ((name, value),) = sampling.items()
    assert f"{name} is {value!r}" in reason


def test_all_reasons_come_at_once() -> None:
    bad = replace(GOOD, weights=(), sampling=SamplingSpec(top_p=2.0, min_p=2.0))
    assert str(refusal(bad, LIMITS)).count(";") == 2


@pytest.mark.parametrize("token_id", [-1, 50, 2**31 - 1, 2**63])
def test_a_token_that_the_model_has_no_row_for_is_refused(token_id: int) -> None:
    limits = replace(LIMITS, vocab_size=50)
    assert refusal(GOOD, limits) is None
    told = refusal(replace(GOOD, prompt_token_ids=(1, token_id)), limits)
    assert told is not None
    assert f"prompt_token_ids holds {token_id}: the model knows the tokens 0 to 49" in told
    given = SamplingSpec(given_token_ids=(1, token_id), max_new_tokens=2)
    told = refusal(replace(GOOD, sampling=given), limits)
    assert told is not None
    assert f"given_token_ids holds {token_id}" in told
