"""Prompts: keys and values that the base makes at loading, attended to beside the cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters_store.expert_kinds.prompt import PromptExpertSpec
from router_engine.experts.base import ExpertRows
from router_engine.experts.copies import AdapterTensors
from router_engine.experts.gates import gate_rows
from router_engine.experts.kinds import ExpertKind, Loading, Term
from router_engine.experts.rows import GatheredRows
from router_engine.kernels.base import Operations


def prompt_rows(
    specs: Sequence[PromptExpertSpec], tensors: AdapterTensors, loading: Loading
) -> dict[str, ExpertRows]:
    """The rows of every prompt by site."""
    return {expert.site: _rows(expert, tensors, loading) for expert in specs}


def _rows(expert: PromptExpertSpec, tensors: AdapterTensors, loading: Loading) -> ExpertRows:
    """K and V, a row for each position of the prompt; V for every query head, times its gate c."""
    prompt = tensors.get(expert.tensor_prompt)
    head_gates = tensors.get(expert.tensor_head_gates).reshape(-1)
    keys, values = loading.base.keys_and_values(expert.module, prompt)
    shared = expert.heads // values.shape[1]  # query heads of a kv head
    values = values.repeat_interleave(shared, dim=1) * head_gates[:, None]
    return ExpertRows(
        a=keys.flatten(1).to(loading.dtype).contiguous(),
        b=values.flatten(1).to(loading.dtype).contiguous(),
        scale=1.0,
        prototype=torch.zeros(expert.length),
        gate=gate_rows([expert]),
    )


def _attend(
    operations: Operations, attended: Tensor, query: Tensor, rows: GatheredRows, row_weights: Tensor
) -> None:
    """attended + the prompts: `kinds.Add` at attention."""
    lengths = [length for _, length in rows.layout]
    operations.attend_prompts(attended, query, rows.a, rows.b, row_weights, lengths)


KIND = ExpertKind("prompt", prompt_rows, (Term("attention", "#prompt", _attend),))
