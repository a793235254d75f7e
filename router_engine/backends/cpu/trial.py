"""One layer of a model's shape with random weights, timed on whatever could compute the model.

A candidate is one of the C++ library's instruction sets or plain torch. Each is timed on the same
work: 1 and 8 requests that decode at a context of 128, and 64 and 256 tokens of a prompt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from router_engine.backends.base import TORCH
from router_engine.backends.cpu.library import Library
from router_engine.backends.cpu.structures import (
    LINEARS,
    LayerStruct,
    LinearStruct,
    ModelSpecStruct,
    StepStruct,
)

DECODE = (1, 8)  # requests
PROMPTS = (64, 256)  # tokens
ROWS = (*DECODE, *PROMPTS)
_CONTEXT = 128  # tokens that a decoding request has seen
_BLOCK = 16
_HEAD = 2048  # outputs of the head: enough to be a product like the others
_LANES = 16  # floats of a vector: widths are whole vectors
_MAX_HEAD_DIM = 256
_MAX_GROUP = 64  # query heads a kv head
_RUNS = 5
_LONG = 0.02  # seconds of a run past which one tells enough


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The widths of one layer of a Llama."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int

    @property
    def refusal(self) -> str | None:
        """Why the decoder cannot run such layers, or None if it can: it checks no bounds itself."""
        widths = (self.hidden, self.intermediate, self.head_dim)
        if any(width % _LANES for width in widths):
            return f"widths {widths} are not multiples of {_LANES}"
        group = self.heads / self.kv_heads
        if self.head_dim > _MAX_HEAD_DIM or group > _MAX_GROUP or group != int(group):
            return f"head_dim {self.head_dim} with {group} heads a kv head is too large"
        return None

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """[outputs, inputs] of the layer's products and of a piece of the head."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        hidden, wide = self.hidden, self.intermediate
        shapes = ((q, hidden), (kv, hidden), (kv, hidden), (hidden, q))
        mlp = ((wide, hidden), (wide, hidden), (hidden, wide))
        return dict(zip((*LINEARS, "head"), (*shapes, *mlp, (_HEAD, hidden)), strict=True))

    @property
    def weights(self) -> int:
        """Elements of all of them: what a step reads once."""
        return sum(outputs * inputs for outputs, inputs in self.linears.values())

    @property
    def layer_weights(self) -> int:
        """Those of the layer alone."""
        return self.weights - _HEAD * self.hidden


def measure(run: Callable[[int], None], seconds: float) -> dict[int, float]:
    """Seconds by rows, the least of some runs; as many of ROWS as `seconds` has time for."""
    seconds_by_rows: dict[int, float] = {}
    ends = time.perf_counter() + seconds
    for rows in ROWS:
        run(rows)  # pages and caches; not counted
        times: list[float] = []
        while not times or (len(times) < _RUNS and sum(times) < _LONG):
            started = time.perf_counter()
            run(rows)
            times.append(time.perf_counter() - started)
        seconds_by_rows[rows] = min(times)  # what else runs only ever adds
        if time.perf_counter() > ends:
            break
    return seconds_by_rows


