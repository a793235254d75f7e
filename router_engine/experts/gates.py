"""Gates by rank row: which gate multiplies which row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters_store.expert_kinds.base import ExpertSpec


def gate_rows(experts: Sequence[ExpertSpec]) -> Tensor | None:
    """For experts that share a site, one after another: `ExpertRows.gate`."""
    if all(expert.gate is None for expert in experts):
        return None
    gates = [-1 if expert.gate is None else expert.gate for expert in experts]
    counts = torch.tensor([expert.rows for expert in experts])
    return torch.tensor(gates, dtype=torch.int32).repeat_interleave(counts)
