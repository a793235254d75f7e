"""Products with weights of which some are zero: what is not chosen is left out, not multiplied."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted(values: Tensor, weights: Tensor) -> Tensor:
    """values * weights, and 0 wherever a weight is 0, whatever the value there.

    0 * inf and 0 * NaN are NaN: a product would carry one expert's numbers to tokens that do not
    use it. values, weights: shapes that broadcast. Overwrites neither.
    """
    return torch.where(weights == 0, 0.0, values * weights)
