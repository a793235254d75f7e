"""Attention by FlashInfer, in graphs and without: not run on a GPU yet.

One wrapper of its paged prefill serves decodes, prompts and steps of both: a decode is a prompt of
one token whose keys and values are stored already. It plans a step on the host, once for layers of
equal windows, and its kernels read what was planned from buffers at fixed addresses.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router_engine.backends.cuda.staging import StepRoom
from router_engine.backends.step_arrays import StepArrays
from router_engine.errors import UnsupportedModelError
from router_engine.kernels.base import Chunk, StepAttention
from router_engine.kernels.triton.triton_operations import TritonOperations
from router_engine.model.attention_calls import AttentionCall
from router_engine.transfers import sent

DTYPES = (torch.bfloat16, torch.float16)
HEAD_DIMS = (64, 128, 256)
_WORKSPACE = 128 << 20  # bytes for the parts of split contexts, as its makers advise


class HeadShape(NamedTuple):
    """What the kernels are chosen by, beside the window."""

    heads: int
    kv_heads: int
    dim: int
    scale: float
    dtype: torch.dtype

    @classmethod
    def of(cls, calls: Sequence[AttentionCall], dtype: torch.dtype) -> HeadShape:
        """That of all layers. Raises UnsupportedModelError where they are not served."""
        shapes = {
            cls(call.heads, call.kv_heads, call.head_dim, call.scale, dtype) for call in calls
        }
        if len(shapes) != 1 or dtype not in DTYPES or calls[0].head_dim not in HEAD_DIMS:
            raise UnsupportedModelError(
                f"attention 'flashinfer' serves layers of one shape, with heads of {HEAD_DIMS} in "
                f"{', '.join(map(str, DTYPES))}, and here are {sorted(map(str, shapes))}: use "
                "attention 'triton'"
            )
        return shapes.pop()


class _Batch(NamedTuple):
    """A step as the library wants it: int32, on the host."""

    tokens: NDArray[np.int32]  # [rows + 1]: where each row's tokens begin
    blocks: NDArray[np.int32]  # [rows + 1]: where each row's blocks begin
    block_ids: NDArray[np.int32]
    filled: NDArray[np.int32]  # [rows]: positions in use in the last block of each

    @classmethod
    def of(
        cls,
        lengths: NDArray[np.int32],
        contexts: NDArray[np.int32],
        block_ids: NDArray[np.int32],
        block_size: int,
        rows: int,
    ) -> _Batch:
        """block_ids: those of the rows one after another, as many as their contexts take. rows:
        with those that are added, which have no tokens."""
        counts = -(-contexts // block_size)
        added = rows - len(lengths)
        return cls(
            tokens=_begins(lengths, added),
            blocks=_begins(counts, added),
            block_ids=block_ids,
            filled=np.append(contexts - (counts - 1) * block_size, np.ones(added)).astype(np.int32),
        )


def _begins(counts: NDArray[np.int32], added: int) -> NDArray[np.int32]:
    ends = np.cumsum(counts)
    return np.concatenate(([0], ends, np.full(added, ends[-1]))).astype(np.int32)


class FlashInfer:
    """The library, and one model's attention in it. Used by the engine's thread."""

    def __init__(self, shape: HeadShape, block_size: int, device: torch.device) -> None:
        """Raises UnsupportedModelError where the library is not installed."""
        try:
            self._library: Any = importlib.import_module("flashinfer")
        except ImportError as error:
            raise UnsupportedModelError(
                "attention 'flashinfer' needs FlashInfer: run `pip install "
                "'adaptermix[flashinfer]'`, or use attention 'triton'"
            ) from error
        self._shape = shape
        self._device = device
        self.block_size = block_size
        self._workspace = torch.empty(_WORKSPACE, dtype=torch.uint8, device=device)
        self._planned: Any = None  # a CUDA event, untyped in torch: the last plan's copies

    def wrapper(self, **options: Any) -> Any:
        """A wrapper of its own plans; options: those of graphs."""
        return self._library.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "NHD", **options)

    def plan(self, wrapper: Any, batch: _Batch, window: int | None) -> None:
        """Let a wrapper's next runs be those of a batch, under a window of positions."""
        if self._planned is not None:
            self._planned.synchronize()  # its own pinned buffer is written anew
        shape = self._shape
        wrapper.plan(
            self._pinned(batch.tokens),
            self._pinned(batch.blocks),
            sent(torch.from_numpy(batch.block_ids), self._device),
            self._pinned(batch.filled),
            shape.heads,
            shape.kv_heads,
            shape.dim,
            self.block_size,
            causal=True,
            sm_scale=shape.scale,
            window_left=-1 if window is None else window - 1,
            q_data_type=shape.dtype,
            kv_data_type=shape.dtype,
            non_blocking=True,
        )
        if self._device.type == "cuda":
            self._planned = torch.cuda.current_stream(self._device).record_event()

    def _pinned(self, numbers: NDArray[np.int32]) -> Tensor:
        tensor = torch.from_numpy(numbers)
        return tensor.pin_memory() if self._device.type == "cuda" else tensor

    def run(self, wrapper: Any, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[tokens, heads, dim]. keys, values [positions of the cache, kv heads, dim]."""
        shape = (-1, self.block_size, *keys.shape[1:])
        out = torch.empty_like(query)
        wrapper.run(query.contiguous(), (keys.view(shape), values.view(shape)), out=out)
        return out


class FlashInferGraphAttention:
    """As `graph_attention.GraphAttention`: a wrapper for each size of graph and each window."""

    def __init__(self, library: FlashInfer, windows: Sequence[int | None], room: StepRoom) -> None:
        self._library = library
        self._windows = windows
        self._room = room
        self._wrappers: dict[tuple[int, bool], dict[int | None, Any]] = {}
        device = library._device
        numbers = [room.requests + 1, room.requests + 1, room.requests, room.requests * room.blocks]
        self._buffers = [torch.zeros(count, dtype=torch.int32, device=device) for count in numbers]

    def prepare(self, tokens: int, *, decodes: bool) -> None:
        """Plan for a step of one request, so that a graph has what to capture."""
        one = np.ones(1, dtype=np.int32)
        size = self._library.block_size
        batch = _Batch.of(one, one, 0 * one, size, self._room.rows(tokens))
        self._plan(batch, tokens, decodes=decodes)

    def write(self, arrays: StepArrays, tokens: int) -> None:
        """See `GraphAttention.write`."""
        batch = _Batch.of(
            arrays.lengths,
            arrays.contexts,
            used_blocks(arrays, self._library.block_size),
            self._library.block_size,
            self._room.rows(tokens),
        )
        self._plan(batch, tokens, decodes=bool((arrays.lengths == 1).all()))

    def of(self, tokens: int, *, decodes: bool) -> StepAttention:
        """See `GraphAttention.of`."""
        return _Planned(self._library, self._of_size(tokens, decodes=decodes))

    def _plan(self, batch: _Batch, tokens: int, *, decodes: bool) -> None:
        for window, wrapper in self._of_size(tokens, decodes=decodes).items():
            self._library.plan(wrapper, batch, window)

    def _of_size(self, tokens: int, *, decodes: bool) -> dict[int | None, Any]:
        key = tokens, decodes
        if key not in self._wrappers:
            self._wrappers[key] = {window: self._wrapper(tokens) for window in self._windows}
        return self._wrappers[key]

    def _wrapper(self, tokens: int) -> Any:
        rows = self._room.rows(tokens)
        begins, blocks, filled, block_ids = self._buffers
        return self._library.wrapper(
            use_cuda_graph=True,
            qo_indptr_buf=begins[: rows + 1],
            paged_kv_indptr_buf=blocks[: rows + 1],
            paged_kv_indices_buf=block_ids,
            paged_kv_last_page_len_buf=filled[:rows],
            max_total_num_rows=tokens,
        )


class FlashInferOperations(TritonOperations):
    """The Triton kernels for mixtures, and FlashInfer for attention."""

    def __init__(self, library: FlashInfer) -> None:
        super().__init__()
        self._library = library
        self._wrappers: dict[int | None, Any] = {}  # by window

    def attention(
        self, chunks: Sequence[Chunk], block_size: int, device: torch.device
    ) -> StepAttention:
        """Planned for a window when a layer first asks for it."""
        lengths = np.array([chunk.length for chunk in chunks], dtype=np.int32)
        contexts = np.array([chunk.stop for chunk in chunks], dtype=np.int32)
        counts = -(-contexts // block_size)
        parts = [chunk.block_ids[:count] for chunk, count in zip(chunks, counts, strict=True)]
        block_ids = np.concatenate(parts).astype(np.int32)
        batch = _Batch.of(lengths, contexts, block_ids, block_size, len(chunks))
        return _Eager(self._library, self._wrappers, batch)


class _Planned:
    """As `StepAttention`, of wrappers that are planned by window."""

    def __init__(self, library: FlashInfer, wrappers: dict[int | None, Any]) -> None:
        self._library = library
        self._wrappers = wrappers

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        return self._library.run(self._wrappers[window], query, keys, values)


class _Eager(_Planned):
    """The same for one step, planned as it goes."""

    def __init__(self, library: FlashInfer, wrappers: dict[int | None, Any], batch: _Batch) -> None:
        super().__init__(library, wrappers)
        self._batch = batch
        self._done: set[int | None] = set()

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        if window not in self._done:
            if window not in self._wrappers:
                self._wrappers[window] = self._library.wrapper()
            self._library.plan(self._wrappers[window], self._batch, window)
            self._done.add(window)
        return super().attend(query, keys, values, scale, window)


def used_blocks(arrays: StepArrays, block_size: int) -> NDArray[np.int32]:
    """The blocks of all rows, without those that hold nothing yet."""
    counts = -(-arrays.contexts // block_size)
    firsts = arrays.rows[:, 3]
    return np.concatenate(
        [arrays.blocks[first : first + count] for first, count in zip(firsts, counts, strict=True)]
    )
