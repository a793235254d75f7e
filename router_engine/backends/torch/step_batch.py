"""The flat batch of one step as tensors: what transformers' code and its attention read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from router_engine.backends.step_arrays import StepArrays, chunks_of
from router_engine.experts.step import StepExperts
from router_engine.kernels.base import Operations, StepAttention
from router_engine.kv.paged_cache import PagedCache
from router_engine.scheduling.plan import StepPlan


@dataclass(frozen=True, slots=True)
class StepBatch:
    """All tensors are int64 and on the device."""

    token_ids: Tensor  # [tokens]
    positions: Tensor  # [tokens]
    slots: Tensor  # [tokens]: of the cache
    sample_index: Tensor  # [samples]: flat tokens whose logits are wanted
    attention: StepAttention
    cache: PagedCache
    experts: StepExperts


def build_batch(
    plan: StepPlan,
    cache: PagedCache,
    operations: Operations,
    experts: StepExperts,
    device: torch.device,
) -> StepBatch:
    """Lay a plan out as tensors: rows one after another, nothing padded per request."""
    arrays = StepArrays(plan)
    token_ids, positions, slots, samples = (
        torch.from_numpy(part).to(device, torch.long)
        for part in (
            *(arrays.token_ids, arrays.positions),
            *(arrays.slots(cache.block_size), arrays.samples),
        )
    )
    return StepBatch(
        token_ids=token_ids,
        positions=positions,
        slots=slots,
        sample_index=samples,
        attention=operations.attention(chunks_of(plan.rows), cache.block_size, device),
        cache=cache,
        experts=experts,
    )
