"""What is measured: who runs under which mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Mixture = dict[str, Any] | None
MixtureOf = Callable[[int, Sequence[str]], Mixture]

NUM_ADAPTERS = 8


@dataclass(frozen=True, slots=True)
class Case:
    """`mixture_of(i, adapters)` is the `mixture` of request number i; None is the base."""

    name: str
    title: str
    mixture_of: MixtureOf
    needs_encoder: bool = False


def _base(index: int, adapters: Sequence[str]) -> Mixture:
    return None


def _one_adapter(index: int, adapters: Sequence[str]) -> Mixture:
    return _weighted([(adapters[0], 1.0)])


def _eight_adapters(index: int, adapters: Sequence[str]) -> Mixture:
    return _weighted([(adapters[index % NUM_ADAPTERS], 1.0)])


def _mixtures_of_four(index: int, adapters: Sequence[str]) -> Mixture:
    first = index % NUM_ADAPTERS
    weights = (0.4, 0.3, 0.2, 0.1)
    names = (adapters[(first + offset) % NUM_ADAPTERS] for offset in range(len(weights)))
    return _weighted(list(zip(names, weights, strict=True)))


def _token_routed(index: int, adapters: Sequence[str]) -> Mixture:
    return {
        "router": {
            "name": "similarity",
            "level": "token",
            "every": 2,
            "candidates": list(adapters[:4]),
            "scoring": "softmax",
            "temperature": 0.1,
            "context": "keep",
        }
    }


def _weighted(pairs: Sequence[tuple[str, float]]) -> Mixture:
    return {"adapters": [{"name": name, "weight": weight} for name, weight in pairs]}


CASES = (
    Case("base", "base model", _base),
    Case("one", "one adapter", _one_adapter),
    Case("eight", "eight adapters", _eight_adapters),
    Case("mixtures", "eight mixtures of four", _mixtures_of_four),
    Case("token-routed", "token-routed over four", _token_routed, needs_encoder=True),
)


def choose_cases(names: Sequence[str]) -> list[Case]:
    """The cases of these names, in the order of `CASES`; all of them for none.

    Raises ValueError for a name that is not a case.
    """
    known = {case.name for case in CASES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"no such case: {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    return [case for case in CASES if not names or case.name in names]


def request_body(prompt: str, max_new_tokens: int, mixture: Mixture) -> dict[str, Any]:
    """A greedy request of an exact length."""
    body: dict[str, Any] = {
        "inputs": prompt,
        "parameters": {
            "max_new_tokens": max_new_tokens,
            "temperature": 0,
            "ignore_eos_token": True,
        },
    }
    return body if mixture is None else {**body, "mixture": mixture}
