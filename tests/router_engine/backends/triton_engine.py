"""A whole engine on the Triton kernels against one on the reference, for any process to run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters_store.types import ResolvedMixture
from router_engine.backends.cuda import cuda_decoder, flashinfer_attention
from router_engine.backends.cuda.cuda_backend import CudaBackend
from router_engine.backends.proof import Proof
from router_engine.config import (
    CacheConfig,
    Device,
    DType,
    EngineConfig,
    KernelConfig,
    ModelConfig,
    SchedulerConfig,
)
from router_engine.model.layout import Layout, layout_of
from router_engine.request import EngineRequest, SamplingSpec
from router_engine.runner import RunningStep
from router_engine.scheduling.plan import StepPlan
from tests.router_engine.kernels.triton_checks import TOLERANCE
from tests.router_engine.model.test_config_keys import save_with
from tests.support import fake_flashinfer
from tests.support.harness import Answer, EngineHarness, request
from tests.support.tiny import ATTENTION, make_lora_folder, save_family

_EVERY_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
_RANKS = (4, 8, 4)


_TRITON = KernelConfig("triton")


class _Pair:
    """The same engine twice: `reference` on the CPU, `triton` on a device."""

    def __init__(
        self,
        root: Path,
        family: str,
        dtype: DType,
        device: Device,
        kernels: KernelConfig = _TRITON,
    ) -> None:
        self._folders = [
            make_lora_folder(
                root / f"a{index}",
                family=family,
                rank=rank,
                targets=_EVERY_LINEAR if index < 2 else _EVERY_LINEAR[:2],
                seed=index + 1,
            )
            for index, rank in enumerate(_RANKS)
        ]
        self._model = save_family(root / "model", family)
        self._dtype = dtype
        self.reference = self._make(root / "reference", KernelConfig("reference"), "cpu")
        self.triton = self._make(root / "triton", kernels, device)
        for harness in (self.reference, self.triton):
            self.digests = [
                harness.publish(f"a{index}", folder) for index, folder in enumerate(self._folders)
            ]

    def _make(self, root: Path, kernels: KernelConfig, device: Device) -> EngineHarness:
        return EngineHarness(
            root,
            self._model,
            EngineConfig(
                model=ModelConfig(dtype=self._dtype, device=device),
                cache=CacheConfig(num_blocks=48),
                scheduler=SchedulerConfig(max_step_tokens=24),
                kernels=kernels,
            ),
        )

    def agree(self, requests: Sequence[EngineRequest], dtype: DType) -> None:
        ours, theirs = self.triton.run(*requests), self.reference.run(*requests)
        for one, other in zip(ours, theirs, strict=True):
            _agree(one, other, dtype)

    def close(self) -> None:
        self.reference.close()
        self.triton.close()


def _agree(ours: Answer, theirs: Answer, dtype: DType) -> None:
    """In fp32 to the reference's own tolerance; coarser formats until the texts part."""
    if dtype == "float32":
        assert ours.ids == theirs.ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
        return
    for one, other in zip(ours.tokens, theirs.tokens, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=10 * TOLERANCE[dtype])
        if one.token_id != other.token_id:
            return


def check_dtype(device: Device, root: str, family: str, dtype: DType) -> None:
    """Mixed traffic of a few tokens."""
    pair = _Pair(Path(root), family, dtype, device)
    first, second, third = pair.digests
    short = [
        request("base", range(5, 16), max_new_tokens=2),
        request("mixture", range(5, 12), {first: 0.5, second: -0.3, third: 1.0}, max_new_tokens=2),
    ]
    try:
        pair.agree(short, dtype)
    finally:
        pair.close()


