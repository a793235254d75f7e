"""Requests of a step: how many, how long their prompts are, and what each runs under.

Each row owns its KV: prompts differ from their first token on, so that no two rows of a batch share
a block of the cache. What is shared is between turns: row i finds, in the prefix cache, the blocks
that row i of an earlier turn has left, and computes the rest of its last block only.

Prompts that are long together (`Work.shares`) are computed once, under the base, and serve every
case. Their requests bring weights for each token, as the router `given` takes them: all 0 at first,
which is the base, whose blocks they therefore find; those of the case from a token on that comes
before the timed ones. Nothing else changes from there to the end of the timed steps.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from benchmarks.gpu.settings import MEMBERS
from router_engine.request import EngineRequest, SamplingSpec, TokenRouting

CaseName = Literal["base", "mixtures", "eight", "routed", "distinct", "hidden"]
CASES: tuple[CaseName, ...] = get_args(CaseName)
OF_A_FEW: tuple[CaseName, ...] = ("mixtures", "eight", "routed", "hidden")

_WARM_UP = 3  # tokens of each request before the timed ones
_MARGIN = 16  # steps between the first row's first token and the last row's


@dataclass(frozen=True, slots=True)
class CardBatch:
    """So many requests with prompts of so many tokens; `first`: of the first one, if it differs."""

    requests: int
    context: int
    first: int | None = None

    @property
    def title(self) -> str:
        if self.first is None:
            return f"{self.requests} x {self.context}"
        return f"1 x {self.first} and {self.requests - 1} x {self.context}"

    @property
    def tokens(self) -> int:
        """Of all prompts."""
        return sum(map(self.length, range(self.requests)))

    def length(self, row: int) -> int:
        """Tokens of a row's prompt."""
        return self.context if row or self.first is None else self.first

    def kv_tokens(self, steps: int) -> int:
        """That all rows take by the end of so many timed steps, in whole blocks or less."""
        return self.tokens + self.requests * (2 * (steps + _WARM_UP + _MARGIN) + 16)


@dataclass(frozen=True, slots=True)
class TurnRequests:
    """The requests of one turn. skip: tokens of each that come before the timed steps."""

    requests: Sequence[EngineRequest]
    skip: int


class Work:
    """Makes the requests of a model's vocabulary over adapters with these digests, by case.

    own_tokens: of a batch's prompts together, up to which each case computes its own.
    """

    def __init__(
        self, vocabulary: int, digests: Mapping[CaseName, Sequence[str]], own_tokens: int
    ) -> None:
        self._vocabulary = vocabulary
        self._digests = digests
        self._own_tokens = own_tokens
        self._turns = 0

    def shares(self, case: CaseName, batch: CardBatch) -> bool:
        """Whether prompts run under the base and the case comes later.

        The router `hidden_mean` needs blocks of its own, which say what it read there.
        """
        return batch.tokens > self._own_tokens and case not in ("base", "hidden")

    def turn(self, case: CaseName, batch: CardBatch, steps: int, *, seed: int = 0) -> TurnRequests:
        """A turn of so many timed steps. Equal seeds have equal prompts."""
        self._turns += 1
        later = steps + _WARM_UP + _MARGIN  # the token from which it is of its case
        is_late = self.shares(case, batch) and case != "routed"  # which begins so anyhow
        skip = (later if is_late else 0) + _WARM_UP
        sampling = SamplingSpec(max_new_tokens=skip + steps + _MARGIN)
        requests = []
        for row in range(batch.requests):
            fields = self._fields(case, batch, row, sampling.max_new_tokens)
            if is_late:
                fields = _from_token(fields, later)
            requests.append(
                EngineRequest(
                    f"{self._turns} {row}", self._prompt(batch, row, seed), sampling, **fields
                )
            )
        return TurnRequests(requests, skip)

    def _prompt(self, batch: CardBatch, row: int, seed: int) -> tuple[int, ...]:
        generator = np.random.default_rng((seed, row))
        return tuple(generator.integers(3, self._vocabulary, batch.length(row)).tolist())

    def _fields(self, case: CaseName, batch: CardBatch, row: int, tokens: int) -> dict[str, Any]:
        """Adapters and weights, or a routing, of a row with so many new tokens at most."""
        digests = tuple(self._digests.get(case, ()))
        chance = random.Random(row)
        if case == "base":
            return {}
        if case == "eight":
            return _mixture((digests[row % len(digests)],), chance)
        if case == "mixtures":  # weights of its own for each row
            return _mixture(tuple(chance.sample(digests, MEMBERS)), chance)
        if case == "distinct":  # as many in one step as there are, up to four a row
            size = min(MEMBERS, max(1, len(digests) // batch.requests))
            chosen = {digests[(row * size + i) % len(digests)]: None for i in range(size)}
            return _mixture(tuple(chosen), chance)
        if case == "routed":  # other weights for every token; the prompt runs under the base
            rows = [tuple(chance.uniform(0.1, 0.5) for _ in digests) for _ in range(tokens)]
            weights = (_zeros(len(digests)), *rows)
            return {"adapters": digests, "routing": TokenRouting("given", {"weights": weights})}
        routing = TokenRouting("hidden_mean", {"top_k": MEMBERS})
        return {"adapters": digests, "routing": routing, "reads_hidden_states": True}


def centroids(digests: Sequence[str], hidden: int) -> dict[str, list[float]]:
    """What `hidden_mean` knows adapters by, drawn at random: [2 hidden] each."""
    generator = np.random.default_rng(0)
    means = generator.normal(size=(len(digests), hidden))
    rows = np.concatenate((means, means**2 + 1), axis=1)
    return {digest: row.tolist() for digest, row in zip(digests, rows, strict=True)}


def _mixture(digests: tuple[str, ...], chance: random.Random) -> dict[str, Any]:
    weights = (1.0,) if len(digests) == 1 else tuple(chance.uniform(0.1, 0.5) for _ in digests)
    return {"adapters": digests, "weights": weights}


def _from_token(fields: Mapping[str, Any], token: int) -> dict[str, Any]:
    """The same under the base up to a token, by a router that is asked again there only."""
    weights = fields["weights"]
    rows = (_zeros(len(weights)),) * token + (weights,) * (token + 1)
    return {
        "adapters": fields["adapters"],
        "routing": TokenRouting("given", {"weights": rows}, every=token),
    }


def _zeros(count: int) -> tuple[float, ...]:
    return (0.0,) * count
