"""MoA in training against its equations written out, on the exported tensors; and its gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adaptermix.training.data import Example
from adaptermix.training.errors import TrainingError
from adaptermix.training.loss import collate, completion_logits
from adaptermix.training.moa.building import moa_model, moe_lora_model
from adaptermix.training.moa.folder import load_moa, save_moa
from adaptermix.training.moa.model import MoaModel
from adaptermix.training.settings import (
    GatedLoraSettings,
    MoaSettings,
    MoeLoraSettings,
    RunSettings,
)
from tests.adaptermix.training.conftest import MakeRun
from tests.adaptermix.training.moa_equations import written
from tests.support.tiny import family_model, save_family

TOKENS = torch.arange(20, 44)
LORA: dict[str, Any] = {
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
    "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "down_proj"),
}


def stir(model: MoaModel, seed: int = 3) -> MoaModel:
    """As in the middle of a training: nothing is zero, and gates differ."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.tensors.items():
        wide = tensor.ndim == 2 and "prompt" not in name
        std = 1.5 * tensor.shape[1] ** -0.5 if wide else 0.5
        tensor.copy_(std * torch.randn(tensor.shape, generator=generator))
    return model


def logits_of(model: MoaModel) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(TOKENS[None]).logits[0]
    return out


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize(
    ("family", "moa"),
    [
        ("llama", MoaSettings(prompt=5)),
        ("llama", MoaSettings(router_factor=0, router_input="pre_norm", ranks=("down_proj=7",))),
        ("llama", MoaSettings(variant="sparse", gamma_max=0.9, router_input="pre_norm")),
        ("llama", MoaSettings(variant="sparse", threshold="constant", parallel=0)),
        ("llama", MoaSettings(variant="sparse", threshold="straight_through")),
        ("qwen3", MoaSettings(prompt=3)),
    ],
    ids=["soft", "linear", "sparse", "constant", "straight", "qwen3"],
)
def test_what_trains_is_what_the_exported_tensors_say(
    family: str, moa: MoaSettings, make_run: MakeRun, tmp_path: Path
) -> None:
    base = save_family(tmp_path / "base", family)
    model = stir(moa_model(make_run(base=str(base), lora=LORA), moa))
    save_moa(model, tmp_path, "float32")
    ours = logits_of(model)
    oracle = written(family_model(family), tmp_path)
    theirs = oracle.logits(TOKENS)
    assert_near(ours, theirs)
    torch.testing.assert_close(model.gates, torch.stack(oracle.gates), rtol=0, atol=1e-4)
    gates = model.gates
    assert gates.std(dim=-1).mean() > 0.1  # negative controls: gates differ, experts act
    assert (gates == 0).any() == (moa.variant == "sparse")
    assert (gates != 0).any()
    plain = family_model(family)(TOKENS[None]).logits[0]
    assert (ours - plain).abs().max() > 0.1 * plain.abs().max()
    again = load_moa(tmp_path, make_run(base=str(base)))
    assert torch.equal(logits_of(again), ours)


def test_a_mixture_of_lora_is_what_its_exported_tensors_say(
    make_run: MakeRun, tmp_path: Path
) -> None:
    model = stir(moe_lora_model(make_run(lora=LORA), MoeLoraSettings(experts=4, top_k=2)))
    save_moa(model, tmp_path, "float32")
    oracle = written(family_model("llama"), tmp_path)
    assert_near(logits_of(model), oracle.logits(TOKENS))
    gates = model.gates
    assert torch.equal((gates > 0).sum(dim=-1), torch.full((2, len(TOKENS)), 2))
    torch.testing.assert_close(gates.sum(dim=-1), torch.ones(2, len(TOKENS)))