def check_steps_ahead(device: Device, root: str) -> None:
    """Drawn on the device and fed there, greedily and not; some end where nobody knew before."""
    pair = _Pair(Path(root), "llama", "float32", device)
    first, second, third = pair.digests
    try:
        plans: list[StepPlan] = []
        begin = pair.triton.engine._runner.begin

        def noted(plan: StepPlan, merged: ResolvedMixture | None) -> RunningStep:
            plans.append(plan)
            return begin(plan, merged)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pair.triton.engine._runner, "begin", noted)
            greedy = [
                request("base", range(5, 16), max_new_tokens=7),
                request("mixture", range(5, 12), {first: 0.5, second: -0.3}, max_new_tokens=5),
                request("linear", range(3, 9), {first: 0.5, third: 0.2}, combination="linear"),
            ]
            drawn = SamplingSpec(max_new_tokens=6, temperature=1.5, seed=3, top_k=9, top_n_tokens=2)
            pair.agree([*greedy, replace(greedy[1], request_id="drawn", sampling=drawn)], "float32")
            stops = replace(drawn, stop_token_ids=tuple(range(0, 128, 2)))
            pair.agree([replace(greedy[0], request_id="stops", sampling=stops)], "float32")
        assert {plan.fed is None for plan in plans} == {True, False}
        assert any(plan.fed not in (None, tuple(range(len(plan.rows)))) for plan in plans)
    finally:
        pair.close()


def check_flashinfer(device: Device, root: str, family: str, *, enforce_eager: bool) -> None:
    """Its wrappers are planned with what they are to compute, in graphs and without.

    Without a card the library is one that computes its documented results in plain torch.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "flashinfer", fake_flashinfer)
        patch.setattr(flashinfer_attention, "DTYPES", (torch.float32,))
        patch.setattr(flashinfer_attention, "HEAD_DIMS", (16,))
        patch.setattr(fake_flashinfer, "MADE", [])
        kernels = replace(_TRITON, attention="flashinfer", enforce_eager=enforce_eager)
        pair = _Pair(Path(root), family, "float32", device, kernels)
        first, second, third = pair.digests
        try:
            short = [
                request("base", range(5, 16), max_new_tokens=6),
                request("mixture", range(5, 12), {first: 0.5, second: -0.3}, max_new_tokens=5),
                request("long", [7, *range(3, 40)], {third: 1.0}, max_new_tokens=4),
            ]
            pair.agree(short, "float32")
            assert enforce_eager != all(made.in_graphs for made in fake_flashinfer.MADE)
        finally:
            pair.close()


def check_graphs_serve_every_mixture(device: Device, root: str) -> None:
    """Batches of one size under different mixtures: no further graph, and the right text each."""
    pair = _Pair(Path(root), "llama", "float32", device)
    try:
        counts: list[int] = []
        for turn, weights in enumerate(((0.5, 0.3), (-1.0, 2.0), (0.0, 0.4))):
            mixture = dict(zip(pair.digests, weights, strict=False))
            requests = [
                request(f"{turn} {index}", range(5 + turn, 12), mixture, max_new_tokens=2)
                for index in range(2)
            ]
            pair.agree(requests, "float32")
            backend = pair.triton.engine.backend
            assert isinstance(backend, CudaBackend)
            assert backend.graphs is not None
            counts.append(len(backend.graphs))
        assert counts[0] == counts[-1] > 0
    finally:
        pair.close()


def check_a_wrong_decoder_is_not_used(device: Device, root: str) -> None:
    """Transformers' code on the same kernels runs instead, and a second start needs no proof."""
    config = EngineConfig(
        model=ModelConfig(device=device),
        cache=CacheConfig(num_blocks=64),
        kernels=KernelConfig("triton", Path(root) / "kernels"),
    )

    def wrong(*arguments: Any) -> Layout:
        right = layout_of(*arguments)
        return replace(right, epsilon=100 * right.epsilon + 0.1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_decoder, "layout_of", wrong)
        for start in range(2):
            harness = EngineHarness(Path(root) / str(start), config=config)
            assert not harness.engine.backend.capabilities.has_decoder
            harness.close()
            patch.delattr(Proof, "expected", raising=False)  # what is kept is not asked again


def check_a_key_that_a_llama_ignores(device: Device, root: str) -> None:
    """With a window its decoder would have been found wrong, and not be used."""
    config = EngineConfig(
        model=ModelConfig(device=device),
        cache=CacheConfig(num_blocks=64),
        kernels=KernelConfig("triton", Path(root) / "kernels"),
    )
    folder = save_with(Path(root) / "model", "llama", {"sliding_window": 4})
    harness = EngineHarness(Path(root) / "engine", folder, config)
    backend = harness.engine.backend
    assert isinstance(backend, CudaBackend)
    assert backend.capabilities.has_decoder
    harness.close()
