"""Statistics of a token's weights: its strongest adapter, and how spread they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def strongest(weights: Sequence[float]) -> int | None:
    """Index of the largest |weight|, the first of equal ones; None where the base alone acts."""
    index = max(range(len(weights)), key=lambda adapter: abs(weights[adapter]), default=None)
    return None if index is None or weights[index] == 0 else index


def switches(winners: Sequence[int | None]) -> int:
    """The number of tokens whose strongest adapter is not that of the token before."""
    return sum(before != after for before, after in pairwise(winners))


def entropy(weights: Sequence[float]) -> float:
    """Entropy in nats of |w| / sum |w|: 0 for one adapter, ln k for k equal ones."""
    total = sum(abs(weight) for weight in weights)
    if total == 0:
        return 0.0
    shares = (abs(weight) / total for weight in weights)
    return sum(-share * math.log(share) for share in shares if share > 0)
