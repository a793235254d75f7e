"""What computes a model proves itself at the start; where it cannot, transformers' code runs."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from router_engine.backends import proof
from router_engine.backends.base import TORCH
from router_engine.backends.cpu import cpu_backend, packed_model
from router_engine.backends.proof import Proof, difference
from router_engine.backends.torch import attention_function
from router_engine.config import CacheConfig, EngineConfig, KernelConfig, ModelConfig, Quantization
from router_engine.errors import UnsupportedModelError
from router_engine.model.layout import Layout, layout_of
from router_engine.model.loader import load_model
from tests.router_engine.conftest import MakeHarness
from tests.router_engine.model.test_config_keys import save_with
from tests.support.harness import request
from tests.support.isas import here
from tests.support.tiny import save_family

PROMPT = list(range(5, 45))


def _wrong_layout(*args: Any) -> Layout:
    """Another epsilon than the norms have."""
    right = layout_of(*args)
    return replace(right, epsilon=100 * right.epsilon + 0.1)


@pytest.fixture
def proven(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was judged, in order."""
    names: list[str] = []
    judge = Proof.judge

    def note(self: Proof, name: str, *args: Any) -> Any:
        names.append(name)
        return judge(self, name, *args)

    monkeypatch.setattr(Proof, "judge", note)
    return names


@pytest.fixture
def compiled(kernel_cache: Path, tmp_path: Path) -> Path:
    """A cache of its own, with the compiled library and no verdicts."""
    cache = tmp_path / "kernels"
    cache.mkdir()
    for file in kernel_cache.glob("*.so"):
        (cache / file.name).symlink_to(file)
    return cache


def _config(
    cache: Path, kernels: str = "auto", quantization: Quantization = "none"
) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(quantization=quantization),
        cache=CacheConfig(num_blocks=64),
        kernels=KernelConfig(kernels, cache, here()[-1]),
    )


