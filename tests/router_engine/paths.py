"""The engine of the parity tests, on each path that a step can take through the kernels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pytest
import torch
from _pytest.mark import ParameterSet
from torch import Tensor
from transformers import PreTrainedModel

from adapters_store.types import ResolvedMixture
from router_engine.config import (
    CacheConfig,
    CpuIsa,
    Device,
    EngineConfig,
    KernelConfig,
    Quantization,
)
from router_engine.events import EngineEvent
from router_engine.info import MergedState
from router_engine.model.quantized import quantize_linears
from router_engine.request import EngineRequest
from router_engine.routers.base import TokenRouter
from router_engine.routers.given import GivenTokenRouter
from router_engine.stats import EngineStats
from tests.support.harness import Answer, EngineHarness
from tests.support.isas import here
from tests.support.oracle import LOGIT_TOLERANCE, peft_model
from tests.support.tiny import family_model
from tests.support.waiting import HANG_SECONDS

P = ParamSpec("P")
T = TypeVar("T")

# Whose functions a step can call. transformers' own code is what runs without a decoder of ours.
REFERENCE_KERNELS = "router_engine.kernels.reference"
CPU_KERNELS = "router_engine.backends.cpu.library"
TRITON_KERNELS = "router_engine.kernels.triton"
TRANSFORMERS = "transformers.models"
PARTS = (REFERENCE_KERNELS, CPU_KERNELS, TRITON_KERNELS, TRANSFORMERS)


@dataclass(frozen=True, slots=True)
class Kernels:
    """How kernels are asked for, and what says that they ran."""

    setting: str
    backend: str | None  # the class of the backend whose decoder runs; None: transformers' code
    calls: frozenset[str]  # the parts that a step calls, and it calls no others


@dataclass(frozen=True, slots=True)
class EnginePath:
    """What computes an engine's steps, what it must agree with, and how much it has time for."""

    name: str
    decoder: Kernels
    plain: Kernels  # for a model that none of our decoders lays out
    device: Device = "cpu"
    quantization: Quantization = "none"
    tolerance: float = LOGIT_TOLERANCE  # of a log probability, relative to the largest
    tokens: int = 12  # that a request generates
    prompt: int = 80  # tokens of the longest prompt
    every: int = 1  # one request in so many runs alone too, where batches and single ones compare
    isa: CpuIsa | None = None  # of the C++ decoder

    @property
    def is_compiled(self) -> bool:
        """Whether it needs the C++ library."""
        return self.decoder.backend == "CpuBackend"

    def kernels(self, *, decoder: bool) -> Kernels:
        return self.decoder if decoder else self.plain

    def short(self, prompt: Sequence[int]) -> list[int]:
        """As much of a prompt as the path has time for."""
        return list(prompt[: self.prompt])

    def base(self, family: str) -> PreTrainedModel:
        """The model of transformers that the path computes."""
        model = family_model(family)
        if self.quantization == "int8":
            quantize_linears(model)
        return model

    def peft(self, family: str, folders: Sequence[Path]) -> Any:
        """The same with adapters in PEFT, as `oracle.peft_model`; they stay as they are stored."""
        model = peft_model(family_model(family), folders)
        if self.quantization == "int8":
            quantize_linears(model, lambda path: "lora_" not in path)
        return model


_PLAIN = Kernels("reference", None, frozenset({REFERENCE_KERNELS, TRANSFORMERS}))
_TRITON = Kernels("triton", "CudaBackend", frozenset({TRITON_KERNELS}))
_TRITON_PLAIN = Kernels("triton", None, frozenset({TRITON_KERNELS, TRANSFORMERS}))

REFERENCE = EnginePath("reference", decoder=_PLAIN, plain=_PLAIN)
# The compiled C++ decoder; what it cannot run, `auto` leaves to the reference.
CPU = EnginePath(
    "cpu",
    decoder=Kernels("cpu", "CpuBackend", frozenset({CPU_KERNELS})),
    plain=replace(_PLAIN, setting="auto"),
)
# Compiled Triton kernels and captured CUDA graphs.
CUDA = EnginePath("cuda", decoder=_TRITON, plain=_TRITON_PLAIN, device="cuda")
# The same code on the CPU in Triton's interpreter, which takes up to half a second a step.
TRITON = replace(CUDA, name="triton", device="cpu", tokens=2, prompt=6, every=4)
# Seen: 1e-7 of the largest log probability, and up to 2e-3 for one token in thirty, where another
# order of summation puts a value on the other side of a rounding edge. 8 bits against fp32: 1e-2.
INT8 = replace(CPU, name="int8", quantization="int8", tolerance=4e-3)

_MARKS = {"reference": (), "cuda": (pytest.mark.gpu,)}  # the others are slow


def path_params(*paths: EnginePath) -> list[ParameterSet]:
    """For a fixture or `parametrize("path", ..., indirect=True)`, marked for their suites.

    Those of the C++ decoder come on the narrowest and the widest instruction set of the machine;
    the tests of the kernels themselves run on those between, too.
    """
    return [
        pytest.param(each, id=each.name, marks=_MARKS.get(path.name, (pytest.mark.slow,)))
        for path in paths
        for each in (_by_isa(path) if path.is_compiled else (path,))
    ]


def _by_isa(path: EnginePath) -> list[EnginePath]:
    return [
        replace(path, name=f"{path.name}-{isa}", isa=isa)
        for isa in dict.fromkeys((here()[0], here()[-1]))
    ]


