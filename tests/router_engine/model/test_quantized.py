"""The base in 8 bits on the reference path: the equation, every family, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adapters_store.types import ResolvedMixture
from router_engine.config import CacheConfig, EngineConfig, MergeConfig, ModelConfig, Quantization
from router_engine.errors import EngineError, MixtureError, UnsupportedModelError
from router_engine.model.quantized import Int8Linear, quantize_by_torchao, quantize_linears
from tests.router_engine.conftest import ALL_LINEARS, MakeHarness
from tests.support.harness import request
from tests.support.tiny import FAMILIES, family_model, make_lora_folder

PROMPTS = [list(range(5, 30)), [40, 41, 42], list(range(100, 137))]
COUNT = 12
# Of the log probability of a token; 8 bits round a value by up to 1/254 of its row's top.
TOLERANCE = 0.15


def _config(quantization: Quantization = "int8") -> EngineConfig:
    model = ModelConfig(quantization=quantization)
    return EngineConfig(model=model, cache=CacheConfig(num_blocks=512))


def _layer(inputs: int, outputs: int) -> tuple[Int8Linear, Tensor, Tensor]:
    """A random layer, the weight that it was made of, and its bias."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator)
    bias = nn.Parameter(torch.randn(outputs, generator=generator))
    return Int8Linear(weight, bias), weight, bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 33])
def test_a_layer_is_its_equation(rows: int, dtype: torch.dtype) -> None:
    """The sums in 64-bit integers, row by row and stretch by stretch."""
    layer, weight, bias = _layer(100, 48)
    x = torch.randn(rows, 100, generator=torch.Generator().manual_seed(1)).to(dtype)
    for row, y in zip(x, layer(x), strict=True):
        expected = torch.zeros(48, dtype=torch.float64)
        for start in (0, 64):
            part = row[start : start + 64].float()
            top = part.abs().max()
            integers = torch.round(part * (top.reciprocal() * 127)).long()  # in fp32: ties
            sums = layer.values[:, start : start + 64].long() @ integers
            expected += sums * (top.double() / 127 * layer.scale.double())
        torch.testing.assert_close(y, (expected + bias).to(dtype))
    exact = x.double() @ weight.double().T + bias
    assert (layer(x).double() - exact).abs().max() <= 0.02 * exact.abs().max()


def test_a_row_does_not_depend_on_the_others() -> None:
    layer, _, bias = _layer(64, 32)
    x = (
        torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
        * torch.logspace(-3, 3, 20)[:, None]
    )
    assert torch.equal(layer(x), torch.cat([layer(row[None]) for row in x]))
    assert torch.equal(layer(torch.zeros(1, 64))[0], bias)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_matches_generate(
    family: str, make_harness: MakeHarness, family_folder: Callable[[str], Path]
) -> None:
    harness = make_harness(family_folder(family), _config())
    answers = harness.run(
        *(request(f"r{i}", prompt, max_new_tokens=COUNT) for i, prompt in enumerate(PROMPTS))
    )
    model = family_model(family)
    quantize_linears(model)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=COUNT,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert answer.ids == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_mixtures_stay_near_the_plain_base(
    family: str,
    make_harness: MakeHarness,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    targets = ("c_attn", "c_proj", "c_fc") if family == "gpt2" else ALL_LINEARS
    options = {"fan_in_fan_out": True} if family == "gpt2" else {}
    folders = [
        make_lora_folder(
            tmp_path / f"a{seed}", family=family, targets=targets, seed=seed, options=options
        )
        for seed in (1, 2)
    ]
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 259, size=20).tolist() for _ in range(12)]
    answers = []
    for quantization in ("none", "int8"):
        harness = make_harness(family_folder(family), _config(quantization))
        first, second = (harness.publish(folder.name, folder) for folder in folders)
        mixtures: list[dict[str, float]] = [{}, {first: 1.0}, {first: 0.6, second: -0.4}]
        requests = [
            request(f"r{i}", prompt, mixtures[i % 3], max_new_tokens=1)
            for i, prompt in enumerate(prompts)
        ]
        answers.append(harness.run(*requests))
    plain, quantized = answers
    pairs = [(a, b) for a, b in zip(plain, quantized, strict=True) if a.ids == b.ids]
    assert len(pairs) >= 9  # the rest are near ties
    for a, b in pairs:
        assert b.logprobs == pytest.approx(a.logprobs, abs=TOLERANCE)
    assert [a.logprobs for a, _ in pairs] != [b.logprobs for _, b in pairs]  # negative control


def test_a_tied_embedding_keeps_its_format(
    make_harness: MakeHarness, family_folder: Callable[[str], Path]
) -> None:
    plain, quantized = (
        make_harness(family_folder("llama-tied"), _config(q)).engine for q in ("none", "int8")
    )
    embeddings = [engine.model.get_input_embeddings().weight for engine in (plain, quantized)]
    assert torch.equal(*embeddings)
    assert quantized.base == plain.base


def test_cached_prefixes_change_nothing(make_harness: MakeHarness) -> None:
    harness = make_harness(config=_config())
    first, again = harness.run(request("r", PROMPTS[0])), harness.run(request("s", PROMPTS[0]))
    assert harness.engine.stats().prefix_hit_tokens > 0
    assert first[0].ids == again[0].ids
    assert again[0].logprobs == pytest.approx(first[0].logprobs, abs=1e-5)


def test_merging_is_refused(make_harness: MakeHarness, folders: list[Path]) -> None:
    harness = make_harness(config=_config())
    digest = harness.publish("a", folders[0])
    before = harness.run(request("before", PROMPTS[0]))
    with pytest.raises(MixtureError, match=r"int8.*with each request.*'none'"):
        harness.wait(harness.engine.merge(ResolvedMixture((digest,), (1.0,))))
    assert harness.engine.merged().mode == "unmerged"
    assert harness.run(request("after", PROMPTS[0]))[0].ids == before[0].ids
    with pytest.raises(EngineError, match=r"merge 'auto'.*'int8'.*'manual'.*'none'"):
        EngineConfig(model=ModelConfig(quantization="int8"), merge=MergeConfig("auto"))


def test_what_torchao_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)  # as if it weren't installed
    with pytest.raises(UnsupportedModelError, match=r"adaptermix\[gpu-quantization\]"):
        quantize_by_torchao(family_model("llama"))
    with pytest.raises(UnsupportedModelError, match=r"GPT2LMHeadModel.*'cpu'.*'none'"):
        quantize_by_torchao(family_model("gpt2"))
