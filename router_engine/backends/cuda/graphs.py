"""Steps as CUDA graphs, by buckets of sizes; mixtures and token weights are data.

A graph reads everything that changes from step to step from buffers at fixed addresses: tokens,
positions, cache blocks, the weights matrix, and the list that says which adapters act. So a
graph serves every mixture of its bucket, and a step costs a few copies and one launch.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from router_engine.device_calls import DEVICE_CALLS
from router_engine.processes.long_work import long_work
from router_engine.scheduling.plan import StepLimits

_log = logging.getLogger(__name__)

DECODE_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # tokens, one a request
MIXED_BUCKETS = (32, 64, 128, 256, 512)  # tokens; larger steps keep a card busy launch by launch
TILE_BUCKETS = (16, 128, 1024)  # tiles of rank rows; one that is not in use ends at once
LINEAR_TILES = 128  # of steps with tokens under `linear`, which are fewer
NUM_REACHES = 4  # sets of groups that a graph's mixture may act on (`CudaDecoder.reaches`)
MAX_GRAPHS = 512

Replay = Callable[[], Tensor]
Capture = Callable[[Callable[[], Tensor]], Replay]


def bucket_for(count: int, buckets: Sequence[int]) -> int | None:
    """The smallest bucket that holds `count`, or None where none does."""
    return next((bucket for bucket in buckets if bucket >= count), None)


@dataclass(frozen=True, slots=True)
class GraphKey:
    """The purpose of a graph.

    tiles: of rank rows, 0 for the bare base. reach: groups that rows may act on. decodes: every
    request has one token. linear: some tokens run under `linear`.
    """

    tokens: int
    tiles: int = 0
    reach: frozenset[int] = frozenset()
    decodes: bool = True
    linear: bool = False


@dataclass(frozen=True, slots=True)
class GraphSizes:
    """The sizes of all graphs of an engine, in tokens. The last of `decodes` is of requests too."""

    decodes: tuple[int, ...]
    mixed: tuple[int, ...]

    @classmethod
    def of(cls, limits: StepLimits) -> GraphSizes:
        """Those that hold every step within `limits`, as far as there are any."""
        return cls(
            _as_far_as(limits.requests, DECODE_BUCKETS), _as_far_as(limits.tokens, MIXED_BUCKETS)
        )

    @property
    def tokens(self) -> int:
        """Of the largest."""
        return max(self.decodes[-1], self.mixed[-1])

    @property
    def requests(self) -> int:
        """The most that any holds."""
        return self.decodes[-1]

    @property
    def count(self) -> int:
        """Graphs: a size without a mixture, with one, and with one under `linear`."""
        return (len(self.decodes) + len(self.mixed)) * (2 + len(TILE_BUCKETS) * NUM_REACHES)


def _as_far_as(most: int, buckets: Sequence[int]) -> tuple[int, ...]:
    last = bucket_for(most, buckets) or buckets[-1]
    return tuple(bucket for bucket in buckets if bucket <= last)


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
        self.capture(key, work)
        return self._replays[key]()

    def capture(self, key: GraphKey, work: Callable[[], Tensor]) -> None:
        """Have a graph of `work`, if there is none."""
        if key not in self._replays:
            self._replays[key] = self._captured(key, work)
            if len(self._replays) > self._most:
                self._replays.popitem(last=False)
        self._replays.move_to_end(key)

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