class PathEngine(Protocol):
    """What the parity tests ask of an engine, wherever it runs."""

    def publish(self, name: str, folder: Path) -> str: ...
    def run(self, *requests: EngineRequest) -> list[Answer]: ...
    def parts_called(self, *requests: EngineRequest) -> frozenset[str]: ...
    def merge(self, mixture: ResolvedMixture | None) -> MergedState: ...
    def put_centroids(self, centroids: Mapping[str, Sequence[float]]) -> None: ...
    def stats(self) -> EngineStats: ...
    def spoilt_blocks(self) -> frozenset[int]: ...
    def findable_blocks(self) -> frozenset[int]: ...
    def close(self) -> None: ...


class PathHarness(EngineHarness):
    """An engine on one path, with the token router `given`.

    A step that runs on another backend than the path's is an AssertionError.
    """

    def __init__(
        self,
        root: Path,
        path: EnginePath,
        kernel_cache: Path,
        *,
        model: Path | str = "tiny-random",
        decoder: bool = True,
        config: EngineConfig | None = None,
        routers: Mapping[str, TokenRouter] | None = None,
    ) -> None:
        """`decoder`: whether one of ours is made for the model; False for transformers' code."""
        self._kernels = path.kernels(decoder=decoder)
        self._untouched: dict[str, Tensor] = {}  # the base's weights, from the first merge on
        config = config or EngineConfig(cache=CacheConfig(num_blocks=512))
        given = GivenTokenRouter(wake=lambda: self.wake())
        super().__init__(
            root,
            model,
            replace(
                config,
                model=replace(config.model, device=path.device, quantization=path.quantization),
                kernels=KernelConfig(self._kernels.setting, kernel_cache, path.isa),
            ),
            {"given": given, **(routers or {})},
        )

    def step(self) -> list[EngineEvent]:
        backend, wanted = self.engine.backend, self._kernels.backend
        name = type(backend).__name__ if backend.capabilities.has_decoder else None
        assert name == wanted, f"the step runs on {name}, not on {wanted}"
        return super().step()

    def parts_called(self, *requests: EngineRequest) -> frozenset[str]:
        """Those of PARTS whose functions are called for the requests."""
        with modules_called() as modules:
            self.run(*requests)
        return frozenset(part for part in PARTS if any(name.startswith(part) for name in modules))

    def merge(self, mixture: ResolvedMixture | None) -> MergedState:
        """Fold a mixture into the base, or restore it; asserts that the base's weights say so."""
        self._untouched = self._untouched or self._weights()
        state = self.wait(self.engine.merge(mixture))
        weights = self._weights()
        same = all(torch.equal(weights[path], kept) for path, kept in self._untouched.items())
        assert same == (mixture is None)
        return state

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def spoilt_blocks(self) -> frozenset[int]:
        """Blocks of the cache that hold a number which is not finite."""
        cache = self.engine._cache
        parts = (*cache.keys, *cache.values)
        spoilt = torch.stack([~part.isfinite().flatten(1).all(1) for part in parts]).any(0)
        blocks = spoilt.view(cache.num_blocks, cache.block_size).any(1)
        return frozenset(blocks.nonzero()[:, 0].tolist())

    def findable_blocks(self) -> frozenset[int]:
        """Blocks that the prefix cache gives away."""
        return frozenset(self.engine._blocks.keys)

    def _weights(self) -> dict[str, Tensor]:
        """A copy of every linear layer's weight, from where the kernels read it."""
        read = self.engine.backend.read_weight
        return {path: read(path).clone() for path in self.engine.base.linears}


class InterpretedEngine:
    """A `PathHarness` in the process where Triton's kernels are interpreted."""

    def __init__(
        self, pool: ProcessPoolExecutor, root: Path, path: EnginePath, **options: object
    ) -> None:
        self._pool = pool
        self._root = root
        pool.submit(_open, root, path, **options).result(HANG_SECONDS)

    def publish(self, name: str, folder: Path) -> str:
        return self._call(PathHarness.publish, name, folder)

    def run(self, *requests: EngineRequest) -> list[Answer]:
        return self._call(PathHarness.run, *requests)

    def parts_called(self, *requests: EngineRequest) -> frozenset[str]:
        return self._call(PathHarness.parts_called, *requests)

    def merge(self, mixture: ResolvedMixture | None) -> MergedState:
        return self._call(PathHarness.merge, mixture)

    def put_centroids(self, centroids: Mapping[str, Sequence[float]]) -> None:
        self._call(PathHarness.put_centroids, centroids)

    def stats(self) -> EngineStats:
        return self._call(PathHarness.stats)

    def spoilt_blocks(self) -> frozenset[int]:
        return self._call(PathHarness.spoilt_blocks)

    def findable_blocks(self) -> frozenset[int]:
        return self._call(PathHarness.findable_blocks)

    def close(self) -> None:
        self._call(PathHarness.close)

    def _call(
        self, method: Callable[Concatenate[PathHarness, P], T], *args: P.args, **options: P.kwargs
    ) -> T:
        call: Callable[..., T] = _call
        return self._pool.submit(call, self._root, method, *args, **options).result(HANG_SECONDS)


@contextmanager
def modules_called() -> Iterator[set[str]]:
    """The modules whose Python functions this thread calls meanwhile."""
    called: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            called.add(frame.f_globals.get("__name__", ""))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(before)


_open_engines: dict[Path, PathHarness] = {}  # of the interpreter's process


def _open(root: Path, path: EnginePath, **options: object) -> None:
    make: Callable[..., PathHarness] = PathHarness
    _open_engines[root] = make(root, path, **options)


def _call(
    root: Path,
    method: Callable[Concatenate[PathHarness, P], T],
    *args: P.args,
    **options: P.kwargs,
) -> T:
    return method(_open_engines[root], *args, **options)
