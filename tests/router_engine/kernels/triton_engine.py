"""A whole engine on the Triton kernels against one on the reference, for any process to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from adapters_store.types import ResolvedMixture
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
from router_engine.request import EngineRequest, SamplingParams, TokenRouting
from router_engine.routers.token.given import GivenTokenRouter
from tests.router_engine.kernels.triton_checks import TOLERANCE
from tests.support.harness import Answer, EngineHarness, request
from tests.support.tiny import ATTENTION, make_lora_folder, save_family

_EVERY_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
_RANKS = (4, 8, 4)


class _Pair:
    """The same engine twice: `reference` on the CPU, `triton` on a device."""

    def __init__(self, root: Path, family: str, dtype: DType, device: Device) -> None:
        targets = ("c_attn", "c_proj") if family == "gpt2" else _EVERY_LINEAR
        self._folders = [
            make_lora_folder(
                root / f"a{index}",
                family=family,
                rank=rank,
                targets=targets if index < 2 else targets[:2],
                seed=index + 1,
                options={"fan_in_fan_out": family == "gpt2"},
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
        holder: list[EngineHarness] = []
        harness = EngineHarness(
            root,
            self._model,
            EngineConfig(
                model=ModelConfig(dtype=self._dtype, device=device),
                cache=CacheConfig(num_blocks=48),
                scheduler=SchedulerConfig(max_step_tokens=24),
                kernels=KernelConfig(kernels),
            ),
            routers={"given": GivenTokenRouter(wake=lambda: holder[0].news.set())},
        )
        holder.append(harness)
        return harness

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


def _traffic(digests: Sequence[str], tag: str) -> list[EngineRequest]:
    """Base, sums, a linear mixture and a token-routed one; one prompt longer than a step holds."""
    first, second, third = digests
    routed = EngineRequest(
        f"{tag} routed",
        tuple(range(9, 20)),
        SamplingParams(max_new_tokens=4),
        adapters=(first, second),
        routing=TokenRouting(
            "given", {"weights": [[0.5, 1.0], [-1.0, 0.2], [0.0, 0.7], [1.5, 0.0]]}, 1
        ),
    )
    return [
        request(f"{tag} base", range(5, 33), max_new_tokens=4),
        request(f"{tag} sum", range(5, 15), {first: 0.5, second: -0.3}, max_new_tokens=5),
        request(f"{tag} one", range(6, 15), {third: 1.5}, max_new_tokens=6),
        request(
            f"{tag} linear",
            range(8, 21),
            {first: 0.5, third: 0.3},
            combination="linear",
            max_new_tokens=3,
        ),
        routed,
    ]


def check_engine(device: Device, root: str, family: str, dtype: DType) -> None:
    """Mixed traffic, then the same under a merged mixture, then the base restored."""
    pair = _Pair(Path(root), family, dtype, device)
    try:
        pair.agree(_traffic(pair.digests, "plain"), dtype)
        mixture = ResolvedMixture((pair.digests[0], pair.digests[1]), (0.5, 0.7))
        for harness in (pair.reference, pair.triton):
            harness.wait(harness.engine.merge(mixture))
        pair.agree(_traffic(pair.digests, "merged")[:3], dtype)
        for harness in (pair.reference, pair.triton):
            harness.wait(harness.engine.merge(None))
        pair.agree(_traffic(pair.digests, "restored")[:2], dtype)
    finally:
        pair.close()


def check_short_engine(device: Device, root: str, family: str, dtype: DType) -> None:
    """Mixed traffic of a few tokens: what a family or a dtype adds."""
    pair = _Pair(Path(root), family, dtype, device)
    first, second, third = pair.digests
    short = [
        request("base", range(5, 16), max_new_tokens=3),
        request("mixture", range(5, 12), {first: 0.5, second: -0.3, third: 1.0}, max_new_tokens=3),
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
                request(f"{turn} {index}", range(5 + turn, 12), mixture, max_new_tokens=3)
                for index in range(2)
            ]
            pair.agree(requests, "float32")
            body = pair.triton.engine.body
            assert isinstance(body, CudaBody)
            counts.append(len(body.graphs))
        assert counts[0] == counts[-1] > 0
    finally:
        pair.close()
