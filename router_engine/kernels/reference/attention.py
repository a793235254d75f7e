"""Paged attention in plain torch: the truth that every other kernel agrees with.

A request with several tokens in the step is attended alone; all requests with a single token are
attended together, over their contexts padded to the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from router_engine.kernels.base import Chunk, slots_at


@dataclass(frozen=True, slots=True)
class _Prefill:
    """Several tokens of one request: flat tokens [first, first + length)."""

    first: int
    length: int
    slots: Tensor  # [context]: cache slots of positions 0 .. start + length


@dataclass(frozen=True, slots=True)
class _Decodes:
    """All requests with a single token in the step."""

    index: Tensor  # [rows]: flat tokens
    slots: Tensor  # [rows, max_context]; past a row's context: its own last slot, masked
    positions: Tensor  # [rows]: of the token itself; it sees 0 .. positions


class TorchAttention:
    """Attention of one flat batch."""

    def __init__(self, chunks: Sequence[Chunk], block_size: int, device: torch.device) -> None:
        self._prefills = [
            _Prefill(chunk.first, chunk.length, _context_slots(chunk, block_size).to(device))
            for chunk in chunks
            if chunk.length > 1
        ]
        decodes = [chunk for chunk in chunks if chunk.length == 1]
        self._decodes = _decodes(decodes, block_size, device) if decodes else None

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """As `kernels.base.StepAttention`."""
        output = torch.empty_like(query)
        for chunk in self._prefills:
            tokens = slice(chunk.first, chunk.first + chunk.length)
            output[tokens] = _prefill(query[tokens], keys, values, chunk, scale, window)
        if self._decodes is not None:
            rows = self._decodes
            output[rows.index] = _decode(query[rows.index], keys, values, rows, scale, window)
        return output


def _context_slots(chunk: Chunk, block_size: int) -> Tensor:
    blocks, seen = torch.tensor(chunk.block_ids, dtype=torch.long), torch.arange(chunk.stop)
    return slots_at(blocks[seen // block_size], seen, block_size)


def _decodes(chunks: Sequence[Chunk], block_size: int, device: torch.device) -> _Decodes:
    own = torch.tensor([chunk.start for chunk in chunks])
    longest = max(-(-chunk.stop // block_size) for chunk in chunks)
    blocks = torch.tensor(
        [(*chunk.block_ids[:longest], *(0,) * (longest - len(chunk.block_ids))) for chunk in chunks]
    )
    # A mask does not stop a NaN (0 * NaN is one), so rows are padded with what they see anyway:
    # slots past their context belong to others, or still hold what others left there.
    seen = torch.minimum(torch.arange(int(own.max()) + 1), own[:, None])
    return _Decodes(
        index=torch.tensor([chunk.first for chunk in chunks], device=device),
        slots=slots_at(blocks.gather(1, seen // block_size), seen, block_size).to(device),
        positions=own.to(device),
    )


def _prefill(
    query: Tensor, keys: Tensor, values: Tensor, chunk: _Prefill, scale: float, window: int | None
) -> Tensor:
    """query [length, heads, head_dim] -> the same shape."""
    context = chunk.slots.shape[0]
    seen = torch.arange(context, device=query.device)
    own = seen[context - chunk.length :, None]
    return _attend(
        query.transpose(0, 1)[None],
        keys[chunk.slots].transpose(0, 1)[None],
        values[chunk.slots].transpose(0, 1)[None],
        _mask(own, seen, window),
        scale,
    )[0].transpose(0, 1)


def _decode(
    query: Tensor, keys: Tensor, values: Tensor, rows: _Decodes, scale: float, window: int | None
) -> Tensor:
    """query [rows, heads, head_dim] -> the same shape."""
    seen = torch.arange(rows.slots.shape[1], device=query.device)
    mask = _mask(rows.positions[:, None], seen, window)[:, None, None, :]
    return _attend(
        query[:, :, None],
        keys[rows.slots].transpose(1, 2),
        values[rows.slots].transpose(1, 2),
        mask,
        scale,
    )[:, :, 0]


def _mask(own: Tensor, seen: Tensor, window: int | None) -> Tensor:
    """Whether a token at position `own` [n, 1] sees position `seen` [m]: [n, m] bool."""
    mask = seen <= own
    return mask if window is None else mask & (seen > own - window)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(q k^T scale) v; query heads share kv heads in groups, [batch, heads, n, head_dim]."""
    return functional.scaled_dot_product_attention(
        query, key, value, mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
