"""Says why a request can never run, before it takes any space, or why it cannot go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from router_engine.kv.block_table import blocks_for
from router_engine.request import (
    MAX_LAG,
    MAX_MEMBERS,
    EngineRequest,
    SamplingSpec,
    TokenRouting,
)

NO_MEMORY = (
    "the device has no memory for a step of this request alone: use a smaller kv_memory, "
    "adapter_memory or gpu_memory_utilization"
)
NOT_FINITE = (
    "what the model computes under this mixture is not finite: an adapter holds, or its weight "
    "makes, numbers too large for it; smaller weights may help"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask of this engine."""

    max_model_len: int  # tokens, prompt and generated together
    block_size: int
    num_blocks: int
    max_running: int  # sequences
    vocab_size: int = 1 << 31  # rows of the embedding: ids of tokens are below it


def refusal(request: EngineRequest, limits: Limits) -> str | None:
    """Every reason against `request`, each with field, value and what would work; None if none."""
    reasons = [
        *_size_reasons(request, limits),
        *_token_reasons(request, limits.vocab_size),
        *_mixture_reasons(request),
        *_ensemble_reasons(request, limits),
        *_sampling_reasons(request.sampling),
    ]
    return "; ".join(reasons) or None


def _size_reasons(request: EngineRequest, limits: Limits) -> Iterator[str]:
    prompt, new = len(request.prompt_token_ids), request.sampling.max_new_tokens
    if prompt == 0:
        yield "prompt_token_ids is empty: at least 1 token is needed"
    if prompt >= limits.max_model_len:
        yield (
            f"prompt_token_ids has {prompt} tokens: the model takes {limits.max_model_len}, of "
            "which at least 1 must be left to generate"
        )
        return
    # The last token is never fed back, so it needs no KV.
    most = min(prompt + new, limits.max_model_len) - 1
    room = limits.num_blocks * limits.block_size
    members = 1 + len(request.ensemble)
    if members * blocks_for(most, limits.block_size) > limits.num_blocks:
        each = f", for each of {members} members" if request.ensemble else ""
        yield (
            f"prompt_token_ids and max_new_tokens need KV for {prompt} + {new} - 1 tokens{each}: "
            f"the whole cache holds {room}"
        )


def _token_reasons(request: EngineRequest, vocab_size: int) -> Iterator[str]:
    forced = request.sampling.given_token_ids
    for name, ids in (("prompt_token_ids", request.prompt_token_ids), ("given_token_ids", forced)):
        # Of all requests, which are right: not token by token.
        if ids and (min(ids) < 0 or max(ids) >= vocab_size):
            wrong = next(one for one in ids if not 0 <= one < vocab_size)
            yield f"{name} holds {wrong}: the model knows the tokens 0 to {vocab_size - 1}"


def _ensemble_reasons(request: EngineRequest, limits: Limits) -> Iterator[str]:
    if not request.ensemble:
        return
    members = 1 + len(request.ensemble)
    if members > min(MAX_MEMBERS, limits.max_running):
        yield (
            f"ensemble has {members} members: {MAX_MEMBERS} are the most, and "
            f"{limits.max_running} sequences may run at a time"
        )
    for adapters in request.ensemble:
        if len(set(adapters)) != len(request.adapters) or len(adapters) != len(request.adapters):
            yield (
                f"ensemble has a member of {len(adapters)} adapters: each needs as many as "
                f"adapters has, {len(request.adapters)}, all different"
            )
    if (
        request.routing is not None
        or request.layer_routing is not None
        or request.reads_hidden_states
    ):
        yield "ensemble is given with a router: its members run under fixed weights"


