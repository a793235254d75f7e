"""The router `uniform`: every candidate at the same weight, whatever the text. An ablation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from router_engine.routers.instant import InstantTokenRouter, Rule
from router_engine.routers.params import parse_params
from router_engine.routers.registry import RouterSpec


class UniformParams(BaseModel):
    """The router `uniform` takes no parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class UniformRequestRouter:
    """`RequestRouter`: w_j = 1 / k."""

    async def route(
        self, prompt_text: str, candidates: Sequence[str], params: Mapping[str, Any]
    ) -> tuple[float, ...]:
        parse_params(UniformParams, "uniform", params)
        return _equal(len(candidates))


def _equal(num_candidates: int) -> tuple[float, ...]:
    return (1 / num_candidates,) * num_candidates


def _rule(params: Mapping[str, Any], num_candidates: int) -> Rule:
    parse_params(UniformParams, "uniform", params)
    weights = _equal(num_candidates)
    return lambda num_prompt_tokens, num_tokens: weights


SPEC = RouterSpec(
    name="uniform",
    summary="Every candidate at the same weight.",
    params=UniformParams,
    request=lambda services: UniformRequestRouter(),
    token=lambda services: InstantTokenRouter(_rule, wake=services.wake),
)
