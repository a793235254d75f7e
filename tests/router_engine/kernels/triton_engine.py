"""A whole engine on the Triton kernels against one on the reference, for any process to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from router_engine.config import (
    CacheConfig,
    Device,
    DType,
    EngineConfig,
    KernelConfig,
    ModelConfig,
    SchedulerConfig,
)
from router_engine.model.cuda.body import CudaBody
from router_engine.request import EngineRequest
from tests.router_engine.kernels.triton_checks import TOLERANCE
from tests.support.harness import Answer, EngineHarness, request
from tests.support.tiny import ATTENTION, make_lora_folder, save_family

_EVERY_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
_RANKS = (4, 8, 4)


class _Pair:
    """The same engine twice: `reference` on the CPU, `triton` on a device."""

    def __init__(self, root: Path, family: str, dtype: DType, device: Device) -> None:
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
        self.reference = self._make(root / "reference", "reference", "cpu")
        self.triton = self._make(root / "triton", "triton", device)
        for harness in (self.reference, self.triton):
            self.digests = [
                harness.publish(f"a{index}", folder) for index, folder in enumerate(self._folders)
            ]

    def _make(self, root: Path, kernels: str, device: Device) -> EngineHarness:
        return EngineHarness(
            root,
            self._model,
            EngineConfig(
                model=ModelConfig(dtype=self._dtype, device=device),
                cache=CacheConfig(num_blocks=48),
                scheduler=SchedulerConfig(max_step_tokens=24),
                kernels=KernelConfig(kernels),
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
            body = pair.triton.engine.body
            assert isinstance(body, CudaBody)
            counts.append(len(body.graphs))
        assert counts[0] == counts[-1] > 0
    finally:
        pair.close()
