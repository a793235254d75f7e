"""Block sizes and grids: what is chosen on the host, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import triton

_PROGRAMS = 256  # they fill a large card
_MAX_SPLITS = 8
_MAX_ROWS = 256
_MIN_CHUNK = 256  # of the inner dimension: a shorter share is not worth a program
_MAX_TILE = 64  # tokens

compiles_only: ContextVar[bool] = ContextVar("compiles_only", default=False)
"""Whether launches compile their kernel and run nothing (`compilation`)."""


def programs_wanted() -> int:
    """Programs that keep every multiprocessor of a large card busy; the interpreter has one."""
    return 1 if interpreted() else _PROGRAMS


def rows_a_program(rows: int) -> int:
    """Of an elementwise kernel: one on a GPU, where rows run at once.

    The interpreter runs one program after another, and each takes as long with many rows as with
    one.
    """
    return min(_MAX_ROWS, power_of_two(rows)) if interpreted() else 1


def power_of_two(value: int) -> int:
    return 1 << max(value - 1, 0).bit_length()


def widened(dtype: torch.dtype) -> bool:
    """Whether products of this dtype go by way of fp32 (`device.product`)."""
    return interpreted() and dtype == torch.bfloat16


def token_tile(tokens: int) -> int:
    """Tokens of one program: 16 is the least that tensor cores take."""
    return min(_MAX_TILE, max(16, power_of_two(tokens)))


def span_align(*bounds: int) -> int:
    """The largest power of two up to 16 that divides all of them."""
    joined = 16
    for bound in bounds:
        joined = math.gcd(joined, bound)
    return joined


@dataclass(frozen=True, slots=True)
class ShrinkShape:
    """The cut of a shrink of [tokens, width] by `row_blocks` blocks."""

    tile: int
    splits: int
    chunk: int
    block_k: int = 128

    @classmethod
    def of(cls, tokens: int, width: int, row_blocks: int) -> ShrinkShape:
        """Splits of the inner dimension as far as programs are short of.

        A power of two, so that few variants are compiled; the last may have nothing to sum.
        """
        tile = token_tile(tokens)
        programs = max(row_blocks * -(-tokens // tile), 1)
        wanted = min(_MAX_SPLITS, -(-_PROGRAMS // programs), max(width // _MIN_CHUNK, 1))
        splits = power_of_two(wanted + 1) // 2
        block_k = min(128, max(16, power_of_two(width)))
        return cls(tile, splits, -(-width // (splits * block_k)) * block_k, block_k)

    @classmethod
    def kinds(cls, tokens: int, width: int, row_blocks: Iterable[int]) -> Iterator[tuple[int, int]]:
        """(tokens, row blocks) of one shrink of each kind that kernels are compiled for.

        tokens: the most that a step has. row_blocks: all that there may be.
        """
        found = set()
        whole = range(_MAX_TILE // 2 + 1, tokens + 1, _MAX_TILE)
        counts = [count for count in (1, _MAX_TILE // 4 + 1, *whole) if count <= tokens]
        for blocks in row_blocks:
            for count in counts:
                shape = cls.of(count, width, blocks)
                if (shape.tile, shape.splits) not in found:
                    found.add((shape.tile, shape.splits))
                    yield count, blocks


def launch(kernel: Any, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
    """Run a kernel, unless there is nothing to run."""
    if not all(grid):
        return
    if not compiles_only.get():
        kernel[grid](*arguments, **options)
    elif not interpreted():
        kernel.warmup(*arguments, grid=grid, **options)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: TRITON_INTERPRET was set before."""
    return bool(triton.knobs.runtime.interpret)
