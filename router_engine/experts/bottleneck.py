"""Bottlenecks on the host: down, up and their biases as rank rows."""

from __future__ import annotations

import torch

from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from router_engine.experts.base import ExpertRows
from router_engine.experts.copies import AdapterTensors
from router_engine.experts.gates import gate_rows


def bottleneck_rows(
    expert: BottleneckExpertSpec, tensors: AdapterTensors, dtype: torch.dtype
) -> ExpertRows:
    """scale (U act(D v + d) + u) as rows: u is one more, whose z is 1 for every token."""
    size, features = expert.size, expert.features
    rows = torch.zeros(2, expert.rows, features)
    bias = torch.zeros(expert.rows)
    rows[0, :size] = tensors.side(expert, "down", expert.tensor_down)
    rows[1, :size] = tensors.side(expert, "up", expert.tensor_up).T
    if expert.tensor_down_bias is not None:
        bias[:size] = tensors.side(expert, "down", expert.tensor_down_bias)
    if expert.tensor_up_bias is not None:
        rows[1, size] = tensors.side(expert, "up", expert.tensor_up_bias)
        bias[size] = 1.0
    rows[1] *= expert.scale
    a, b = rows.to(dtype).unbind()
    return ExpertRows(
        a=a.contiguous(),
        b=b.contiguous(),
        scale=expert.scale,
        prototype=torch.zeros(expert.rows),
        bias=bias,
        activation=expert.activation,
        has_up_bias=expert.tensor_up_bias is not None,
        gate=gate_rows([expert]),
    )
