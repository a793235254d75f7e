"""Variants of adapters whose experts are kept as copies (AdaMix): which of the copies act.

A variant is an adapter of its own to whatever goes by digest (blocks, rank rows, pins, requests):
its digest is that of the adapter, "~", and what makes it. Its files are the adapter's. The adapter
under its plain digest is the average that its manifest states.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from adapters_store.expert_kinds.base import ExpertSpec, copies_of

_MARK = "~"

Side = Literal["down", "up"]  # A and D, or B and U; a bias goes with its side

Variant = Callable[[ExpertSpec, Side], Sequence[float]]
"""(an expert that has copies, a side of it) -> the weight of each copy of that side.

It is asked once for each tensor, so it must answer alike for the same expert and side.
"""


def average(expert: ExpertSpec, side: Side) -> Sequence[float]:
    """The weights in the manifest: what AdaMix serves (Wang et al. 2022, section 3.4)."""
    copies = copies_of(expert)
    assert copies is not None
    return copies.down if side == "down" else copies.up


@dataclass(frozen=True, slots=True)
class Soup:
    """A side of every expert is sum_m weights_m copy_m; a side without weights is the average.

    Source: Wang et al., "AdaMix" (2022), section 3.4, with weights of one's own.
    """

    down: tuple[float, ...] = ()
    up: tuple[float, ...] = ()

    def weights(self, expert: ExpertSpec, side: Side) -> Sequence[float]:
        """One weight a copy: see `Variant`."""
        return (self.down if side == "down" else self.up) or average(expert, side)

    def __str__(self) -> str:
        sides = (",".join(repr(float(w) + 0.0) for w in side) for side in (self.down, self.up))
        return "soup:" + "/".join(sides)  # 0.0 is added so that -0.0 is 0.0


@dataclass(frozen=True, slots=True)
class Stochastic:
    """One copy of each side of each expert, drawn uniformly and apart from all others.

    A draw depends on the seed, the expert's place and the side alone, so that it is the same
    wherever it is made. Source: Wang et al., "AdaMix" (2022), section 3.1, as in training.
    """

    seed: int

    def weights(self, expert: ExpertSpec, side: Side) -> Sequence[float]:
        """One weight a copy: see `Variant`."""
        count = len(average(expert, side))
        place = f"{self.seed} {expert.site} {expert.gate} {side}"
        digest = hashlib.blake2b(place.encode(), digest_size=8).digest()
        drawn = int.from_bytes(digest, "little") % count
        return tuple(float(copy == drawn) for copy in range(count))

    def __str__(self) -> str:
        return f"stochastic:{self.seed}"


Choice = Soup | Stochastic


def variant_digest(digest: str, choice: Choice) -> str:
    """The digest of a variant; equal exactly where adapter and choice are."""
    return f"{digest}{_MARK}{choice}"


def plain_digest(digest: str) -> str:
    """The digest of the adapter whose files a variant, or the adapter itself, is made of."""
    return digest.partition(_MARK)[0]


def variant_of(digest: str) -> Variant:
    """How a digest weighs copies. Raises ValueError where it says nothing that is known."""
    _, mark, text = digest.partition(_MARK)
    return _choice(text).weights if mark else average


def _choice(text: str) -> Choice:
    kind, _, values = text.partition(":")
    choice: Choice | None = None
    if kind == "stochastic":
        choice = Stochastic(int(values))
    if kind == "soup":
        down, _, up = values.partition("/")
        choice = Soup(_numbers(down), _numbers(up))
    if choice is None or str(choice) != text:
        raise ValueError(f"{text!r} is no variant: use soup:... or stochastic:...")
    return choice


def _numbers(text: str) -> tuple[float, ...]:
    numbers = tuple(map(float, text.split(","))) if text else ()
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{text!r} has a weight that is not finite")
    return numbers
