"""Copies of one side of an AdaMix expert: their weights, their average, which are missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters_store.types import Problem

Array = NDArray[Any]
_SHOWN = 8


def count_copies(score: Array | None, *sides: Mapping[int, Array]) -> int:
    """M: as many as there are scores, or up to the last copy."""
    if score is not None and score.ndim == 1:
        return len(score)
    return max(index for side in ({0: None}, *sides) for index in side) + 1


def copy_weights(score: Array | None, count: int) -> Array:
    """softmax(score) [M] in float32; 1/M where there are no scores."""
    scores = (np.zeros(count) if score is None else score).astype(np.float32)
    powers: Array = np.exp(scores - scores.max())
    weights: Array = powers / powers.sum()
    return weights


def weights_of(copies: Mapping[int, Array], weights: Array) -> tuple[float, ...]:
    """The weights of a side's copies; that of a shared side's only copy is 1."""
    return (1.0,) if len(copies) == 1 else tuple(map(float, weights))


def stacked(copies: Mapping[int, Array]) -> Array:
    """All copies [M, ...] in float32; [1, ...] of a shared side."""
    return np.stack([copies[index] for index in sorted(copies)]).astype(np.float32)


def average(copies: Mapping[int, Array], weights: Array) -> Array:
    """The copies' average in float32; a shared side is its only copy."""
    every = stacked(copies)
    if len(every) == 1:
        return np.ascontiguousarray(every[0])
    with np.errstate(invalid="ignore", over="ignore"):  # the store refuses what isn't finite
        averaged = np.einsum("e,e...->...", weights, every, dtype=np.float32)
    return np.ascontiguousarray(averaged)


def missing_copies(
    where: str, names: str, copies: Mapping[int, Array], count: int, *, scores: str
) -> Iterator[Problem]:
    """A side holds one copy, of expert 0, or one for each of `count` experts.

    `names` is what the copies are called, with {} for the expert; `scores` what has a score each.
    """
    if not copies:
        yield Problem(where, f"has no {names.format('<e>')}: is the file whole?")
    elif copies.keys() == {0}:
        return
    elif max(copies) >= count:
        yield Problem(
            f"{where}.{names.format(max(copies))}",
            f"is one expert too many: there are {count} scores in {scores}",
        )
    elif len(copies) < count:
        absent = (names.format(index) for index in range(count) if index not in copies)
        named = ", ".join(islice(absent, _SHOWN))
        left = count - len(copies) - _SHOWN
        more = f" and {left} more" if left > 0 else ""
        yield Problem(where, f"lacks {named}{more} of {count} experts: is the file whole?")


def score_problems(where: str, score: Array | None) -> Iterator[Problem]:
    """Scores that are no finite numbers, one an expert."""
    if score is None:
        return
    if score.ndim != 1 or not len(score) or score.dtype.kind != "f":
        yield Problem(where, f"is {score.dtype} {list(score.shape)}, expected a float [M]")
    elif not np.isfinite(score).all():
        yield Problem(where, "holds values that are NaN or infinite")
