"""What is read of an adapter: copies, keys and values of prompts, and what the pool keeps of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.types import ResolvedMixture
from router_engine.backends.torch.parameter_weights import ParameterWeights
from router_engine.backends.torch.projections import ModelProjections
from router_engine.backends.torch.wrapped_layers import wrap_linears
from router_engine.experts.base import BaseProjections
from router_engine.experts.copies import choose_copies
from router_engine.experts.loading import load_adapter
from router_engine.experts.memory import HostMemory
from router_engine.experts.rows import RowPool
from router_engine.experts.step import StepExperts
from router_engine.experts.variants import Side, average
from router_engine.kernels.reference.operations import ReferenceOperations
from router_engine.merging.merged_base import MergedBase
from router_engine.model.attention_calls import attention_calls
from router_engine.model.loader import LoadedModel, kv_shape
from router_engine.model.quantized import quantize_linears
from tests.support.expert_adapters import (
    LORA,
    MOE_LORA,
    NATIVE,
    PROMPT,
    SERIAL,
    SOFT,
    FolderFiles,
    make_expert_folder,
)
from tests.support.tiny import family_model

CPU = torch.device("cpu")
ATTENTION = "model.layers.1.self_attn"


def _pool() -> RowPool:
    return RowPool(HostMemory(1 << 20), dtype=torch.float32, device=CPU)


def _base(family: str, quantization: Any = "none") -> tuple[Any, ModelProjections, MergedBase]:
    """A model whose biases and norms do something, and its projections."""
    model: Any = family_model(family)
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.5)
    if quantization != "none":
        quantize_linears(model)
    shape = kv_shape(attention_calls(model))
    loaded = LoadedModel(model, shape, 512, (), torch.float32, CPU, quantization)
    linears = wrap_linears(model, StepExperts(_pool(), ReferenceOperations()))
    merged = MergedBase(ParameterWeights(loaded, linears))
    return model, ModelProjections(loaded, merged), merged


@pytest.fixture
def projections() -> BaseProjections:
    return _base("llama")[1]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@torch.no_grad()
def test_keys_and_values_are_those_of_the_base(family: str) -> None:
    """Also while a mixture is merged; and once it is not, they are the same again."""
    model, projections, _ = _base(family)
    attention = model.get_submodule(ATTENTION)
    prompt = torch.randn(5, 64)
    shape = (5, -1, 16)
    expected = attention.k_proj.base(prompt).view(shape)
    if family == "qwen3":
        expected = attention.k_norm(expected)
    keys, values = projections.keys_and_values(ATTENTION, prompt)
    torch.testing.assert_close(keys, expected)
    torch.testing.assert_close(values, attention.v_proj.base(prompt).view(shape))


def test_a_merged_mixture_does_not_touch_prompts(tmp_path: Path) -> None:
    _, projections, merged = _base("llama")
    prompt = torch.randn(5, 64)
    before = projections.keys_and_values(ATTENTION, prompt)
    folder = make_expert_folder(tmp_path / "lora", replace(LORA, targets=("k_proj", "v_proj")))
    lora = load_adapter("lora", FolderFiles.of(folder), torch.float32, projections)
    merged.merge(ResolvedMixture(("lora",), (1.0,)), [lora])
    for one, other in zip(projections.keys_and_values(ATTENTION, prompt), before, strict=True):
        assert torch.equal(one, other)
    merged.restore()
    for one, other in zip(projections.keys_and_values(ATTENTION, prompt), before, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_integers_stand_for_numbers() -> None:
    model, projections, _ = _base("qwen2", "int8")
    exact, _, _ = _base("qwen2")
    prompt = torch.randn(5, 64)
    keys, _ = projections.keys_and_values(ATTENTION, prompt)
    linear = model.get_submodule(ATTENTION).k_proj.base
    weight = linear.values.float() * linear.scale[:, None]
    torch.testing.assert_close(keys.flatten(1), prompt @ weight.T + linear.bias)
    unrounded = exact.get_submodule(ATTENTION).k_proj.base(prompt)
    assert 1e-4 < float((keys.flatten(1) - unrounded).abs().max()) < 0.1


def test_copies_are_averaged_as_the_manifest_says(
    projections: BaseProjections, tmp_path: Path
) -> None:
    layers = replace(SERIAL, targets=("q_proj",), copies=3)
    files = FolderFiles.of(make_expert_folder(tmp_path / "copies", layers))
    adapter = load_adapter("c", files, torch.float32, projections)
    tensors = load_file(files.tensors)
    lora, bottleneck = files.manifest.experts[0], files.manifest.experts[1]
    assert isinstance(lora, LoraExpertSpec)
    assert lora.copies is not None
    weights = torch.tensor(lora.copies.down)
    expected = torch.tensordot(weights, tensors[lora.tensor_a], 1)
    torch.testing.assert_close(adapter.rows_by_site[lora.site].a, expected)
    torch.testing.assert_close(
        adapter.rows_by_site[lora.site].b, lora.scale * tensors[lora.tensor_b][0].T
    )
    bias = torch.tensordot(weights, tensors[f"{bottleneck.module}.serial.d"], 1)
    found = adapter.rows_by_site[bottleneck.site].bias
    assert found is not None
    torch.testing.assert_close(found, torch.cat([bias, torch.ones(1)]))


def test_a_variant_chooses_copies_side_by_side(
    projections: BaseProjections, tmp_path: Path
) -> None:
    asked: set[tuple[str, Side]] = set()

    def third(expert: ExpertSpec, side: Side) -> tuple[float, ...]:
        asked.add((expert.module, side))
        return (0.0, 0.0, 1.0) if side == "down" else (1.0,)

    layers = replace(SERIAL, targets=("q_proj",), copies=3)
    files = FolderFiles.of(make_expert_folder(tmp_path / "copies", layers))
    adapter = load_adapter("c", files, torch.float32, projections, third)
    lora = files.manifest.lora_experts[0]
    assert torch.equal(
        adapter.rows_by_site[lora.site].a, load_file(files.tensors)[lora.tensor_a][2]
    )
    assert asked == {(e.module, side) for e in files.manifest.experts for side in ("down", "up")}
    assert average(lora, "up") == (1.0,)


def test_a_copy_without_a_weight_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 weights for 3 copies"):
        choose_copies(torch.zeros(3, 2), (0.5, 0.5))


def test_the_pool_holds_what_the_manifest_counts(
    projections: BaseProjections, tmp_path: Path
) -> None:
    """Rows by site, columns of gates, and the bytes of rows and routers, which come back."""
    pool = _pool()
    kinds = {"soft": SOFT, "native": NATIVE, "moe": MOE_LORA, "prompt": PROMPT, "lora": LORA}
    adapters = []
    for name, layers in kinds.items():
        files = FolderFiles.of(make_expert_folder(tmp_path / name, layers))
        adapters.append(load_adapter(name, files, torch.float32, projections))
        pool.place(adapters[-1])
        assert pool.residents[name].num_rows == files.manifest.rows_by_site
    digests = tuple(kinds)
    assert pool.gate_columns(digests) == (("soft", 0, 6), ("native", 6, 7), ("moe", 13, 8))
    assert pool.are_plain_lora(("lora",))
    assert not pool.are_plain_lora(("lora", "prompt"))
    for adapter in adapters:
        assert pool.remove(adapter.digest) == adapter.num_bytes
    assert pool.used_rows == pool.used_bytes == 0
    pool.check_integrity()


def test_rows_keep_what_they_are_when_they_move(
    projections: BaseProjections, tmp_path: Path
) -> None:
    """A gated adapter comes to a site after a plain one, moves as that leaves, and stays itself."""
    pool = _pool()
    files = FolderFiles.of(make_expert_folder(tmp_path / "soft", SOFT))
    plain = FolderFiles.of(make_expert_folder(tmp_path / "lora", LORA))
    pool.place(load_adapter("lora", plain, torch.float32, projections))
    pool.place(load_adapter("soft", files, torch.float32, projections))
    site = "model.layers.0.mlp.down_proj"
    both = pool.active(site, ("lora", "soft"))
    assert both is not None
    assert both.gate is not None
    assert both.gate.tolist() == [-1] * 4 + [4] * 4
    pool.remove("lora")
    pool.place(load_adapter("wide", plain, torch.float32, projections))
    moved = pool.active(site, ("soft", "wide"))
    assert moved is not None
    assert moved.gate is not None
    assert moved.gate.tolist() == [4] * 4 + [-1] * 4
    assert torch.equal(moved.a[:4], both.a[4:])
    located = pool.residents["soft"].located("model.layers.0.mlp#parallel")
    assert located is not None
    assert (located.count, located.activation, located.has_up_bias) == (9, "silu", True)
    assert located.bias != 0
    assert located.gate != 0
