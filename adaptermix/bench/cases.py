"""What is asked for: who runs under which mixture, with which prompt, for how long."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from adaptermix.bench.chance import picks
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.lengths import Lengths, stratified
from adaptermix.bench.prompts import TokenCount, make_prompts

CaseName = Literal["base", "one", "many", "mixtures", "given", "similarity", "merged"]
CASES: tuple[CaseName, ...] = get_args(CaseName)
PEER_CASES = ("base", "one", "many")  # what any server with adapters can be asked for


@dataclass(frozen=True, slots=True)
class CaseMixture:
    """Adapters with weights, or with a router that chooses them. None at all is the base."""

    adapters: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()  # empty where a router chooses
    router: Literal["given", "similarity"] | None = None
    every: int = 1  # tokens between two renewals
    rows: tuple[tuple[float, ...], ...] = ()  # of `given`: the weights of each token

    def body(self) -> dict[str, Any] | None:
        """As `mixture` of a request to AdapterMix."""
        if not self.adapters:
            return None
        if self.router is None:
            pairs = zip(self.adapters, self.weights, strict=True)
            return {"adapters": [{"name": name, "weight": weight} for name, weight in pairs]}
        return {
            "router": {
                "name": self.router,
                "level": "token",
                "every": self.every,
                "candidates": list(self.adapters),
                "context": "keep",
                **self.params(),
            }
        }

    def params(self) -> dict[str, Any]:
        """Parameters of the router itself."""
        if self.router == "given":
            return {"weights": [list(row) for row in self.rows]}
        return {"scoring": "softmax", "temperature": 0.1}


@dataclass(frozen=True, slots=True)
class Job:
    """One request: greedy, of an exact length, past any end-of-text token."""

    prompt: str
    max_new_tokens: int
    mixture: CaseMixture = CaseMixture()


@dataclass(frozen=True, slots=True)
class Population:
    """The adapters that there are, and how they are asked for.

    `alpha` is Zipf's exponent of popularity; None asks for each in turn.
    """

    names: tuple[str, ...]
    mixtures: int = 8
    mixture_size: int = 4
    alpha: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.names and not 1 <= self.mixture_size <= len(self.names):
            raise BenchmarkError(
                f"mixture_size is {self.mixture_size}; with {len(self.names)} adapters it must be "
                f"from 1 to {len(self.names)}"
            )

    def title(self, case: str) -> str:
        """What a reader calls the case."""
        size = self.mixture_size
        return {
            "base": "base model",
            "one": "one adapter",
            "many": f"{len(self.names)} adapters",
            "mixtures": f"{self.mixtures} mixtures of {size}",
            "given": f"given weights over {size}, {_every(self.every)}",
            "similarity": f"similarity over {size}, {_every(self.every)}",
            "merged": f"one merged mixture of {size}",
        }[case]

    def choices(self, case: str) -> int:
        """How many different mixtures a case asks for."""
        if case in ("mixtures", "given"):
            return self.mixtures
        return len(self.names) if case == "many" else 1

    def mixture(self, case: str, choice: int, new_tokens: int) -> CaseMixture:
        """CaseMixture number `choice` of a case; `new_tokens` is the length of the answer."""
        makers: dict[str, Callable[[], CaseMixture]] = {
            "base": CaseMixture,
            "one": lambda: CaseMixture((self.names[0],), (1.0,)),
            "many": lambda: CaseMixture((self.names[choice],), (1.0,)),
            "mixtures": lambda: CaseMixture(self._members(choice), self._weights()),
            "merged": lambda: CaseMixture(self._members(0), self._weights()),
            "given": lambda: self._given(choice, new_tokens),
            "similarity": lambda: CaseMixture(
                self._members(0), router="similarity", every=self.every
            ),
        }
        return makers[case]()

    def _members(self, first: int) -> tuple[str, ...]:
        return tuple(self.names[(first + i) % len(self.names)] for i in range(self.mixture_size))

    def _weights(self) -> tuple[float, ...]:
        """Falling in equal steps, sum 1: of four they are 0.4, 0.3, 0.2, 0.1."""
        whole = self.mixture_size * (self.mixture_size + 1) / 2
        return tuple((self.mixture_size - index) / whole for index in range(self.mixture_size))

    def _given(self, choice: int, new_tokens: int) -> CaseMixture:
        """The weights of `mixtures`, turned by one place at each token: no two rows are alike."""
        weights, size = self._weights(), self.mixture_size
        rows = tuple((*weights[row % size :], *weights[: row % size]) for row in range(new_tokens))
        return CaseMixture(self._members(choice), router="given", every=self.every, rows=rows)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Makes the jobs of each part of a run; equal seeds give equal jobs."""

    population: Population
    prompts: Lengths
    outputs: Lengths
    count_tokens: TokenCount
    seed: int = 0

    def jobs(self, case: str, count: int, part: str) -> list[Job]:
        """`count` jobs whose prompts no other case or part has: none is in the prefix cache."""
        name = f"{self.seed} {case} {part} {count} {len(self.population.names)}"
        chooser = random.Random(name)
        texts = make_prompts(stratified(self.prompts, count, chooser), name, self.count_tokens)
        sizes = stratified(self.outputs, count, chooser)
        choices = self.picks(case, count, part)
        return [
            Job(text, size, self.population.mixture(case, choice, size))
            for text, size, choice in zip(texts, sizes, choices, strict=True)
        ]

    def picks(self, case: str, count: int, part: str) -> list[int]:
        """Which mixture each of the jobs runs under."""
        seed = zlib.crc32(f"{self.seed} {case} {part}".encode())
        return picks(count, self.population.choices(case), self.population.alpha, seed)


def choose_cases(names: Sequence[str]) -> list[CaseName]:
    """The cases of these names, in the order of `CASES`; raises BenchmarkError for others."""
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise BenchmarkError(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    return [case for case in CASES if case in names]


def _every(tokens: int) -> str:
    return "every token" if tokens == 1 else f"every {tokens} tokens"
