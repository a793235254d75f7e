"""The CPU backend: the C++ decoder once there is one, transformers' code until then.

Compiling never holds up the start: until the library is there, and where it cannot be, the torch
backend runs, which computes the same.
"""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import Future
from typing import Any

from torch import Tensor

from router_engine.backends.base import TORCH, Capabilities, ForwardOutput
from router_engine.backends.cpu.build import build, library_path, machine_isas
from router_engine.backends.cpu.choice import choose, layer_shape, running
from router_engine.backends.cpu.cpu_steps import CpuSteps
from router_engine.backends.cpu.library import Library
from router_engine.backends.cpu.packed_model import PackedModel, refusal
from router_engine.backends.proof import ProofVerdict
from router_engine.backends.spec import BackendParts, BackendSpec
from router_engine.backends.torch.torch_backend import TorchBackend
from router_engine.config import KernelConfig
from router_engine.errors import EngineError, UnsupportedModelError
from router_engine.merging.merged_base import BaseWeights
from router_engine.mixture.weights import StepWeights
from router_engine.model.layout import layout_of
from router_engine.model.loader import LoadedModel
from router_engine.scheduling.plan import StepPlan

_EXPERT_KINDS = frozenset({"lora", "bottleneck", "prompt"})  # that the decoder has code for

_log = logging.getLogger(__name__)


class CpuBackend:
    """As `backends.base.Backend`. Used by the engine's thread; a decoder comes between two steps.

    The weights move into the decoder: from then on they are nowhere else, and merged there.
    """

    captures = None
    feed = None

    def __init__(self, parts: BackendParts) -> None:
        """Raises EngineError, which has its reasons, under `cpu`, which has no fallback.

        Also where the instruction set that is asked for does not run here.
        """
        config = parts.config
        if config.isa is not None and config.isa not in machine_isas():
            raise EngineError(
                f"instruction set {config.isa!r} does not run here: "
                f"{', '.join(machine_isas()) or 'none'} do"
            )
        self._parts = parts
        self._has_fallback = config.kernels != "cpu"
        self._torch = TorchBackend(parts)
        self._weights: BaseWeights = self._torch
        self._steps: CpuSteps | None = None
        self._isa = TORCH  # of what computes
        self._moving = threading.Lock()  # held while the weights move into the decoder
        self._coming: Future[Library | None] | None = None
        self._begin()
        if self._steps is None:
            self._torch.prove()

    @property
    def capabilities(self) -> Capabilities:
        may_decode = self._steps is not None or self._coming is not None
        return Capabilities(
            kernels=self._isa,
            has_decoder=self._steps is not None,
            expert_kinds=_EXPERT_KINDS if may_decode else None,
        )

    def forward(self, plan: StepPlan, weights: StepWeights | None) -> ForwardOutput:
        """See `StepRunner.forward`. The next call overwrites the logits."""
        self._receive()
        steps = self._torch if self._steps is None else self._steps
        return steps.forward(plan, weights)

    def read_weight(self, module: str) -> Tensor:
        """See `BaseWeights.read_weight`."""
        with self._moving:
            return self._weights.read_weight(module)

    def write_weight(self, module: str, weight: Tensor) -> None:
        """See `BaseWeights.write_weight`."""
        self._weights.write_weight(module, weight)

    def _begin(self) -> None:
        """Take the decoder that is there, or let one be compiled."""
        config, loaded = self._parts.config, self._parts.loaded
        reason = refusal(loaded)
        if reason is not None:
            if not self._has_fallback:
                raise UnsupportedModelError(f"kernels 'cpu' cannot run this model: {reason}")
            return
        is_there = os.path.exists(library_path(config.cache))
        if not self._has_fallback or (config.isa is not None and is_there):
            self._take_over(_library(config, loaded))
            return
        self._coming = _coming(config, loaded, is_there=is_there)
        self._receive()  # what is there already computes from the first step on

    def _receive(self) -> None:
        """Let the library compute from now on, if it has come."""
        if self._coming is None or not self._coming.done():
            return
        coming, self._coming = self._coming, None
        error = coming.exception()
        if error is None:
            self._take_over(coming.result())
        else:
            is_expected = isinstance(error, EngineError | OSError)
            _log.warning(
                "the CPU kernels are not used: %s", error, exc_info=None if is_expected else error
            )

    def _take_over(self, library: Library | None) -> None:
        """Compute on a library, if there is one that is faster than torch, and exact.

        Raises UnsupportedModelError for one that isn't exact under `cpu`.
        """
        if library is None:
            return
        parts = self._parts

        def make() -> CpuSteps:
            with self._moving:
                model = PackedModel(library, parts.loaded, parts.linears, parts.cache)
                self._weights = model
            return CpuSteps(model, parts.experts.pool, model.vocab, parts.loaded.probe_layer)

        self._steps, verdict = parts.proof.accept(library.isa, make, self._take_back)
        if self._steps is None:
            self._refuse(library, verdict)
        else:
            self._isa = library.isa

    def _take_back(self, steps: CpuSteps) -> None:
        """Let the wrapped layers hold the weights again."""
        embedding: Any = self._parts.loaded.model.get_input_embeddings()
        with self._moving:
            steps.model.give_back(self._parts.linears, embedding.weight)
            self._torch = TorchBackend(self._parts)
            self._weights = self._torch

    def _refuse(self, library: Library, verdict: ProofVerdict) -> None:
        if not self._has_fallback:
            raise UnsupportedModelError(
                f"kernels 'cpu' cannot run this model exactly: on {library.isa} {verdict}. Use "
                "kernels 'auto' or 'reference'"
            )
        _log.warning("the C++ decoder is not used, transformers' code runs: %s", verdict)


def _library(config: KernelConfig, loaded: LoadedModel) -> Library | None:
    """The library on the set that is asked for, or on the fastest; None where torch is faster.

    `cpu` asks for the decoder whatever torch could do. Raises EngineError.
    """
    path = build(config.cache)
    if config.isa is not None:
        return Library(path, config.isa)
    shape = layer_shape(layout_of(loaded.model, loaded.attention))
    int8 = loaded.quantization == "int8"
    name = running(config, choose(path, config.cache, shape, loaded.dtype, int8=int8))
    return None if name == TORCH else Library(path, name)


def _coming(config: KernelConfig, loaded: LoadedModel, *, is_there: bool) -> Future[Library | None]:
    """The library: at once where it is compiled, or else when it will be; or why there is none."""
    coming: Future[Library | None] = Future()

    def work() -> None:
        try:
            coming.set_result(_library(config, loaded))
        except Exception as error:  # whatever it is: whoever waits must hear of it
            coming.set_exception(error)

    if is_there:
        work()
    else:
        # A daemon: an engine that ends does not wait for a compiler.
        threading.Thread(target=work, name="kernel-build", daemon=True).start()
    return coming


SPEC = BackendSpec(
    name="cpu",
    summary="the C++ decoder",
    kernels="reference",
    refusal=refusal,
    make=CpuBackend,
)
