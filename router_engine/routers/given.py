"""The token router `given`: the request brings its weights. An oracle, and routing at no cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from router_engine.routers.errors import RouterInputError
from router_engine.routers.instant import InstantTokenRouter, Rule
from router_engine.routers.params import parse_params
from router_engine.routers.registry import RouterSpec

MAX_NUMBERS = 65_536  # rows times candidates

Number = Annotated[float, Strict()]  # no text, no bool
Row = Annotated[tuple[Number, ...], Field(fail_fast=True, max_length=MAX_NUMBERS)]


class GivenParams(BaseModel):
    """Parameters of the router `given`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    weights: tuple[Row, ...] = Field(
        min_length=1,
        max_length=MAX_NUMBERS,
        fail_fast=True,
        description="One row per generated token, one number per candidate: row i is in force in "
        "the pass that yields token i. With `every: n` rows 0, n, 2n, ... are used. At most "
        f"{MAX_NUMBERS} numbers.",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_many(cls, data: Any) -> Any:
        rows = data.get("weights") if isinstance(data, Mapping) else None
        if isinstance(rows, list | tuple):
            numbers = sum(len(row) for row in rows if isinstance(row, list | tuple))
            if numbers > MAX_NUMBERS:
                raise ValueError(f"weights has {numbers} numbers; at most {MAX_NUMBERS}")
        return data


class GivenTokenRouter(InstantTokenRouter):
    """`TokenRouter` that answers with the rows of the request."""

    def __init__(self, *, wake: Callable[[], None] = lambda: None) -> None:
        super().__init__(_rule, wake=wake)


def _rule(params: Mapping[str, Any], num_candidates: int) -> Rule:
    rows = parse_params(GivenParams, "given", params).weights
    _require_width(rows, num_candidates)

    def weights(num_prompt_tokens: int, num_tokens: int) -> tuple[float, ...]:
        row = num_tokens - num_prompt_tokens
        if row >= len(rows):
            raise RouterInputError(f"weights has {len(rows)} rows; token {row} needs one more")
        return rows[row]

    return weights


def _require_width(rows: tuple[tuple[float, ...], ...], num_candidates: int) -> None:
    for index, row in enumerate(rows):
        if len(row) != num_candidates:
            raise RouterInputError(
                f"router 'given': weights.{index} has {len(row)} numbers for "
                f"{num_candidates} candidates"
            )


SPEC = RouterSpec(
    name="given",
    summary="The request brings the weights of every token.",
    params=GivenParams,
    token=lambda services: GivenTokenRouter(wake=services.wake),
)
