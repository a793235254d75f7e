"""Prompts on the host: their keys and values, made by the base as an adapter is loaded."""

from __future__ import annotations

import torch

from adapters_store.expert_kinds.prompt import PromptExpertSpec
from router_engine.experts.base import BaseProjections, ExpertRows
from router_engine.experts.copies import AdapterTensors
from router_engine.experts.gates import gate_rows


def prompt_rows(
    expert: PromptExpertSpec, tensors: AdapterTensors, dtype: torch.dtype, base: BaseProjections
) -> ExpertRows:
    """K and V, a row for each position of the prompt; V for every query head, times its gate c."""
    prompt = tensors.get(expert.tensor_prompt)
    head_gates = tensors.get(expert.tensor_head_gates).reshape(-1)
    keys, values = base.keys_and_values(expert.module, prompt)
    shared = expert.heads // values.shape[1]  # query heads of a kv head
    values = values.repeat_interleave(shared, dim=1) * head_gates[:, None]
    return ExpertRows(
        a=keys.flatten(1).to(dtype).contiguous(),
        b=values.flatten(1).to(dtype).contiguous(),
        scale=1.0,
        prototype=torch.zeros(expert.length),
        gate=gate_rows([expert]),
    )
