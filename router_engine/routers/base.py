"""The contract of a router: it chooses weights, and nothing else.

A request router runs once, before the request is submitted. A token router runs beside the engine:
it is told of tokens and later hands back weights; the engine never waits for it. A router that
reads hidden states runs in the engine, between two steps. A layer router says what every layer
computes for each token; no router runs in the step.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from router_engine.request import TokenRouting
from router_engine.sparse_weights import SparseWeights


@dataclass(frozen=True, slots=True)
class RoutedWeights:
    """Weights of `request_id` made from its first `num_tokens` tokens (prompt included)."""

    request_id: str
    num_tokens: int
    weights: tuple[float, ...] = ()  # one per candidate
    error: str | None = None  # the router failed; the request ends with it
    is_away: bool = False  # what failed may work later: the router's helper is away or too slow


class Prior(NamedTuple):
    """Weights before anything is known of a text, for so many tokens; None: for all of a prompt.

    window: of how many tokens, the latest, the means in questions are; None: of all.
    """

    weights: tuple[float, ...]
    num_tokens: int | None = None
    window: int | None = None


class HiddenQuery(NamedTuple):
    """mean [hidden]: of the states at the probe layer over a text's first `num_tokens`, but for the
    first.

    Of the latest of these only where the prior gave a window. None where there are none.
    """

    request_id: str
    num_tokens: int
    mean: NDArray[np.float32] | None


class HiddenWeights(NamedTuple):
    """Weights of `request_id` made from its first `num_tokens` tokens."""

    request_id: str
    num_tokens: int
    weights: SparseWeights


@dataclass(frozen=True, slots=True)
class LayerRoutingParams:
    """How layers weigh the candidates of a request: `kernels.reference.layer_routing`.

    softmax(score / temperature) over the `top_k` candidates that score highest at a layer.
    """

    router: str  # whose scores
    top_k: int
    temperature: float

    @property
    def key(self) -> bytes:
        """Canonical bytes: with equal candidates, KV is equal exactly where these are."""
        return self.router.encode() + struct.pack("<xqf", self.top_k, self.temperature)


LayerRouter = Callable[
    [Mapping[str, Any]], LayerRoutingParams
]  # from parameters; raises RouterInputError


class RequestRouter(Protocol):
    """Makes the weights of a whole request from its prompt. Called from the server's loop."""

    async def route(
        self, prompt_text: str, candidates: Sequence[str], params: Mapping[str, Any]
    ) -> tuple[float, ...]:
        """One weight per candidate digest; raises RouterError when there are none."""
        ...


class TokenRouter(Protocol):
    """Makes weights for the next token from the text so far. Called by the engine thread only."""

    def begin(
        self,
        request_id: str,
        token_ids: Sequence[int],
        candidates: Sequence[str],
        routing: TokenRouting,
    ) -> None:
        """Start on a request's prompt; an answer with num_tokens = len(token_ids) will follow."""

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Append generated tokens and ask for weights from the longer text."""

    def end(self, request_id: str) -> None:
        """Forget a request; an answer on its way may still come and is dropped by the engine."""

    def poll(self) -> Sequence[RoutedWeights]:
        """Answers that have come since the last call; never blocks."""
        ...

    def close(self) -> None: ...


class HiddenRouter(Protocol):
    """Makes weights from the base's hidden states at the probe layer. Called by the engine thread
    only.

    It answers at once, for all requests of a step together.
    """

    def put(self, centroids: Mapping[str, Sequence[float]]) -> None:
        """Keep of adapters, by digest, the means of e and of e^2 over their texts [2 hidden]."""

    def begin(self, request_id: str, candidates: Sequence[str], routing: TokenRouting) -> Prior:
        """Start on a request. Raises RouterError when it cannot be routed."""
        ...

    def weigh(self, questions: Sequence[HiddenQuery]) -> Sequence[HiddenWeights]:
        """One answer a question."""
        ...

    def end(self, request_id: str) -> None:
        """Forget a request; unknown ids are ignored."""
