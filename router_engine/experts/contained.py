"""Keeps what is not finite in an adapter's numbers from tokens that do not use it.

Kernels select by weight what they read of `a`: a row's z is 0 for a token that gives it none. Then
they multiply all z of a step by `b` at once, where 0 * inf would be NaN for everybody. So a row
whose `b` is not finite is kept in another form: its `a` and bias say NaN and its `b` 0, which is
NaN for the tokens that use it, and nothing for the others.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from router_engine.experts.base import ExpertRows


def contained(rows: ExpertRows) -> ExpertRows:
    """The rows with `b` finite throughout; the very same where it is already.

    `b` may not be though the stored tensors are: the scale is in it, and it is in the pool's dtype.
    """
    spoilt = ~rows.b.isfinite().all(dim=1)
    if not spoilt.any():
        return rows
    bias = rows.bias
    return replace(
        rows,
        a=rows.a.masked_fill(spoilt[:, None], torch.nan),
        b=rows.b.masked_fill(spoilt[:, None], 0.0),
        bias=None if bias is None else bias.masked_fill(spoilt, torch.nan),
    )
