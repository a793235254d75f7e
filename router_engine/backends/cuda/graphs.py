"""Decode steps as CUDA graphs, one a bucket of batch sizes; mixtures and token weights are data.

A graph reads everything that changes from step to step from buffers at fixed addresses: tokens,
positions, cache blocks, the weights matrix, and the list that says which adapters act. So a
graph serves every mixture of its bucket, and a step costs a few copies and one launch.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from router_engine.device_calls import DEVICE_CALLS
from router_engine.kernels.base import slots_at
from router_engine.processes.long_work import long_work
from router_engine.scheduling.plan import PlannedRow

_log = logging.getLogger(__name__)

BATCH_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
TILE_BUCKETS = (4, 16, 64, 256, 1024)  # tiles of rank rows
MAX_COLUMNS = 1024  # adapters of one step
MAX_GRAPHS = 512

Replay = Callable[[], Tensor]
Capture = Callable[[Callable[[], Tensor]], Replay]


def bucket_for(count: int, buckets: Sequence[int]) -> int | None:
    """The smallest bucket that holds `count`, or None where none does."""
    return next((bucket for bucket in buckets if bucket >= count), None)


@dataclass(frozen=True, slots=True)
class GraphKey:
    """The purpose of a graph. tiles: 0 for the bare base. touched: groups that any rows act on.

    reads_hidden_states: it reads them, and the layers below have weights of their own.
    """

    batch: int
    tiles: int = 0
    touched: frozenset[int] = frozenset()
    reads_hidden_states: bool = False


@dataclass(frozen=True, slots=True)
class DecodeArrays:
    """A step of single tokens as arrays on the host.

    numbers [4, rows] int32: token ids, positions, slots, contexts. blocks [rows, longest] int32.
    """

    numbers: NDArray[np.int32]
    blocks: NDArray[np.int32]

    @classmethod
    def of(cls, rows: Sequence[PlannedRow], block_size: int) -> DecodeArrays:
        """Every row has one token."""
        used = [-(-row.stop // block_size) for row in rows]
        blocks = np.zeros((len(rows), max(used)), dtype=np.int32)
        for index, (row, count) in enumerate(zip(rows, used, strict=True)):
            blocks[index, :count] = row.block_ids[:count]
        token_ids = np.array([row.token_ids[0] for row in rows], dtype=np.int32)
        positions = np.array([row.start for row in rows], dtype=np.int32)
        own = blocks[np.arange(len(rows)), positions // block_size]
        slots = slots_at(own, positions, block_size)
        return cls(np.stack((token_ids, positions, slots, positions + 1)).astype(np.int32), blocks)

    def padded(self, batch: int) -> NDArray[np.int32]:
        """The numbers for `batch` rows: those added store nothing and see nothing."""
        numbers = np.zeros((4, batch), dtype=np.int32)
        numbers[:, : self.numbers.shape[1]] = self.numbers
        numbers[2, self.numbers.shape[1] :] = -1
        return numbers


class StaticInputs:
    """The inputs of the graphs of one batch bucket, at fixed addresses.

    Written by the engine's thread before a replay. The step before has ended by then, its samples
    are on the host, so nothing still reads the pinned buffers or what they are copied to.
    """

    def __init__(self, batch: int, max_blocks: int, hidden: int, device: torch.device) -> None:
        pin = device.type == "cuda"
        self._numbers = torch.zeros(4, batch, dtype=torch.int32, device=device)
        self._host_numbers = torch.zeros(4, batch, dtype=torch.int32, pin_memory=pin)
        self._host_tables = torch.zeros(batch, max_blocks, dtype=torch.int32, pin_memory=pin)
        self.tables = torch.zeros(batch, max_blocks, dtype=torch.int32, device=device)
        self.weights = torch.zeros(batch, MAX_COLUMNS, dtype=torch.float32, device=device)
        self.lower = torch.zeros_like(self.weights)  # of the layers below the probe layer
        self.hidden_states = torch.zeros(
            batch, hidden, dtype=torch.float32, device=device
        )  # written
        self.finite = torch.zeros(batch, dtype=torch.bool, device=device)  # written
        self.starts = torch.arange(batch + 1, dtype=torch.int32, device=device)

    @property
    def numbers(self) -> Tensor:
        """[3, batch]: token ids, positions, slots."""
        return self._numbers[:3]

    @property
    def contexts(self) -> Tensor:
        return self._numbers[3]

    def write(
        self, arrays: DecodeArrays, weights: Tensor | None, lower: Tensor | None = None
    ) -> None:
        """weights, lower [rows, columns], or None where the graph reads none.

        What lies past the rows and columns is not read.
        """
        rows, width = arrays.blocks.shape
        batch = self._numbers.shape[1]
        self._host_numbers.copy_(torch.from_numpy(arrays.padded(batch)))
        self._numbers.copy_(self._host_numbers, non_blocking=True)
        host = self._host_tables[:rows, :width]
        host.copy_(torch.from_numpy(arrays.blocks))
        self.tables[:rows, :width].copy_(host, non_blocking=True)
        for buffer, values in ((self.weights, weights), (self.lower, lower)):
            if values is not None:
                buffer[:rows, : values.shape[1]].copy_(values)


class Graphs:
    """Captured work by key, each captured when it is first asked for.

    Of more than `most` the one that was not used for longest is let go. Work that cannot be
    captured runs without a graph from then on.
    """

    def __init__(self, new_capture: Callable[[], Capture], most: int = MAX_GRAPHS) -> None:
        """new_capture: a way to capture whose memory no other has used."""
        self._new_capture = new_capture
        self._capture = new_capture()
        self._most = most
        self._replays: OrderedDict[GraphKey, Replay] = OrderedDict()  # least recently used first

    def run(self, key: GraphKey, work: Callable[[], Tensor]) -> Tensor:
        """The output of `work`, which reads static buffers only; good until the next run."""
        if key not in self._replays:
            self._replays[key] = self._captured(key, work)
            if len(self._replays) > self._most:
                self._replays.popitem(last=False)
        self._replays.move_to_end(key)
        return self._replays[key]()

    def again(self) -> None:
        """Run the last graph on what its buffers hold, for a measurement: nothing changes."""
        if self._replays:
            next(reversed(self._replays.values()))()

    def __len__(self) -> int:
        return len(self._replays)

    def clear(self) -> None:
        """Forget all graphs: an address that they hold is no longer right."""
        self._replays.clear()
        self._capture = self._new_capture()

    def _captured(self, key: GraphKey, work: Callable[[], Tensor]) -> Replay:
        try:
            return self._capture(work)
        except torch.OutOfMemoryError:
            raise  # the step is to be smaller
        except RuntimeError as error:  # of CUDA
            _log.warning("no graph for %s, its steps run launch by launch: %s", key, error)
            return work


def run_directly(work: Callable[[], Tensor]) -> Replay:
    """No graph: what a device without them does, and the same numbers."""
    return work


class CudaCapture:
    """Captures into one memory pool: graphs run one at a time, so they may share it."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensor]) -> Replay:
        """Runs `work` once before it is captured: kernels are compiled, libraries warm up.

        That run stores the same keys and values as the replay that follows.
        """
        with long_work("the capture of a CUDA graph"), DEVICE_CALLS:
            return self._captured(work)

    def _captured(self, work: Callable[[], Tensor]) -> Replay:
        work()
        graph = torch.cuda.CUDAGraph()
        # Whatever other threads call meanwhile does not void the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = work()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