def test_the_size_of_a_difference() -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)) * 4
    assert difference(logits, logits) == 0
    assert difference(logits, logits + 7) == pytest.approx(0, abs=1e-6)  # the same distribution
    noise = torch.randn(3, 1000, generator=torch.Generator().manual_seed(1)) * 0.01
    assert difference(logits, logits + noise) < 2e-3
    one = logits.clone()
    one[1, 17] += 4  # of a thousand: a mean alone would hide it
    assert difference(logits, one) > 3e-2
    one[1, 17] = torch.nan
    assert not proof.ProofVerdict(difference(logits, one), 0.1).holds


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("family", ["llama", "llama-tied", "qwen2"])
def test_a_wrong_decoder_is_not_used(
    family: str,
    quantization: Quantization,
    compiled: Path,
    tmp_path: Path,
    make_harness: MakeHarness,
    proven: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The weights come back as they were, and the second start knows without a proof."""
    folder = save_family(tmp_path / "model", family)
    plain = make_harness(folder, config=_config(compiled, "reference", quantization))
    (expected,) = plain.run(request("r", PROMPT))
    proven.clear()
    monkeypatch.setattr(packed_model, "layout_of", _wrong_layout)
    for start in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            harness = make_harness(folder, config=_config(compiled, "auto", quantization))
        assert "the C++ decoder is not used" in caplog.text
        assert harness.engine.stats().kernels == TORCH
        (answer,) = harness.run(request(f"r{start}", PROMPT))
        assert answer.ids == expected.ids
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    assert proven == [here()[-1]]
    with pytest.raises(UnsupportedModelError, match="kernels 'cpu' cannot run this model exactly"):
        make_harness(folder, config=_config(compiled, "cpu", quantization))


@pytest.mark.slow
def test_what_is_known_is_not_proven_again(
    compiled: Path, tmp_path: Path, make_harness: MakeHarness, proven: list[str]
) -> None:
    folder = save_family(tmp_path / "model", "llama")
    isa = here()[-1]
    for _ in range(2):
        harness = make_harness(folder, config=_config(compiled))
        assert harness.engine.stats().kernels == isa
    assert proven == [isa]
    make_harness(folder, config=_config(compiled, "reference"))
    assert proven == [isa, "ReferenceOperations"]
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_proj.weight"][3, 3] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})
    make_harness(folder, config=_config(compiled))
    assert proven == [isa, "ReferenceOperations", isa]
    for kept in compiled.glob("proof-*"):
        kept.write_text("{")  # cut short by a full disk
    make_harness(folder, config=_config(compiled))
    assert len(proven) == 4


def test_a_changed_config_is_proven(
    tmp_path: Path, make_harness: MakeHarness, proven: list[str]
) -> None:
    for epsilon in (1e-5, 1e-6, 1e-5):
        folder = save_with(tmp_path / str(len(proven)), "llama", {"rms_norm_eps": epsilon})
        make_harness(folder, config=_config(tmp_path / "cache", "reference"))
    assert len(proven) == 2


def test_transformers_code_on_wrong_operations_is_refused(
    tmp_path: Path, make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = attention_function.paged_attention

    def wrong(*args: Any, **options: Any) -> Any:
        return right(*args, **(options | {"sliding_window": 4}))

    monkeypatch.setattr(attention_function, "paged_attention", wrong)
    with pytest.raises(UnsupportedModelError, match="not served exactly in torch"):
        make_harness(config=_config(tmp_path / "cache", "reference"))


@pytest.mark.parametrize("window", [60, None])
def test_a_prompt_goes_past_the_window(
    window: int | None, tmp_path: Path, make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the blocks that it took hold nothing afterwards."""
    lengths: list[int] = []
    seen = Proof._logits

    def note(self: Proof, run: Any) -> Any:
        lengths.append(len(self._tokens))
        return seen(self, run)

    monkeypatch.setattr(Proof, "_logits", note)
    folder = save_with(tmp_path / "model", "mistral", {"sliding_window": window})
    harness = make_harness(folder, config=_config(tmp_path / "cache", "reference"))
    assert lengths == [proof.TOKENS if window is None else window + 16]
    cache = harness.engine._cache
    assert not any(store.any() for store in (*cache.keys, *cache.values))


@pytest.mark.parametrize(("positions", "blocks"), [(1, 64), (3, 64), (512, 1)])
def test_a_prompt_fits_model_and_cache(
    positions: int, blocks: int, tmp_path: Path, make_harness: MakeHarness
) -> None:
    keys = {"max_position_embeddings": positions}
    folder = save_with(tmp_path / "model", "llama", keys)
    config = replace(_config(tmp_path / "cache", "reference"), cache=CacheConfig(num_blocks=blocks))
    make_harness(folder, config=config)


@pytest.mark.slow
@pytest.mark.parametrize("is_wrong", [False, True])
def test_a_decoder_that_is_compiled_later_is_proven_too(
    compiled: Path,
    make_harness: MakeHarness,
    proven: list[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_wrong: bool,
) -> None:
    """Requests run on, on the same blocks, and their text is the same either way."""
    monkeypatch.setattr(cpu_backend, "library_path", lambda cache: cache / "none yet")
    coming: Future[Any] = Future()
    order: list[Any] = []

    def in_background(*args: Any, is_there: bool) -> Future[Any]:
        assert not is_there
        order.extend(args)
        return coming

    monkeypatch.setattr(cpu_backend, "_coming", in_background)
    if is_wrong:
        monkeypatch.setattr(packed_model, "layout_of", _wrong_layout)
    (expected,) = make_harness(config=_config(compiled, "reference")).run(request("r", PROMPT))
    harness = make_harness(config=_config(compiled))
    harness.add(request("r", PROMPT))
    harness.step()
    assert not harness.engine.backend.capabilities.has_decoder
    coming.set_result(cpu_backend._library(*order))
    while harness.answers["r"].final is None:
        harness.step()
    answer = harness.answers["r"]
    assert answer.ids == expected.ids
    assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert harness.engine.backend.capabilities.has_decoder != is_wrong
    assert harness.engine.stats().kernels == (TORCH if is_wrong else here()[-1])
    assert proven == ["ReferenceOperations", here()[-1]]


def test_a_verdict_that_cannot_be_kept_is_no_error(
    tmp_path: Path, make_harness: MakeHarness, proven: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    for _ in range(2):
        make_harness(config=_config(tmp_path / "cache", "reference"))
    assert len(proven) == 2
    assert "is not kept" in caplog.text


def test_a_large_model_on_a_cpu_reads_no_long_prompt(
    tmp_path: Path, make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_MOST_PRODUCTS", 1e6)
    folder = save_with(tmp_path / "model", "mistral", {"sliding_window": 60})
    loaded = load_model(ModelConfig(str(folder), device="cpu"))
    cache = make_harness(folder).engine._cache
    assert len(proof._prompt(loaded, cache)) == proof.TOKENS
