"""What every backend must do, as functions that any process can run: `backends.base.Backend`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from router_engine.backends.base import Backend, ForwardOutput
from router_engine.config import (
    CacheConfig,
    CpuIsa,
    Device,
    EngineConfig,
    KernelConfig,
    ModelConfig,
)
from router_engine.mixture.weights import StepWeights
from router_engine.request import EngineRequest, SamplingSpec
from router_engine.scheduling.plan import PlannedRow, StepPlan
from tests.support.harness import EngineHarness
from tests.support.tiny import make_lora_folder

TEXT = tuple(range(5, 27))
_BLOCK_SIZE, _BLOCKS = 16, 4
_TOLERANCE = 1e-4
_MODULE = "model.layers.0.mlp.down_proj"


@dataclass(frozen=True, slots=True)
class Made:
    """How an engine is asked for a backend, and the class that it is to be."""

    kernels: str
    backend: str
    cache: Path  # of compiled kernels
    isa: CpuIsa | None = None


def check_backend(device: Device, made: Made, root: Path) -> None:
    """Everything of the Protocol, on the tiny model."""
    config = EngineConfig(
        model=ModelConfig(device=device, probe_layer=1),
        cache=CacheConfig(block_size=_BLOCK_SIZE, num_blocks=16),
        kernels=KernelConfig(made.kernels, made.cache, made.isa),
    )
    harness = EngineHarness(root / "engine", config=config)
    backend = harness.engine.backend
    assert type(backend).__name__ == made.backend
    assert harness.engine.stats().kernels == backend.capabilities.kernels
    folder = make_lora_folder(root / "lora")
    digest = harness.publish("a", folder)
    harness.wait(harness.engine.load(digest))
    with torch.inference_mode():
        _check_outputs(backend, harness, digest)
        _check_chunks(backend)
        _check_weights(backend, harness)
    harness.close()


def _check_outputs(backend: Backend, harness: EngineHarness, digest: str) -> None:
    """Of two rows of which one wants logits, and of a plan that reads hidden states."""
    vocab, hidden = harness.engine.info.vocab_size, harness.engine.info.hidden_size
    plan = StepPlan((_row(0, len(TEXT)), _row(0, 7, first_block=_BLOCKS, needs_logits=False)))
    tokens = len(TEXT) + 7
    out = backend.forward(plan, None)
    assert out.logits.shape == (1, vocab)
    assert out.hidden_states is None
    assert out.gates is None
    _assert_finite(out, tokens)
    if out.summary is not None:
        assert out.summary.best.tolist() == out.logits.argmax(-1).tolist()
    bare = out.logits.float().cpu().clone()
    device = torch.device(harness.engine.info.device)
    weights = StepWeights((digest,), torch.full((tokens, 1), 0.8, device=device))
    tuned = backend.forward(plan, weights).logits.float().cpu()
    assert float((tuned - bare).abs().max()) > 100 * _TOLERANCE  # negative control
    read = StepPlan((_row(0, len(TEXT), reads_hidden_states=True),))
    out = backend.forward(read, None)
    assert out.hidden_states is not None
    assert out.hidden_states.shape == (len(TEXT), hidden)
    assert out.hidden_states.dtype == torch.float32
    assert out.hidden_states.device.type == "cpu"
    _assert_near(out.logits, bare)


def _check_chunks(backend: Backend) -> None:
    """The keys and values of all tokens are kept: in pieces, the last alone, as at once."""
    whole = backend.forward(StepPlan((_row(0, len(TEXT)),)), None).logits.float().cpu().clone()
    stops = [9, len(TEXT) - 1, len(TEXT)]
    for start, stop in zip([0, *stops], stops, strict=False):
        row = _row(start, stop, first_block=_BLOCKS)
        logits = backend.forward(StepPlan((row,)), None).logits
    _assert_near(logits, whole)


def _check_weights(backend: Backend, harness: EngineHarness) -> None:
    """What is written is read, computes at once, and what was there comes back bit for bit."""
    plan = StepPlan((_row(0, len(TEXT)),))
    before = backend.forward(plan, None).logits.float().cpu().clone()
    for path, shape in harness.engine.base.linears.items():
        weight = backend.read_weight(path)
        assert weight.shape == (shape.out_features, shape.in_features)
    untouched = backend.read_weight(_MODULE).to("cpu", copy=True)
    written = untouched * 1.5
    backend.write_weight(_MODULE, written)
    assert torch.equal(backend.read_weight(_MODULE).cpu(), written)
    changed = backend.forward(plan, None).logits.float().cpu().clone()
    assert float((changed - before).abs().max()) > 100 * _TOLERANCE
    backend.write_weight(_MODULE, untouched)
    assert torch.equal(backend.read_weight(_MODULE).cpu(), untouched)
    assert torch.equal(backend.forward(plan, None).logits.float().cpu(), before)


def _assert_finite(out: ForwardOutput, tokens: int) -> None:
    assert out.finite is not None
    assert out.finite.shape == (tokens,)
    assert out.finite.dtype == torch.bool
    assert bool(out.finite.all())


def _assert_near(logits: Tensor, expected: Tensor) -> None:
    difference = float((logits.float().cpu() - expected).abs().max())
    assert difference <= _TOLERANCE * float(expected.abs().max())


def _row(
    start: int,
    stop: int,
    *,
    first_block: int = 0,
    needs_logits: bool = True,
    reads_hidden_states: bool = False,
) -> PlannedRow:
    return PlannedRow(
        EngineRequest(
            f"r{first_block}",
            TEXT,
            SamplingSpec(max_new_tokens=1),
            reads_hidden_states=reads_hidden_states,
        ),
        arrival=0,
        token_ids=TEXT[start:stop],
        start=start,
        block_ids=tuple(range(first_block, first_block + _BLOCKS)),
        needs_logits=needs_logits,
        weight_runs=(),
        known_tokens=TEXT,
    )