def _mixture_reasons(request: EngineRequest) -> Iterator[str]:
    adapters, weights = request.adapters, request.weights
    twice = sorted(digest for digest, count in Counter(adapters).items() if count > 1)
    if twice:
        yield f"adapters has {', '.join(twice)} more than once: give each adapter one weight"
    if request.routing is None and request.layer_routing is None:
        if len(weights) != len(adapters):
            yield f"weights has {len(weights)} values: {len(adapters)} adapters need one each"
        problem = weights_problem(weights)
        if problem:
            yield problem
        return
    if weights:
        yield f"weights is {weights}: with routing it must be empty, the router chooses them"
    if not adapters:
        yield "adapters is empty: routing needs at least 1 candidate"
    if request.routing is not None:
        yield from _routing_reasons(
            request.routing, reads_hidden_states=request.reads_hidden_states
        )
    if request.layer_routing is not None:
        yield from _layer_routing_reasons(request)


def _routing_reasons(routing: TokenRouting, *, reads_hidden_states: bool) -> Iterator[str]:
    if routing.every < 1:
        yield f"routing.every is {routing.every}: it must be at least 1 token"
    if not 0 <= routing.lag <= MAX_LAG:
        yield f"routing.lag is {routing.lag}: it must be from 0 to {MAX_LAG} tokens"
    if routing.lag > 0 and routing.context == "recompute":
        yield (
            f"routing.lag is {routing.lag}: context 'recompute' waits for the newest weights, "
            "so it must be 0 there; context 'keep' takes any"
        )
    if reads_hidden_states and (routing.lag > 0 or routing.context != "keep"):
        yield (
            f"routing.lag is {routing.lag} and context {routing.context!r}: a router that reads "
            "hidden states takes lag 0 and context 'keep'"
        )


def _layer_routing_reasons(request: EngineRequest) -> Iterator[str]:
    if request.routing is not None or request.reads_hidden_states:
        yield "routing and layer_routing are both given: give one of them"
    if request.combination != "sum":
        yield f"combination is {request.combination!r}: layer_routing is defined for 'sum'"


def weights_problem(weights: Sequence[float]) -> str | None:
    """Why these cannot be mixture weights; None if they can."""
    if sum(map(abs, weights)) < _FLOAT32_OVERFLOW:  # false for NaN too
        return None
    bad = [weight for weight in weights if not _is_finite_float32(weight)]
    return f"weights has {bad[0]!r}: each must be a finite float32" if bad else None


def _is_finite_float32(value: float) -> bool:
    return abs(value) < _FLOAT32_OVERFLOW  # false for NaN too


def _sampling_reasons(sampling: SamplingSpec) -> Iterator[str]:
    for name, (least, most, words) in _SAMPLING_RANGES.items():
        value = getattr(sampling, name)
        if not least <= value <= most:  # false for NaN too
            yield f"{name} is {value!r}: it must be {words}"
    if sampling.min_new_tokens > sampling.max_new_tokens:
        yield (
            f"min_new_tokens is {sampling.min_new_tokens}: it must not be above max_new_tokens, "
            f"{sampling.max_new_tokens}"
        )
    forced = len(sampling.given_token_ids)
    if forced and (forced != sampling.max_new_tokens or sampling.stop_token_ids):
        yield (
            f"given_token_ids has {forced} tokens: max_new_tokens, {sampling.max_new_tokens}, must "
            "be as many, and stop_token_ids empty"
        )


_BIG = float(2**31)
_FLOAT32_OVERFLOW = 2.0**128 - 2.0**103  # from here on a float32 is rounded to infinity
_TINY = 1e-6
_SAMPLING_RANGES: dict[str, tuple[float, float, str]] = {
    "max_new_tokens": (1, _BIG, "at least 1"),
    "min_new_tokens": (0, _BIG, "at least 0"),
    "temperature": (0, _BIG, "at least 0 and finite (0 is greedy)"),
    "top_k": (0, _BIG, "at least 0 (0 is off)"),
    "top_p": (_TINY, 1, "above 0 and at most 1 (1 is off)"),
    "min_p": (0, 1, "from 0 to 1 (0 is off)"),
    "repetition_penalty": (_TINY, _BIG, "above 0 and finite (1 is off)"),
    "presence_penalty": (-_BIG, _BIG, "finite (0 is off)"),
    "frequency_penalty": (-_BIG, _BIG, "finite (0 is off)"),
    "top_n_tokens": (0, _BIG, "at least 0"),
}
