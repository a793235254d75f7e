"""Importing AdaMix's bottlenecks, and copies of either variant kept apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from adaptermix.training.importing.adamix.importer import ImportedAdamix, import_adamix
from adapters_store.errors import InvalidAdapterError
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.store import AdapterStore
from adapters_store.types import AdapterManifest
from router_engine.model.loader import base_spec
from tests.adapters_store.parity.test_peft_parity import spec_of
from tests.support.adamix_bottleneck import SIZE, bottleneck_model
from tests.support.adamix_checkpoint import (
    ALPHA,
    EXPERTS,
    HIDDEN,
    LAYERS,
    RANK,
    adamix_model,
    save_checkpoint,
    state_of,
)
from tests.support.tiny import family_model

SCORES = [0.3 * expert for expert in range(EXPERTS)]
SOUP = "module.transformer.h.1.mlp.ExpertSoup"
OPTIONS: dict[str, dict[str, Any]] = {
    "up shared, as published": {},
    "none shared, tuned scores": {"copies": (EXPERTS, EXPERTS), "scores": SCORES},
    "down shared": {"copies": (1, EXPERTS)},
}


def published(imported: ImportedAdamix, root: Path) -> tuple[AdapterManifest, dict[str, Tensor]]:
    """The manifest and the tensors that a store of the tiny GPT-2 keeps of the folder."""
    store = AdapterStore.open(root / "store")
    model = family_model("gpt2")
    base = base_spec("tiny", model, dict(spec_of(model).linears))
    record = store.publish("x", imported.folder, base=base)
    tensors = load_file(store.blobs.fetch(record.digest).tensors)
    store.close()
    return record.manifest, tensors


def averaged(tensors: dict[str, Tensor], key: str | None, weights: tuple[float, ...]) -> Tensor:
    assert key is not None
    return torch.einsum("e,e...->...", torch.tensor(weights), tensors[key])


@pytest.mark.parametrize("how", ["averaged", "kept"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_bottlenecks_do_after_each_mlp_what_the_original_does(
    options: dict[str, Any], how: str, tmp_path: Path
) -> None:
    model = bottleneck_model(**options)
    file = save_checkpoint(tmp_path / "model.final.pt", state_of(model, full=True))
    imported = import_adamix(file, None, tmp_path / "out", keep_copies=how == "kept")
    manifest, tensors = published(imported, tmp_path)
    assert [expert.site for expert in manifest.experts] == [
        f"transformer.h.{layer}.mlp#serial" for layer in range(LAYERS)
    ]
    u = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(1))
    for expert, block in zip(manifest.experts, model.transformer.h, strict=True):
        assert isinstance(expert, BottleneckExpertSpec)
        assert (expert.activation, expert.scale, expert.size) == ("gelu_tanh", 1.0, SIZE)
        assert (expert.copies is not None) is (how == "kept")
        keys = (expert.tensor_down, expert.tensor_down_bias, expert.tensor_up)
        down, down_bias, up = (tensors[str(key)] for key in keys)
        up_bias = tensors[str(expert.tensor_up_bias)]
        if expert.copies is not None:
            ways = (expert.copies.down, expert.copies.down, expert.copies.up)
            down, down_bias, up = map(averaged, [tensors] * 3, keys, ways)
            up_bias = averaged(tensors, expert.tensor_up_bias, expert.copies.up)
        inner = functional.gelu(functional.linear(u, down, down_bias), approximate="tanh")
        made = u + functional.linear(inner, up, up_bias)
        expected = block.mlp.ExpertSoup(u)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
        relu = u + functional.linear(functional.linear(u, down, down_bias).relu(), up, up_bias)
        assert not torch.allclose(relu, expected, atol=1e-2)


def test_each_copy_of_a_bottleneck_is_kept(tmp_path: Path) -> None:
    model = bottleneck_model(copies=(EXPERTS, 1), scores=SCORES)
    file = save_checkpoint(tmp_path / "model.pt", state_of(model))
    imported = import_adamix(file, None, tmp_path / "out", keep_copies=True)
    manifest, tensors = published(imported, tmp_path)
    for expert, block in zip(manifest.experts, model.transformer.h, strict=True):
        assert isinstance(expert, BottleneckExpertSpec)
        assert expert.copies is not None
        expected = torch.tensor(SCORES).softmax(0)
        torch.testing.assert_close(torch.tensor(expert.copies.down), expected)
        assert expert.copies.up == (1.0,)
        side = block.mlp.ExpertSoup.MoA_A.deepspeed_experts
        for kept, copy in zip(tensors[expert.tensor_down], side, strict=True):
            assert torch.equal(kept, copy.weight)
    card = (imported.folder / "README.md").read_text()
    assert "| kept | 8 experts of A, the only copy (shared) of B, in each of 2 layers" in card


@pytest.mark.parametrize("copies", [(EXPERTS, 1), (EXPERTS, EXPERTS), (1, EXPERTS)])
def test_copies_of_a_lora_average_to_the_folder_without(
    copies: tuple[int, int], tmp_path: Path
) -> None:
    model = adamix_model(copies=copies, scores=SCORES)
    file = save_checkpoint(tmp_path / "model.pt", state_of(model))
    apart = import_adamix(file, ALPHA, tmp_path / "apart", keep_copies=True)
    plain = load_file(
        import_adamix(file, ALPHA, tmp_path / "plain").folder / "adapter_model.safetensors"
    )
    manifest, tensors = published(apart, tmp_path)
    assert len(manifest.experts) == LAYERS
    for expert in manifest.experts:
        assert isinstance(expert, LoraExpertSpec)
        assert expert.copies is not None
        assert (len(expert.copies.down), len(expert.copies.up)) == copies
        assert (expert.rank, expert.scale) == (2 * RANK, ALPHA / RANK)
        assert tensors[expert.tensor_b].shape == (copies[1], 3 * HIDDEN, 2 * RANK)
        name = f"base_model.model.{expert.module}"
        a = averaged(tensors, expert.tensor_a, expert.copies.down)
        b = averaged(tensors, expert.tensor_b, expert.copies.up)
        torch.testing.assert_close(a, plain[f"{name}.lora_A.weight"])
        torch.testing.assert_close(b, plain[f"{name}.lora_B.weight"])
        if copies[0] > 1:
            first = tensors[expert.tensor_a][0]
            assert not torch.allclose(first, plain[f"{name}.lora_A.weight"], atol=1e-2)


def refused(tmp_path: Path, state: Any, alpha: float | None = None) -> str:
    file = save_checkpoint(tmp_path / "model.pt", state)
    with pytest.raises(InvalidAdapterError) as raised:
        import_adamix(file, alpha, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("MoA_A.deepspeed_experts.3.weight", None, "lacks deepspeed_experts.3.weight of 8"),
        ("MoA_A.deepspeed_experts.3.bias", None, "lacks deepspeed_experts.3.bias of 8 experts"),
        ("MoA_B.deepspeed_experts.0.bias", None, "has no deepspeed_experts.<e>.bias"),
        ("MoA_A.deepspeed_experts.9.bias", torch.ones(SIZE), "is one expert too many"),
        (
            "MoA_A.deepspeed_experts.3.weight",
            torch.ones(2, 2),
            "is float32 [2, 2], expected",
        ),
        (
            "MoA_B.deepspeed_experts.0.bias",
            torch.ones(SIZE),
            "is float32 [6], expected",
        ),
        ("MoA_A.expert_score_weight", torch.full((8,), torch.nan), "holds values that are NaN or"),
        ("MoA_A.gate.weight", torch.ones(2), "holds what GPT-2 and its AdaMix bottlenecks don't"),
    ],
)
def test_bottlenecks_that_cannot_be(key: str, value: Any, said: str, tmp_path: Path) -> None:
    state: Any = state_of(bottleneck_model())
    if value is None:
        del state[f"{SOUP}.{key}"]
    else:
        state[f"{SOUP}.{key}"] = value
    assert said in refused(tmp_path, state)


def test_layers_of_bottlenecks_must_be_whole_and_agree(tmp_path: Path) -> None:
    state: Any = state_of(bottleneck_model())
    first = {key: value for key, value in state.items() if ".h.1." in key}
    assert "transformer.h.0.mlp: has no ExpertSoup" in refused(tmp_path, first)
    for piece in ("weight", "bias"):
        for expert in range(1, EXPERTS):
            del state[f"{SOUP}.MoA_A.deepspeed_experts.{expert}.{piece}"]
    said = refused(tmp_path, state)
    assert "has 1 of A, 1 of B, r = 6, d = 64, but transformer.h.0.mlp has 8 of A" in said


def test_the_variants_are_not_mixed(tmp_path: Path) -> None:
    state: Any = {**state_of(bottleneck_model()), **state_of(adamix_model())}
    assert "experts_lora_A.0" in refused(tmp_path, state)
    said = refused(tmp_path, state_of(bottleneck_model()), ALPHA)
    assert "--alpha: is given, but AdaMix's bottlenecks have no scale: leave it out" in said
