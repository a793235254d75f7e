"""The choice of copies of an adapter that keeps them apart (AdaMix)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from router_engine.request import MAX_MEMBERS
from server.schemas.base import Body, Many

MAX_SEED = 2**62  # seeds of an ensemble's members count up from its own
_WEIGHTS = Field(
    default=None,
    min_length=1,
    max_length=1024,
    description="One weight a copy, any finite numbers. Left out: the side's average.",
)


class AverageCopies(Body):
    """The average that the adapter was published with: the same as no `copies`."""

    mode: Literal["average"]


class SoupCopies(Body):
    """An average with weights of your own, the same at all places of the model."""

    mode: Literal["soup"]
    down: Many[float] | None = _WEIGHTS
    up: Many[float] | None = _WEIGHTS


class StochasticCopies(Body):
    """At each place one copy of each side, drawn uniformly and apart from all others."""

    mode: Literal["stochastic"]
    seed: int = Field(default=0, ge=0, lt=MAX_SEED, description="Same seed, same copies.")


class EnsembleCopies(Body):
    """Several such draws answer together: each token comes of the mean of their probabilities.

    It costs as much as so many requests. With details each token then carries `uncertainty`.
    """

    mode: Literal["ensemble"]
    members: int = Field(
        ge=2, le=MAX_MEMBERS, description="How many draws; their seeds count up from `seed`."
    )
    seed: int = Field(default=0, ge=0, lt=MAX_SEED)


CopiesChoice = Annotated[
    AverageCopies | SoupCopies | StochasticCopies | EnsembleCopies, Field(discriminator="mode")
]
