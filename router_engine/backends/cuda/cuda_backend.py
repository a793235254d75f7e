"""The CUDA backend: the Triton decoder where it can run the model, else transformers' code.

Then mixtures and attention still run on the Triton kernels, but without graphs.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from torch import Tensor

from router_engine.backends.base import Capabilities, Captures, ForwardOutput, TokenFeed
from router_engine.backends.cuda.captures import StepCaptures
from router_engine.backends.cuda.cuda_decoder import CudaDecoder, refusal
from router_engine.backends.cuda.cuda_steps import CudaSteps
from router_engine.backends.cuda.flashinfer_attention import (
    FlashInfer,
    FlashInferGraphAttention,
    FlashInferOperations,
    HeadShape,
)
from router_engine.backends.cuda.graph_attention import GraphAttention
from router_engine.backends.cuda.graphs import CudaCapture, Graphs, run_directly
from router_engine.backends.cuda.staging import StepRoom
from router_engine.backends.spec import BackendParts, BackendSpec
from router_engine.backends.torch.torch_backend import TorchBackend
from router_engine.kernels.triton.compilation import compiled_ahead
from router_engine.kernels.triton.every_launch import (
    AttentionShape,
    launch_attention,
    launch_low_rank,
)
from router_engine.mixture.weights import StepWeights
from router_engine.processes.progress import told
from router_engine.scheduling.plan import StepPlan

_log = logging.getLogger(__name__)

_NAME = "triton"


class CudaBackend:
    """As `backends.base.Backend`."""

    def __init__(self, parts: BackendParts) -> None:
        library = _flashinfer(parts)
        if library is not None:
            parts = replace(parts, operations=FlashInferOperations(library))
        self._torch = TorchBackend(parts)
        self._steps: CudaSteps | None = None
        self._eager = parts.config.enforce_eager
        _compile_operations(parts)
        reason = refusal(parts.loaded)
        if reason is None:
            self._steps = _proven_steps(parts, library)
        else:
            _log.info("no decoder of our own: %s", reason)
        if self._steps is None:
            self._torch.prove()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(kernels=_NAME, has_decoder=self._steps is not None)

    @property
    def captures(self) -> Captures | None:
        if self._steps is None or self._eager:
            return None
        return StepCaptures(self._steps)

    @property
    def feed(self) -> TokenFeed | None:
        return None if self._steps is None else self._steps.feed

    @property
    def graphs(self) -> Graphs | None:
        """The decode steps captured so far; None without a decoder."""
        return None if self._steps is None else self._steps.graphs

    def forward(self, plan: StepPlan, weights: StepWeights | None) -> ForwardOutput:
        """See `StepRunner.forward`."""
        steps = self._torch if self._steps is None else self._steps
        return steps.forward(plan, weights)

    def read_weight(self, module: str) -> Tensor:
        """See `BaseWeights.read_weight`."""
        return self._torch.read_weight(module)

    def write_weight(self, module: str, weight: Tensor) -> None:
        """See `BaseWeights.write_weight`."""
        self._torch.write_weight(module, weight)
        captures = self.captures
        if self._steps is not None and self._steps.refresh() and captures is not None:
            captures.capture(len(captures), lambda done, of: None)  # no step waits for one


def _compile_operations(parts: BackendParts) -> None:
    """Those that run without a decoder, and beside it for what it does not know."""
    dtype = parts.loaded.dtype
    linears = {(each.shape.in_features, each.shape.out_features) for each in parts.linears.values()}
    attention = {
        AttentionShape(call.heads, call.kv_heads, call.head_dim, call.window)
        for call in parts.loaded.attention
    }
    with (
        told(_log, "Compiling kernels of mixtures and attention") as on_progress,
        compiled_ahead(on_progress),
    ):
        launch_attention(attention, parts.cache.block_size, dtype)
        launch_low_rank(linears, parts.limits.tokens, dtype)


def _flashinfer(parts: BackendParts) -> FlashInfer | None:
    """The library that computes attention, where it is asked for."""
    if parts.config.attention != "flashinfer":
        return None
    shape = HeadShape.of(parts.loaded.attention, parts.loaded.dtype)
    return FlashInfer(shape, parts.cache.block_size, parts.loaded.device)


def _proven_steps(parts: BackendParts, library: FlashInfer | None) -> CudaSteps | None:
    """The decoder, or None, with a warning, where it isn't exact."""
    loaded = parts.loaded
    windows = list(dict.fromkeys(call.window for call in loaded.attention))

    def flashinfer_attention(room: StepRoom) -> GraphAttention:
        assert library is not None
        return FlashInferGraphAttention(library, windows, room)

    def make() -> CudaSteps:
        steps = CudaSteps(
            CudaDecoder(loaded, parts.linears, parts.cache),
            parts.experts,
            parts.cache,
            parts.operations,
            limits=parts.limits,
            new_capture=CudaCapture if loaded.device.type == "cuda" else lambda: run_directly,
            new_attention=None if library is None else flashinfer_attention,
            enforce_eager=parts.config.enforce_eager,
        )
        with (
            told(_log, "Compiling kernels of the decoder") as on_progress,
            compiled_ahead(on_progress),
        ):
            steps.launch_kinds()
        return steps

    # Nothing to take back: the model's own parameters are views of what the decoder reads.
    steps, verdict = parts.proof.accept(_NAME, make, lambda steps: None)
    if steps is None:
        _log.warning("the Triton decoder is not used, transformers' code runs: %s", verdict)
    return steps


SPEC = BackendSpec(
    name="cuda",
    summary="the Triton decoder, with CUDA graphs",
    kernels=_NAME,
    refusal=refusal,
    make=CudaBackend,
)
