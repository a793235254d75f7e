"""Distributions of lengths in tokens, written as `fixed:64`, `uniform:48:80`, `lognormal:...`."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

from adaptermix.bench.errors import BenchmarkError

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
