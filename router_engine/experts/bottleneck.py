"""Bottlenecks: down, up and their biases as rank rows, added to what a feed-forward puts out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from router_engine.experts.base import ExpertRows
from router_engine.experts.copies import AdapterTensors
from router_engine.experts.gates import gate_rows
from router_engine.experts.kinds import ExpertKind, Loading, Term
from router_engine.experts.rows import GatheredRows
from router_engine.kernels.base import Operations


def bottleneck_rows(
    specs: Sequence[BottleneckExpertSpec], tensors: AdapterTensors, loading: Loading
) -> dict[str, ExpertRows]:
    """The rows of every bottleneck by site."""
    return {expert.site: _rows(expert, tensors, loading.dtype) for expert in specs}


def _rows(expert: BottleneckExpertSpec, tensors: AdapterTensors, dtype: torch.dtype) -> ExpertRows:
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


def _serial(
    operations: Operations, y: Tensor, x: Tensor, rows: GatheredRows, row_weights: Tensor
) -> None:
    """y + the bottlenecks that read y. Not x: `kinds.Add`."""
    operations.mix_bottleneck(y, y, rows.a, rows.b, row_weights, rows.bias, rows.activations)


def _parallel(
    operations: Operations, y: Tensor, x: Tensor, rows: GatheredRows, row_weights: Tensor
) -> None:
    """y + the bottlenecks that read x."""
    operations.mix_bottleneck(y, x, rows.a, rows.b, row_weights, rows.bias, rows.activations)


# Serial ones read what the feed-forward puts out, without parallel ones: they come first.
KIND = ExpertKind(
    "bottleneck",
    bottleneck_rows,
    (
        Term("feed_forward", "#serial", _serial),
        Term("feed_forward", "#parallel", _parallel),
    ),
)
