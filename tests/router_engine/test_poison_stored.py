"""Adapters that hold inf and NaN as they are stored, which no upload brings in: a second line.

On plain torch and on every instruction set, over a vocabulary of whole vectors, as real models
have: of logits that are all NaN none is the highest.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from _pytest.mark import ParameterSet

from router_engine.config import CacheConfig, EngineConfig, KernelConfig
from router_engine.events import FinishReason
from router_engine.experts.base import AdapterContents, AdapterSource
from router_engine.model.tiny import save_tiny, tiny_model
from router_engine.request import EngineRequest
from router_engine.scheduling.request_validation import NOT_FINITE
from tests.router_engine.conftest import MakeHarness
from tests.support.expert_adapters import (
    LORA,
    PARALLEL,
    PROMPT,
    SERIAL,
    FolderFiles,
    edited,
    make_expert_folder,
)
from tests.support.harness import request
from tests.support.isas import here

VOCABULARY = 272
KINDS = {
    "lora": (LORA, (".a", ".b")),
    "parallel": (PARALLEL, (".down", ".up", ".d", ".u")),
    "serial": (SERIAL, (".down", ".up", ".d", ".u")),
    "prompt": (PROMPT, (".prompt", ".prompt_gate")),
}
TEXT = range(5, 25)


class SpoiltSource:
    """Gives other files for some digests than those that were published."""

    def __init__(self, source: AdapterSource, spoilt: dict[str, Path]) -> None:
        self._source = source
        self._spoilt = spoilt

    def fetch(self, digest: str) -> AdapterContents:
        if digest in self._spoilt:
            return FolderFiles.of(self._spoilt[digest])
        return self._source.fetch(digest)


def _kernels() -> list[ParameterSet]:
    compiled = (pytest.param(isa, id=isa, marks=pytest.mark.slow) for isa in here())
    return [pytest.param(None, id="reference"), *compiled]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_tiny(directory)
    wide = tiny_model()
    with torch.random.fork_rng(devices=[]):
        wide.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    wide.save_pretrained(directory)
    return directory


@pytest.fixture(params=_kernels())
def kernels(request: pytest.FixtureRequest) -> KernelConfig:
    """The reference, or the C++ decoder on one instruction set."""
    if request.param is None:
        return KernelConfig("reference")
    return KernelConfig("cpu", request.getfixturevalue("kernel_cache"), request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_of_stored_inf_and_nan(
    kind: str, kernels: KernelConfig, model: Path, make_harness: MakeHarness, tmp_path: Path
) -> None:
    spoilt: dict[str, Path] = {}
    config = EngineConfig(cache=CacheConfig(num_blocks=64, block_size=4), kernels=kernels)
    harness = make_harness(
        model=model, config=config, wrap_source=lambda source: SpoiltSource(source, spoilt)
    )
    assert harness.engine.info.vocab_size == VOCABULARY
    layers, keys = KINDS[kind]
    healthy = harness.publish("healthy", make_expert_folder(tmp_path / "healthy", layers, seed=99))

    def neighbours(tag: str, **zero: float) -> list[EngineRequest]:
        mixtures: list[dict[str, float]] = [{}, {healthy: 0.8}, {healthy: 0.8, **zero}]
        return [
            request(f"{tag} {i}", TEXT[: 3 + 5 * i], mixture, max_new_tokens=4)
            for i, mixture in enumerate(mixtures)
        ]

    expected = harness.run(*neighbours("without"))
    for key in keys:
        for number in (torch.inf, -torch.inf, torch.nan):
            tag = f"{key} {number}"
            folder = make_expert_folder(tmp_path / tag / "stored", layers, seed=len(spoilt))
            digest = harness.publish(f"poison{len(spoilt)}", folder)
            spoilt[digest] = edited(folder, tmp_path / tag / "spoilt", {key: number})
            poison = request(f"poison {tag}", TEXT, {digest: 1.0}, max_new_tokens=4)
            *beside, failed = harness.run(*neighbours(f"beside {tag}", **{digest: 0.0}), poison)
            assert (failed.end.reason, failed.end.error) == (FinishReason.FAILED, NOT_FINITE)
            assert not failed.tokens
            for one, other in zip(beside, expected, strict=True):
                assert one.end.reason is FinishReason.LENGTH, one.end.error
                assert one.ids == other.ids
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
