"""The requests of a soak: every API under every kind of mixture, each with a known answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adaptermix.bench.soak.settings import SoakSettings
from adaptermix.bench.workload import TokenCount, make_prompts

MOVING = "moving"  # an adapter of two versions, whose alias wanders
ALIAS = "live"
VERSIONS = (1, 2)
FRESH = ("fresh-0", "fresh-1", "fresh-2", "fresh-3")  # published and deleted all the time
_MOST_PROMPT = 72
_LEAST_PROMPT = 24
_TOP = 2  # of the likeliest tokens, to tell a tie
_SCORED = 3

Route = Literal["/generate", "/v1/completions", "/v1/chat/completions", "/score"]
Mixture = Mapping[str, Any] | None
Maker = Callable[[random.Random, Sequence[str]], Mixture]


@dataclass(frozen=True, slots=True)
class SoakRequest:
    """One request. `asks` are those that give its references: itself, but for a moving alias."""

    route: Route
    body: Mapping[str, Any]
    kind: str
    asks: tuple[Mapping[str, Any], ...] = ()
    others: tuple[Mapping[str, Any], ...] = ()  # whose answers must not pass for its own
    comes_and_goes: str | None = None  # an adapter that need not be there

    @property
    def streams(self) -> bool:
        return self.route != "/score"


def questions(
    settings: SoakSettings, adapters: Sequence[str], base: str, count_tokens: TokenCount
) -> list[SoakRequest]:
    """As many as the settings say, kinds and routes in turn."""
    chooser = random.Random(f"questions {settings.seed}")
    lengths = [
        chooser.randint(_LEAST_PROMPT, _MOST_PROMPT) for _ in range(max(2, settings.questions // 4))
    ]
    prompts = make_prompts(lengths, f"soak {settings.seed}", count_tokens)
    turns = _turns(settings.questions)
    return [
        _question(kind, route, chooser, adapters, base, prompts[index % len(prompts)], settings)
        for index, (kind, route) in enumerate(turns)
    ]


def _turns(count: int) -> Iterator[tuple[str, Route]]:
    """Kinds in turn; each comes to every route."""
    routes = tuple(_BODIES)
    for index in range(count):
        kind = index % len(KINDS)
        yield tuple(KINDS)[kind], routes[(index // len(KINDS) + kind) % len(routes)]


def _question(
    kind: str,
    route: Route,
    chooser: random.Random,
    adapters: Sequence[str],
    base: str,
    prompt: str,
    settings: SoakSettings,
) -> SoakRequest:
    mixture = KINDS[kind](chooser, adapters)
    new_tokens = chooser.randint(max(1, settings.new_tokens // 2), settings.new_tokens)

    def body(mixture: Mixture) -> Mapping[str, Any]:
        return _BODIES[route](prompt, mixture, new_tokens, base)

    if kind == "alias":
        asks = tuple(body(_fixed({f"{MOVING}@{version}": 1.0})) for version in VERSIONS)
        return SoakRequest(route, body(mixture), kind, asks)
    name = mixture["adapters"][0]["name"] if kind == "fresh" and mixture is not None else None
    others = (body(None),) if kind in ("one adapter", "fresh") else ()
    return SoakRequest(route, body(mixture), kind, (body(mixture),), others, name)


def _fixed(weights: Mapping[str, float], combination: str = "sum") -> Mixture:
    adapters = [{"name": name, "weight": weight} for name, weight in weights.items()]
    return {"adapters": adapters, "combination": combination}


def _one(chooser: random.Random, adapters: Sequence[str]) -> Mixture:
    return _fixed({chooser.choice(adapters): 1.0})


def _several(combination: str) -> Maker:
    def make(chooser: random.Random, adapters: Sequence[str]) -> Mixture:
        chosen = chooser.sample(list(adapters), chooser.randint(2, 4))
        return _fixed({name: round(chooser.uniform(0.2, 0.8), 2) for name in chosen}, combination)

    return make


def _routed(name: str, level: str, **parameters: Any) -> Maker:
    """No `top_k`: where two scores are close, a cut would turn rounding into another answer."""

    def make(chooser: random.Random, adapters: Sequence[str]) -> Mixture:
        candidates = chooser.sample(list(adapters), 4)
        router = {"name": name, "level": level, "candidates": candidates, "top_k": 4}
        return {"router": router | parameters}

    return make


KINDS: Mapping[str, Maker] = {
    "base": lambda *_: None,
    "one adapter": _one,
    "sum": _several("sum"),
    "linear": _several("linear"),
    "request-routed": _routed("similarity", "request"),
    "token-routed": _routed("similarity", "token", every=4),
    "hidden_mean": _routed("hidden_mean", "token"),
    "arrow": _routed("arrow", "layer"),
    "alias": lambda *_: _fixed({f"{MOVING}@{ALIAS}": 1.0}),
    "fresh": lambda chooser, _: _fixed({chooser.choice(FRESH): 1.0}),
}


def _generate(prompt: str, mixture: Mixture, new_tokens: int, _: str) -> Mapping[str, Any]:
    parameters = {
        "max_new_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos_token": True,
        "details": True,
        "top_n_tokens": _TOP,
    }
    return _under({"inputs": prompt, "parameters": parameters}, mixture)


def _openai(mixture: Mixture, new_tokens: int, base: str) -> Mapping[str, Any]:
    body = {
        "model": base,
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "routing": True,
    }
    return _under(body, mixture)


def _completion(prompt: str, mixture: Mixture, new_tokens: int, base: str) -> Mapping[str, Any]:
    return {**_openai(mixture, new_tokens, base), "prompt": prompt, "logprobs": _TOP}


def _chat(prompt: str, mixture: Mixture, new_tokens: int, base: str) -> Mapping[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    top = {"logprobs": True, "top_logprobs": _TOP}
    return {**_openai(mixture, new_tokens, base), "messages": messages, **top}


def _score(prompt: str, mixture: Mixture, new_tokens: int, _: str) -> Mapping[str, Any]:
    words = prompt.split()
    completions = [f" {' '.join(words[-n:])}" for n in range(1, 1 + min(_SCORED, len(words)))]
    return _under({"inputs": prompt, "completions": completions}, mixture)


def _under(body: Mapping[str, Any], mixture: Mixture) -> Mapping[str, Any]:
    return body if mixture is None else {**body, "mixture": mixture}


_BODIES: Mapping[Route, Callable[[str, Mixture, int, str], Mapping[str, Any]]] = {
    "/generate": _generate,
    "/v1/completions": _completion,
    "/v1/chat/completions": _chat,
    "/score": _score,
}