def test_gates_of_whole_prompts_are_those_of_each_rows_own_prompt(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """In a padded batch."""
    model = stir(moa_model(make_run(lora=LORA), MoaSettings(variant="instance"))).eval()
    save_moa(model, tmp_path, "float32")
    oracle = written(family_model("llama"), tmp_path)
    examples = [
        Example(tuple(range(10, 30)), prompt_length=15),
        Example(tuple(range(40, 47)), prompt_length=2),
    ]
    with torch.no_grad():
        together = completion_logits(model, collate(examples, torch.device("cpu")))
    for row, example in enumerate(examples):
        length = example.completion_length
        tokens = torch.tensor(example.tokens)
        alone = oracle.logits(tokens, example.prompt_length)[-length - 1 : -1]
        assert_near(together[row, -length:], alone)
        whole = oracle.logits(tokens, len(tokens))[-length - 1 : -1]
        assert (whole - alone).abs().max() > 1e-3 * alone.abs().max()
    with pytest.raises(TrainingError, match="need prompt_mask"):
        model(TOKENS[None])
    again = load_moa(tmp_path, make_run())
    assert again.takes_prompt_mask


def test_fresh_experts_leave_the_base_as_it_is(make_run: MakeRun) -> None:
    """LoRA, prompt and mixtures exactly; the bottleneck nearly, as published."""
    run = make_run(lora=LORA)
    plain = family_model("llama")(TOKENS[None]).logits[0]
    for model in (
        moa_model(run, MoaSettings(prompt=4, parallel=0)),
        moe_lora_model(run, MoeLoraSettings()),
    ):
        assert torch.equal(logits_of(model), plain)
    nearly = logits_of(moa_model(run, MoaSettings()))
    assert 0 < (nearly - plain).abs().max() < 1e-4


def _gradients(run: RunSettings, moa: MoaSettings) -> dict[str, Tensor | None]:
    model = stir(moa_model(run, moa)).train()
    model(TOKENS[None]).logits.log_softmax(-1)[0, :-1, 5].mean().backward()
    assert all(parameter.grad is None for parameter in model.base.parameters())
    layers: list[Any] = list(model.layers)
    return {
        name: tensor.grad
        for layer in layers
        for part in (layer.router, *layer.experts)
        for name, tensor in part.tensors.items()
    }


def test_a_frozen_threshold_has_no_gradient_and_a_straight_through_one_has(
    make_run: MakeRun,
) -> None:
    run = make_run(lora=LORA)
    frozen = _gradients(run, MoaSettings(variant="sparse"))
    trained = _gradients(run, MoaSettings(variant="sparse", threshold="straight_through"))
    for name, gradient in frozen.items():
        assert (gradient is None) == ("threshold" in name)
    assert all(gradient is not None and gradient.any() for gradient in trained.values())


def test_experts_below_the_threshold_learn_nothing(make_run: MakeRun) -> None:
    """With every gate closed the hard mask passes no gradient; the slope's reaches the router."""
    run = make_run(lora=LORA)
    shut = _gradients(run, MoaSettings(variant="sparse", gamma_max=1.0, threshold="constant"))
    assert all(gradient is not None and not gradient.any() for gradient in shut.values())
    half = _gradients(run, MoaSettings(variant="sparse", threshold="constant", gamma_max=0.5))
    assert any(gradient is not None and gradient.any() for gradient in half.values())


def test_the_slope_is_that_of_the_sigmoid_and_the_value_that_of_the_mask(
    make_run: MakeRun,
) -> None:
    """d(g m)/d(theta) = -g s (1 - s) / temperature, s = sigmoid((g - theta) / temperature)."""
    moa = MoaSettings(variant="sparse", threshold="straight_through", temperature=0.3)
    model = stir(moa_model(make_run(lora=LORA), moa))
    layer: Any = model.layers[0]
    v = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(0))
    weights = layer.router(v, None)
    net = f"{layer.router.spec.threshold.prefix}.bias"
    bias = layer.router.tensors[net]
    weights.sum().backward()
    hard = stir(moa_model(make_run(lora=LORA), MoaSettings(variant="sparse")))
    same: Any = hard.layers[0]
    same.router.load_state_dict(layer.router.state_dict())
    with torch.no_grad():
        assert torch.equal(same.router(v, None), weights)
        loose = moa_model(make_run(lora=LORA), MoaSettings())
        soft: Any = loose.layers[0]
        for name, tensor in soft.router.tensors.items():
            tensor.copy_(layer.router.tensors[name])
        g = soft.router(v, None)
        prefix = layer.router.spec.threshold.prefix
        t = layer.router.tensors
        opened = (v @ t[f"{prefix}.weight"].T + t[f"{prefix}.bias"]).sigmoid()
        s = ((g - 0.5 * opened) / 0.3).sigmoid()
        by_theta = -g * s * (1 - s) / 0.3
        expected = (by_theta * 0.5 * opened * (1 - opened)).sum()
    torch.testing.assert_close(bias.grad.sum(), expected, rtol=1e-4, atol=1e-6)


def test_targets_and_ranks_that_are_not_there_are_refused(make_run: MakeRun) -> None:
    with pytest.raises(TrainingError, match=r"'lm_head' is no linear layer inside a layer.*q_proj"):
        moa_model(make_run(lora={**LORA, "targets": ("lm_head",)}), MoaSettings())
    with pytest.raises(TrainingError, match=r"ranks names 'up_proj', which is no target"):
        moa_model(make_run(lora=LORA), MoaSettings(ranks=("up_proj=3",)))


def test_gpt2_is_adapted_without_a_prompt(make_run: MakeRun, tmp_path: Path) -> None:
    base = str(save_family(tmp_path / "base", "gpt2"))
    run = make_run(base=base, lora={**LORA, "targets": ("c_attn", "mlp.c_proj")})
    with pytest.raises(TrainingError, match=r"prompt is 2, but tiny .GPT2LMHeadModel. has no k_"):
        moa_model(run, MoaSettings(prompt=2))
    model = stir(moa_model(run, MoaSettings()))
    assert [e.module for e in model.manifest.experts[:3]] == [
        "transformer.h.0.attn.c_attn",
        "transformer.h.0.mlp.c_proj",
        "transformer.h.0.mlp",
    ]
    plain = family_model("gpt2")(TOKENS[None]).logits[0]
    assert (logits_of(model) - plain).abs().max() > 0.1 * plain.abs().max()


def test_the_default_targets_are_the_published_ones() -> None:
    lora = GatedLoraSettings()
    assert (lora.rank, lora.alpha) == (8, 8.0)
    assert lora.targets == LORA["targets"]


@pytest.mark.parametrize("variant", ["sparse", "instance"])
def test_generation_goes_on_under_the_gates_that_the_equations_give(
    variant: Any, make_run: MakeRun, tmp_path: Path
) -> None:
    """Rows of two lengths in one batch, with a cache, against everything computed anew."""
    model = stir(moa_model(make_run(lora=LORA), MoaSettings(variant=variant))).eval()
    save_moa(model, tmp_path, "float32")
    oracle = written(family_model("llama"), tmp_path)
    prompts = [[*range(50, 62)], [7]]
    tokens = torch.tensor([prompts[0], [0] * 11 + prompts[1]])
    out = model.generate(
        tokens,
        attention_mask=(tokens > 0).long(),
        do_sample=False,
        max_new_tokens=6,
        eos_token_id=None,
        pad_token_id=0,
    )
    for row, prompt in zip(out.tolist(), prompts, strict=True):
        ids = list(prompt)
        for _ in range(6):
            length = len(prompt) if variant == "instance" else None
            ids.append(int(oracle.logits(torch.tensor(ids), length)[-1].argmax()))
        assert row[-6:] == ids[-6:]
