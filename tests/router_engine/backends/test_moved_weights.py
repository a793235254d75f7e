"""The base's weights lie in the C++ decoder alone: merged there, restored there, moved there."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adapters_store.types import Combination, ResolvedMixture
from router_engine.backends.cpu import build as kernel_build
from router_engine.backends.cpu.build import build
from router_engine.backends.torch.wrapped_layers import MixtureLinear
from router_engine.config import CacheConfig, DType, EngineConfig, KernelConfig, ModelConfig
from router_engine.model.quantized import Int8Linear
from tests.router_engine.backends.conftest import Pair
from tests.router_engine.conftest import MakeHarness
from tests.router_engine.merging.test_merged import PROMPT, base_weights, same, swap, traffic
from tests.support.harness import EngineHarness, request
from tests.support.tiny import ATTENTION, make_lora_folder

pytestmark = pytest.mark.slow


def _config(cache: Path, dtype: DType = "float32") -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(dtype=dtype),
        cache=CacheConfig(num_blocks=512),
        kernels=KernelConfig("cpu", cache),
    )


def _linears(harness: EngineHarness) -> list[MixtureLinear]:
    return [m for m in harness.engine.model.modules() if isinstance(m, MixtureLinear)]


def _has_decoder(harness: EngineHarness) -> bool:
    return harness.engine.backend.capabilities.has_decoder


def test_no_weight_is_held_twice(
    make_harness: MakeHarness, kernel_cache: Path, family_folder: Callable[[str], Path]
) -> None:
    plain = _config(kernel_cache)
    harness = make_harness(family_folder("llama-tied"), plain)
    assert all(linear.weight.is_meta for linear in _linears(harness))
    assert not harness.engine.model.get_input_embeddings().weight.is_meta
    model = replace(plain.model, quantization="int8")
    layers = [linear.base for linear in _linears(make_harness(config=replace(plain, model=model)))]
    assert all(isinstance(layer, Int8Linear) and layer.values.is_meta for layer in layers)


@pytest.mark.parametrize("combination", ["sum", "linear"])
def test_fifty_merges_and_restores_under_mixed_traffic(
    combination: Combination, make_harness: MakeHarness, kernel_cache: Path, folders: list[Path]
) -> None:
    harness = make_harness(config=_config(kernel_cache))
    for answer, before in swap(harness, folders, combination, 50):
        assert answer.ids == before.ids
        assert answer.logprobs == pytest.approx(before.logprobs, abs=1e-4)


def test_bf16_does_not_drift(
    make_harness: MakeHarness, kernel_cache: Path, folders: list[Path]
) -> None:
    harness = make_harness(config=_config(kernel_cache, "bfloat16"))
    assert len(list(swap(harness, folders, "sum", 50))) == 250


def test_a_merged_head_leaves_the_embedding_alone(
    make_pair: Callable[..., Pair], family_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT advises against adapters on tied layers
        folder = make_lora_folder(
            tmp_path / "lora", family="llama-tied", targets=(*ATTENTION, "lm_head")
        )
    answers = []
    for harness in make_pair(family_folder("llama-tied")):
        digest = harness.publish("lora", folder)
        untouched = base_weights(harness)
        harness.wait(harness.engine.merge(ResolvedMixture((digest,), (1.0,))))
        merged = base_weights(harness)
        assert same({"embedding": untouched["embedding"]}, {"embedding": merged["embedding"]})
        assert not same({"lm_head": untouched["lm_head"]}, {"lm_head": merged["lm_head"]})
        requests = (request("base", PROMPT), request("tuned", PROMPT, {digest: 1.0}))
        answers.append([answer.ids for answer in harness.run(*requests)])
        harness.wait(harness.engine.merge(None))
        assert same(untouched, base_weights(harness))
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][1]  # negative control


def test_the_decoder_takes_over_while_a_mixture_is_merged(
    make_harness: MakeHarness,
    kernel_cache: Path,
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A compiler that links when it is told to: the decoder appears between two steps."""
    go = tmp_path / "go"
    os.mkfifo(go)
    compiler = tmp_path / "g++"
    compiler.write_text(
        "#!/bin/sh\nfor target; do :; done\n"
        f'case "$*" in *-shared*) cat {go}; cp {build(kernel_cache)} "$target";; esac\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(kernel_build, "SHIPPED", tmp_path)  # nothing is
    config = _config(tmp_path / "cache")
    harness = make_harness(config=replace(config, kernels=KernelConfig("auto", tmp_path / "cache")))
    digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders)]
    untouched = base_weights(harness)
    expected = harness.run(*traffic(digests, "before"))
    harness.wait(harness.engine.merge(ResolvedMixture((digests[0], digests[3]), (0.5, 0.7))))
    merged = base_weights(harness)
    requests = traffic(digests, "across")
    harness.add(*requests)
    for _ in range(3):
        harness.step()
    assert not _has_decoder(harness)
    go.write_text("")
    while not _has_decoder(harness):
        harness.run(request(f"waiting {harness.engine.stats().steps}", PROMPT[:3]))
    assert same(merged, base_weights(harness))
    while any(harness.answers[r.request_id].final is None for r in requests):
        harness.step()
    after = harness.run(*traffic(digests, "after"))
    harness.wait(harness.engine.merge(None))
    assert same(untouched, base_weights(harness))
    across = [harness.answers[r.request_id] for r in requests]
    for answers in (across, after, harness.run(*traffic(digests, "restored"))):
        for answer, before in zip(answers, expected, strict=True):
            assert answer.ids == before.ids
            assert answer.logprobs == pytest.approx(before.logprobs, abs=1e-4)
