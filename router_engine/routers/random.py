"""The router `random`: weights that have nothing to do with the text. An ablation.

A draw depends on (seed, number of tokens) and the number of candidates alone, so that it comes out
the same whenever it is made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from router_engine.routers.instant import InstantTokenRouter, Rule
from router_engine.routers.params import parse_params
from router_engine.routers.registry import RouterSpec


class RandomParams(BaseModel):
    """Parameters of the router `random`. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seed: int = Field(default=0, ge=0, lt=2**63, description="Same seed, same weights.")
    draw: Literal["one", "simplex"] = Field(
        default="one",
        description="one: weight 1 for one candidate, each as likely as the others; simplex: "
        "weights drawn evenly from all that sum to 1, Dirichlet(1, ..., 1).",
    )


class RandomRequestRouter:
    """`RequestRouter`: the draw of (seed, 0)."""

    async def route(
        self, prompt_text: str, candidates: Sequence[str], params: Mapping[str, Any]
    ) -> tuple[float, ...]:
        return draw(parse_params(RandomParams, "random", params), 0, len(candidates))


def draw(params: RandomParams, num_tokens: int, num_candidates: int) -> tuple[float, ...]:
    """Weights [num_candidates] that sum to 1."""
    generator = np.random.default_rng((params.seed, num_tokens))
    if params.draw == "simplex":
        return tuple(generator.dirichlet(np.ones(num_candidates)).tolist())
    chosen = int(generator.integers(num_candidates))
    return tuple(float(index == chosen) for index in range(num_candidates))


def _rule(params: Mapping[str, Any], num_candidates: int) -> Rule:
    parsed = parse_params(RandomParams, "random", params)
    return lambda num_prompt_tokens, num_tokens: draw(parsed, num_tokens, num_candidates)


SPEC = RouterSpec(
    name="random",
    summary="Weights drawn at random, by a seed.",
    params=RandomParams,
    request=lambda services: RandomRequestRouter(),
    token=lambda services: InstantTokenRouter(_rule, wake=services.wake),
)
