"""Events of requests, from the engine: any number of token events, then exactly one final event."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import msgspec


class FinishReason(StrEnum):
    """Why a request ended."""

    LENGTH = "length"  # max_new_tokens reached
    STOP_TOKEN = "stop_token"  # drew one of stop_token_ids
    CANCELLED = "cancelled"
    REFUSED = "refused"  # can never run; `error` says why
    FAILED = "failed"  # an adapter failed to load, a router failed; `error` says why
    ROUTER_AWAY = "router_away"  # its router's helper is away or too slow; `error` says why
    ENGINE_DIED = "engine_died"


class TokenUncertainty(msgspec.Struct, frozen=True):
    """How unsure a next token is, in nats. p = mean_i p_i over an ensemble's members.

    entropy: H[p]. mutual_information: H[p] - mean_i H[p_i], what the members disagree on; None
    where there is but one sequence. Source: Houlsby et al., "Bayesian Active Learning" (2011).
    """

    entropy: float
    mutual_information: float | None = None


class TokenEvent(msgspec.Struct, frozen=True):
    """One generated token.

    `weights` are those of the pass whose logits yielded it, one per request adapter; empty unless
    asked for with `Reports.weights`.
    """

    request_id: str
    token_id: int
    logprob: float  # log softmax of the raw logits, before temperature and penalties
    top_tokens: tuple[tuple[int, float], ...] = ()  # (id, logprob), best first
    weights: tuple[float, ...] = ()
    uncertainty: TokenUncertainty | None = None  # of ensembles, and with `report_entropy`


class GateStatistics(msgspec.Struct, frozen=True):
    """What the routers inside layers said of one adapter's experts, over a request's tokens.

    mean, std [layers][experts]: of each gate; the population's standard deviation. None where a
    layer has no such gate. spread: the standard deviation over the experts of one token, in the
    mean of tokens and layers (MoA 2025: how far a router tells experts apart). closed: the part of
    all gates that are 0.
    """

    adapter: str  # digest
    tokens: int
    mean: tuple[tuple[float | None, ...], ...]
    std: tuple[tuple[float | None, ...], ...]
    spread: float
    closed: float


@dataclass(frozen=True, slots=True)
class FinalEvent:
    """The end of a request, whatever happened."""

    request_id: str
    reason: FinishReason
    error: str | None = None
    stop_token_id: int | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens whose KV came from the prefix cache
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    queue_seconds: float = 0.0  # from submission to the first scheduled token
    hidden: tuple[float, ...] = ()  # with `Reports.hidden_mean`
    gates: tuple[GateStatistics, ...] = ()  # with `Reports.gates`: of adapters that have any


EngineEvent = TokenEvent | FinalEvent