class DecoderTrial:
    """The layer on one instruction set of the library; `close` frees it."""

    def __init__(self, library: Library, shape: LayerShape, dtype: torch.dtype, *, int8: bool):
        self._library = library
        self._alive: list[object] = []
        self._threads = torch.get_num_threads()
        weights = {name: _weight(size, dtype, int8=int8) for name, size in shape.linears.items()}
        linears = {name: self._pack(weight) for name, weight in weights.items()}
        blocks = max(DECODE) * (_CONTEXT // _BLOCK + 1) + max(PROMPTS) // _BLOCK
        cache = torch.zeros(2, blocks * _BLOCK, shape.kv_heads, shape.head_dim, dtype=dtype)
        ones = self._keep(torch.ones(max(shape.hidden, shape.head_dim)))
        layer = LayerStruct(
            **{name: linears[name] for name in LINEARS},
            attention_norm=ones,
            mlp_norm=ones,
            keys=self._keep(cache[0]),
            values=self._keep(cache[1]),
        )
        self._alive += [layers := (LayerStruct * 1)(layer)]
        embedding = torch.randn(1, shape.hidden).to(dtype)
        self._spec = ModelSpecStruct(
            layers=layers,
            embedding=self._keep(embedding),
            final_norm=ones,
            frequencies=self._keep(torch.ones(shape.head_dim // 2)),
            head=linears["head"],
            num_layers=1,
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            intermediate=shape.intermediate,
            block_size=_BLOCK,
            epsilon=1e-5,
            attention_scale=shape.head_dim**-0.5,
            rope_scale=1.0,
        )
        self._handle = library.new_model(dtype, self._spec)

    def run(self, rows: int) -> None:
        """One step: `rows` requests that decode, or as many tokens of one prompt."""
        decodes = rows in DECODE
        samples = rows if decodes else 1
        count, length = (rows, 1) if decodes else (1, rows)
        start = _CONTEXT if decodes else 0
        blocks_each = (start + length - 1) // _BLOCK + 1
        first = np.arange(count, dtype=np.int32)
        table = np.stack(
            (
                *(first * length, np.full(count, length), np.full(count, start)),
                first * blocks_each,
            ),
            axis=1,
        ).astype(np.int32)
        blocks = np.arange(count * blocks_each, dtype=np.int32)
        tokens = np.zeros(rows, dtype=np.int64)
        within = np.full(rows, start) if decodes else np.arange(rows)
        positions = within.astype(np.int32)
        sampled = (np.arange(rows) if decodes else np.array([rows - 1])).astype(np.int32)
        logits, normaliser = torch.empty(samples, _HEAD), torch.empty(samples)
        best = torch.empty(samples, dtype=torch.int64)
        step = StepStruct(
            token_ids=tokens.ctypes.data,
            positions=positions.ctypes.data,
            rows=table.ctypes.data,
            blocks=blocks.ctypes.data,
            sample_index=sampled.ctypes.data,
            logits=logits.data_ptr(),
            best=best.data_ptr(),
            normaliser=normaliser.data_ptr(),
            tokens=rows,
            num_rows=count,
            samples=samples,
            logits_stride=_HEAD,
            threads=self._threads,
        )
        self._library.run_model(self._handle, step)

    def close(self) -> None:
        """Free the decoder; the trial is over."""
        self._library.free_model(self._handle)
        self._alive.clear()

    def _pack(self, weight: Tensor) -> LinearStruct:
        outputs, inputs = weight.shape
        packed = torch.empty(
            self._library.packed_size(weight.shape, weight.dtype), dtype=weight.dtype
        )
        is_int8 = weight.dtype == torch.int8
        self._library.pack(weight, packed, torch.ones(outputs) * 1e-3 if is_int8 else None)
        return LinearStruct(self._keep(packed), None, inputs, outputs, 0, is_int8)

    def _keep(self, tensor: Tensor) -> int:
        self._alive.append(tensor)
        return tensor.data_ptr()


class TorchTrial:
    """The least that plain torch needs for the layer: its products and its attention."""

    def __init__(self, shape: LayerShape, dtype: torch.dtype) -> None:
        self._shape = shape
        self._weights = {
            name: _weight(size, dtype, int8=False) for name, size in shape.linears.items()
        }
        self._dtype = dtype

    @torch.inference_mode()
    def run(self, rows: int) -> None:
        """The step of `DecoderTrial.run`."""
        shape, weights = self._shape, self._weights
        decodes = rows in DECODE
        x = torch.ones(rows, shape.hidden, dtype=self._dtype)
        q, k, v = (functional.linear(x, weights[name]) for name in "qkv")
        count, length = (rows, 1) if decodes else (1, rows)
        queries = q.view(count, length, shape.heads, shape.head_dim).transpose(1, 2)
        seen = _CONTEXT + 1 if decodes else rows
        if decodes:
            k, v = (part[:, None].expand(-1, seen, -1) for part in (k, v))
        keys, values = (
            part.reshape(count, seen, shape.kv_heads, shape.head_dim).transpose(1, 2)
            for part in (k, v)
        )
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=not decodes, enable_gqa=True
        )
        y = functional.linear(attended.transpose(1, 2).reshape(rows, -1), weights["o"])
        active = functional.silu(functional.linear(y, weights["gate"]))
        y = functional.linear(active * functional.linear(y, weights["up"]), weights["down"])
        functional.linear(y if decodes else y[-1:], weights["head"])


def _weight(size: tuple[int, int], dtype: torch.dtype, *, int8: bool) -> Tensor:
    # Of one piece, repeated: what it holds doesn't matter, and random numbers take their time.
    if int8:
        return (torch.arange(size[0] * size[1]) % 251 - 125).to(torch.int8).view(size)
    piece = (torch.randn(size[1]) / math.sqrt(size[1])).to(dtype)
    return piece.expand(size).contiguous()


def times(
    path_of: Mapping[str, Library], shape: LayerShape, dtype: torch.dtype, *, int8: bool
) -> dict[str, dict[int, float]]:
    """Seconds by candidate and rows, for each set's library and, without int8, for torch."""
    each = 1.0 / (len(path_of) + 1)
    seconds = {}
    for isa, library in path_of.items():
        trial = DecoderTrial(library, shape, dtype, int8=int8)
        seconds[isa] = measure(trial.run, each)
        trial.close()
    if not int8:
        seconds[TORCH] = measure(TorchTrial(shape, dtype).run, each)
    return seconds
