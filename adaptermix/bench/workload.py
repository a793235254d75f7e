"""The requests of a run: cases of mixtures, prompts of given lengths, popularity, arrivals."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from adaptermix.bench.errors import BenchmarkError


def zipf(count: int, alpha: float) -> NDArray[np.float64]:
    """Probabilities [count]: p_i proportional to (i + 1)^-alpha; alpha 0 is uniform."""
    weights = np.arange(1, count + 1, dtype=np.float64) ** -alpha
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares


def picks(count: int, choices: int, alpha: float | None, seed: int) -> list[int]:
    """`count` numbers below `choices`: each in turn for alpha None, else drawn by `zipf`."""
    if alpha is None:
        return [index % choices for index in range(count)]
    drawn = np.random.default_rng(seed).choice(choices, size=count, p=zipf(choices, alpha))
    return [int(index) for index in drawn]


def poisson_arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds after the start at which `count` requests come: `rate` a second, gaps exponential."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=count)
    return [float(moment) for moment in np.cumsum(gaps) - gaps[0]]


FORMS = "fixed:N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA:MAX"


class Lengths(Protocol):
    """A distribution over whole numbers, at least 1, as its quantile function."""

    @property
    def longest(self) -> int: ...

    def quantile(self, share: float) -> int:
        """The length below which `share` (in (0, 1)) of all lie."""
        ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """Every length from `low` to `high`, both included, alike often."""

    low: int
    high: int

    @property
    def longest(self) -> int:
        return self.high

    def quantile(self, share: float) -> int:
        """See `Lengths.quantile`."""
        return self.low + int(share * (self.high - self.low + 1))


@dataclass(frozen=True, slots=True)
class Lognormal:
    """exp(N(log median, sigma^2)), rounded, cut off at `longest`: few are long, as in chats."""

    median: int
    sigma: float
    longest: int

    def quantile(self, share: float) -> int:
        """See `Lengths.quantile`."""
        normal = NormalDist(math.log(self.median), self.sigma) if self.sigma else None
        length = math.exp(normal.inv_cdf(share)) if normal else self.median
        return max(1, min(self.longest, round(length)))


def parse_lengths(text: str) -> Lengths:
    """Read one of the FORMS. Raises BenchmarkError with them for anything else."""
    kind, *numbers = text.split(":")
    try:
        match kind, numbers:
            case "fixed", [length]:
                return _checked(text, Uniform(int(length), int(length)))
            case "uniform", [low, high]:
                return _checked(text, Uniform(int(low), int(high)))
            case "lognormal", [median, sigma, longest]:
                return _checked(text, Lognormal(int(median), float(sigma), int(longest)))
    except ValueError:
        pass
    raise BenchmarkError(f"lengths {text!r}: write {FORMS}")


def _checked(text: str, lengths: Uniform | Lognormal) -> Lengths:
    if isinstance(lengths, Uniform):
        sound = 1 <= lengths.low <= lengths.high
    else:
        sound = 1 <= lengths.median <= lengths.longest and 0 <= lengths.sigma < math.inf
    if not sound:
        raise BenchmarkError(f"lengths {text!r}: numbers must be at least 1 and in rising order")
    return lengths


def stratified(lengths: Lengths, count: int, chooser: random.Random) -> list[int]:
    """`count` lengths, one from the middle of each of `count` equal shares, in random order.

    Rounds then differ in the order of their work and not in its amount.
    """
    drawn = [lengths.quantile((index + 0.5) / count) for index in range(count)]
    chooser.shuffle(drawn)
    return drawn


_TEXT = (
    "a baker sells twelve loaves every morning and twice as many on market days while her brother "
    "carries water from the river to seven houses near the old mill where wind and light change "
    "with each season so they count coins measure flour write letters plant trees repair clocks "
    "read maps teach children mend nets and watch the stars over quiet hills"
)

TokenCount = Callable[[str], int]


def make_prompts(targets: Sequence[int], seed: str, count_tokens: TokenCount) -> list[str]:
    """One prompt for each target: random words with at most so many tokens, nearly as many.

    `count_tokens` tells the length of a text in the tokens of the model that is measured. Equal
    seeds give equal prompts. A prompt has at least one word.
    """
    chooser = random.Random(seed)
    return [_prompt(chooser, target, count_tokens) for target in targets]


def _prompt(chooser: random.Random, target: int, count_tokens: TokenCount) -> str:
    """Words as long as they fit. Many are added at a time while much is missing."""
    words = _TEXT.split()
    text = chooser.choice(words)
    missing = target - count_tokens(text)
    while missing > 0:
        # A word of the text has at most nine letters, so at most ten tokens of any tokenizer.
        more = " ".join(chooser.choices(words, k=max(1, missing // 10)))
        longer = f"{text} {more}"
        if count_tokens(longer) > target:
            break
        text = longer
        missing = target - count_tokens(text)
    return text


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
    """The adapters of a run, and the mixtures of them that are asked for."""

    names: tuple[str, ...]
    mixtures: int = 8  # different ones
    mixture_size: int = 4  # adapters in each
    alpha: float | None = None  # Zipf's exponent of popularity; None asks for each in turn
    every: int = 1  # tokens between two renewals by a router

    def __post_init__(self) -> None:
        if self.names and not 1 <= self.mixture_size <= len(self.names):
            raise BenchmarkError(
                f"mixture_size is {self.mixture_size}; with {len(self.names)} adapters it must be "
                f"from 1 to {len(self.names)}"
            )

    def title(self, case: str) -> str:
        """The case in a reader's words."""
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
        """The number of different mixtures that a case asks for."""
        if case in ("mixtures", "given"):
            return self.mixtures
        return len(self.names) if case == "many" else 1

    def mixture(self, case: str, choice: int, new_tokens: int) -> CaseMixture:
        """The mixture number `choice` of a case; `new_tokens` is the length of the answer."""
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
    """The jobs of each part of a run; equal seeds give equal jobs."""

    population: Population
    prompts: Lengths  # in tokens
    outputs: Lengths
    count_tokens: TokenCount  # of the model that is measured
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
        """The number of the mixture of each job."""
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
