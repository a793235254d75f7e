"""Channel scales in the engine: one rank row a layer, and what it adds to a step."""

from collections.abc import Sequence

import torch
from channel_scale_spec import ChannelScaleSpec
from torch import Tensor

from router_engine.experts.base import ExpertRows
from router_engine.experts.copies import AdapterTensors
from router_engine.experts.gates import gate_rows
from router_engine.experts.kinds import ExpertKind, Loading, Term
from router_engine.experts.rows import GatheredRows
from router_engine.kernels.base import Operations
from router_engine.kernels.weighted import weighted


def load(
    specs: Sequence[ChannelScaleSpec], tensors: AdapterTensors, loading: Loading
) -> dict[str, ExpertRows]:
    """b is s; a is 1, and NaN where s does not fit the dtype."""
    return {
        spec.site: ExpertRows(
            a=torch.ones(1, 1, dtype=loading.dtype),
            b=tensors.get(spec.tensor_scale)[None].to(loading.dtype),
            scale=1.0,
            prototype=torch.zeros(1),
            gate=gate_rows([spec]),
        )
        for spec in specs
    }


def scale(_: Operations, y: Tensor, x: Tensor, rows: GatheredRows, row_weights: Tensor) -> None:
    """y_t += y_t * sum_j w_tj g_tj s_j, in place, y with its LoRA."""
    shares = weighted(rows.a.T.float(), row_weights)  # [tokens, rows]
    y += y * (shares.to(y.dtype) @ rows.b)


KIND = ExpertKind("channel_scale", load, (Term("linear", "#channel_scale", scale),))
