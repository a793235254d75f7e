"""The flat batch of one step as tensors: what the model and the attention function read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from router_engine.kv.paged_cache import PagedCache
from router_engine.scheduling.plan import PlannedRow, StepPlan


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Several tokens of one request: flat positions [first, first + length)."""

    first: int
    length: int
    slots: Tensor  # [context]: cache slots of positions 0 .. start + length


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """All requests with a single token in the step."""

    index: Tensor  # [rows]: flat positions
    slots: Tensor  # [rows, max_context]; past a row's context: slot 0, masked
    positions: Tensor  # [rows]: of the token itself; it sees 0 .. positions


@dataclass(frozen=True, slots=True)
class StepBatch:
    """token_ids, positions, slots: [tokens]. sample_index [samples]: rows whose logits count."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    sample_index: Tensor
    prefills: tuple[PrefillChunk, ...]
    decodes: DecodeRows | None
    cache: PagedCache


def build_batch(plan: StepPlan, cache: PagedCache, device: torch.device) -> StepBatch:
    """Lay a plan out as tensors: rows one after another, nothing padded per request."""
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[Tensor] = []
    samples: list[int] = []
    prefills: list[PrefillChunk] = []
    decode_rows: list[tuple[int, PlannedRow]] = []
    for row in plan.rows:
        first = len(token_ids)
        token_ids.extend(row.token_ids)
        positions.extend(range(row.start, row.stop))
        context = _context_slots(row, cache.block_size)
        slots.append(context[row.start :])
        if len(row.token_ids) == 1:
            decode_rows.append((first, row))
        else:
            prefills.append(PrefillChunk(first, len(row.token_ids), context.to(device)))
        if row.sample:
            samples.append(len(token_ids) - 1)
    return StepBatch(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.tensor(positions, device=device),
        slots=torch.cat(slots).to(device),
        sample_index=torch.tensor(samples, dtype=torch.long, device=device),
        prefills=tuple(prefills),
        decodes=_decode_rows(decode_rows, cache.block_size, device),
        cache=cache,
    )


def _context_slots(row: PlannedRow, block_size: int) -> Tensor:
    blocks = torch.tensor(row.block_ids, dtype=torch.long)
    offsets = torch.arange(block_size)
    return (blocks[:, None] * block_size + offsets).flatten()[: row.stop]


def _decode_rows(
    rows: list[tuple[int, PlannedRow]], block_size: int, device: torch.device
) -> DecodeRows | None:
    if not rows:
        return None
    longest = max(-(-row.stop // block_size) for _, row in rows)
    blocks = torch.tensor(
        [(*row.block_ids[:longest], *(0,) * (longest - len(row.block_ids))) for _, row in rows]
    )
    slots = (blocks[:, :, None] * block_size + torch.arange(block_size)).flatten(1)
    context = max(row.stop for _, row in rows)
    return DecodeRows(
        index=torch.tensor([first for first, _ in rows], device=device),
        slots=slots[:, :context].to(device),
        positions=torch.tensor([row.start for _, row in rows], device=device),
    )
