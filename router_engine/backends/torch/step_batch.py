"""The flat batch of one step as tensors: what the model and the attention function read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from router_engine.experts.step import StepExperts
from router_engine.kernels.base import Chunk, Operations, StepAttention
from router_engine.kv.paged_cache import PagedCache
from router_engine.scheduling.plan import PlannedRow, StepPlan


@dataclass(frozen=True, slots=True)
class StepBatch:
    """token_ids, positions, slots: [tokens]. sample_index [samples]: rows whose logits count."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    sample_index: Tensor
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
    chunks = chunks_of(plan.rows)
    samples = [
        chunk.first + chunk.length - 1
        for chunk, row in zip(chunks, plan.rows, strict=True)
        if row.sample
    ]
    token_ids = [token for row in plan.rows for token in row.token_ids]
    positions = [torch.arange(row.start, row.stop) for row in plan.rows]
    slots = [_slots(row, cache.block_size) for row in plan.rows]
    return StepBatch(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.cat(positions).to(device),
        slots=torch.cat(slots).to(device),
        sample_index=torch.tensor(samples, dtype=torch.long, device=device),
        attention=operations.attention(chunks, cache.block_size, device),
        cache=cache,
        experts=experts,
    )


def chunks_of(rows: Sequence[PlannedRow]) -> list[Chunk]:
    """Where each row's tokens lie in the flat batch."""
    chunks: list[Chunk] = []
    first = 0
    for row in rows:
        chunks.append(Chunk(first, row.start, len(row.token_ids), row.block_ids))
        first += len(row.token_ids)
    return chunks


def _slots(row: PlannedRow, block_size: int) -> Tensor:
    """Cache slots of a row's own tokens."""
    positions = torch.arange(row.start, row.stop)
    blocks = torch.tensor(row.block_ids)
    return blocks[positions // block_size] * block_size + positions % block_size
