"""Copies of A and B: what a draw computes, what it leaves alone, and what their mean is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from adaptermix.training.adamix.copies import CopiedLinear
from adaptermix.training.adamix.draws import Draws
from adaptermix.training.adamix.pairs import make_copies, merge_copies
from adaptermix.training.errors import TrainingError
from adaptermix.training.settings import AdamixSettings, Routing
from tests.support.tiny import family_model

RANK, ALPHA, SEED = 4, 12.0, 5
TARGETS = {"llama": ("q_proj", "down_proj"), "gpt2": ("c_attn",)}


def _model(family: str, settings: AdamixSettings, draws: Draws) -> Any:
    """A tiny model whose copies all differ, B included."""
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=list(TARGETS[family]),
        fan_in_fan_out=family == "gpt2",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = get_peft_model(family_model(family), config)
        make_copies(model, settings, draws)
        for module in _copies(model):
            for weight in module.weights:
                torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def _copies(model: Any) -> list[CopiedLinear]:
    return [module for module in model.modules() if isinstance(module, CopiedLinear)]


def _weights(model: Any) -> dict[str, Tensor]:
    """Every copy by the name of its parameter."""
    return {
        f"{name}.weights.{index}": weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, CopiedLinear)
        for index, weight in enumerate(module.weights)
    }


def _layer(family: str, model: Any) -> Any:
    name = TARGETS[family][0]
    return next(m for key, m in model.named_modules() if key.endswith(name))


def _by_hand(layer: Any, x: Tensor, down: Sequence[int], up: Sequence[int]) -> Tensor:
    """y = W x + bias + alpha / r * B_j A_i x of each example."""
    rows = []
    for row, i, j in zip(x, down, up, strict=True):
        a, b = layer.lora_A["default"].weights[i], layer.lora_B["default"].weights[j]
        rows.append(layer.base_layer(row) + ALPHA / RANK * (row @ a.T @ b.T))
    return torch.stack(rows)


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("routing", ["batch", "example"])
def test_a_call_computes_what_was_drawn(family: str, routing: Routing) -> None:
    settings = AdamixSettings(copies=3, share="none", routing=routing)
    draws, same = Draws(routing, SEED), Draws(routing, SEED)
    layer = _layer(family, _model(family, settings, draws))
    x = torch.randn(6, 5, 64, generator=torch.Generator().manual_seed(1))
    pairs = set()
    for _ in range(8):
        with draws.random(), same.random():
            y = layer(x)
            down, up = (same.choose(3, x.shape) or [] for _ in range(2))
        if routing == "batch":
            down, up = down * 6, up * 6
        torch.testing.assert_close(y, _by_hand(layer, x, down, up), rtol=1e-5, atol=1e-5)
        wrong = [(j + 1) % 3 for j in up]
        assert (y - _by_hand(layer, x, down, wrong)).abs().max() > 0.1
        pairs |= set(zip(down, up, strict=True))
    assert len({i - j for i, j in pairs}) > 1  # A and B are drawn apart
    assert len(set(zip(down, up, strict=True))) > 1 or routing == "batch"


def test_what_was_not_drawn_has_no_gradient_and_stays_as_it_is() -> None:
    settings = AdamixSettings(copies=4, share="up")
    draws = Draws("batch", SEED)
    model = _model("llama", settings, draws)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
    )
    before = _weights(model)
    with draws.random():
        loss = model(torch.arange(20, 40)[None]).logits.square().mean()
    torch.autograd.backward(loss)
    for module in _copies(model):
        drawn = [weight.grad is not None for weight in module.weights]
        assert sum(drawn) == 1  # of a shared side its only copy, each time
    optimizer.step()
    moved = {name: not torch.equal(before[name], after) for name, after in _weights(model).items()}
    learnt = dict(model.named_parameters())
    for name, changed in moved.items():
        assert changed == (learnt[name].grad is not None)
    assert sum(moved.values()) == len(_copies(model))


def test_with_draws_for_examples_each_copy_learns_from_its_own() -> None:
    """The gradient of a batch is that of its examples one by one."""
    draws, same = Draws("example", SEED), Draws("batch", SEED)
    weights = [torch.randn(3, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    together, alone = CopiedLinear(list(weights), draws), CopiedLinear(list(weights), same)
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(9))
    with draws.random():
        torch.autograd.backward(together(x).square().sum())
    with same.random():
        for row in x:
            torch.autograd.backward(alone(row[None]).square().sum())
    absent = 0
    for ours, theirs in zip(together.weights, alone.weights, strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        absent += ours.grad is None
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)
    assert 1 <= absent < 4


def test_merging_leaves_the_mean_and_what_the_copies_computed_undrawn() -> None:
    settings = AdamixSettings(copies=3, share="none")
    draws = Draws("batch", SEED)
    model = _model("llama", settings, draws)
    tokens = torch.arange(20, 40)[None]
    layer = _layer("llama", model)
    mean = torch.stack(list(layer.lora_B["default"].weights)).mean(dim=0)
    with torch.no_grad():
        undrawn = model(tokens).logits
        with draws.random():
            drawn = model(tokens).logits
        merge_copies(model)
        merged = model(tokens).logits
    assert torch.equal(layer.lora_B["default"].weight, mean)
    assert not _copies(model)
    assert torch.equal(undrawn, merged)
    assert (drawn - merged).abs().max() > 0.1  # negative control


@pytest.mark.parametrize(
    ("share", "down", "up"), [("none", 3, 3), ("down", 1, 3), ("up", 3, 1)], ids=str
)
def test_the_shared_side_has_one_copy(share: Any, down: int, up: int) -> None:
    model = _model("llama", AdamixSettings(copies=3, share=share), Draws("batch", SEED))
    names = _weights(model)
    assert len(names) == len(_copies(model)) // 2 * (down + up)
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    assert names[f"{stem}.lora_A.default.weights.{down - 1}"].shape == (RANK, 64)
    assert names[f"{stem}.lora_B.default.weights.{up - 1}"].shape == (64, RANK)


@pytest.mark.parametrize("init", ["shared", "independent"])
def test_copies_begin_as_asked(init: Any) -> None:
    config = LoraConfig(r=RANK, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(family_model("llama"), config)
    make_copies(model, AdamixSettings(copies=3, init=init, share="none"), Draws("batch", SEED))
    layer = _layer("llama", model)
    first, second, third = layer.lora_A["default"].weights
    assert torch.equal(first, second) == torch.equal(second, third) == (init == "shared")
    for weight in (first, second, third):  # Kaiming, a = sqrt 5: uniform within 1 / sqrt(in)
        assert 0.5 * 64**-0.5 < weight.abs().max() <= 64**-0.5
    assert not any(weight.any() for weight in layer.lora_B["default"].weights)


def test_one_copy_takes_no_draw() -> None:
    draws, untouched = Draws("batch", SEED), Draws("batch", SEED)
    with draws.random():
        assert draws.choose(1, (2, 3, 4)) == [0]
    assert torch.equal(draws.generator.get_state(), untouched.generator.get_state())


def test_examples_that_cannot_be_told_apart_are_refused() -> None:
    draws = Draws("example", SEED)
    module = CopiedLinear([torch.ones(2, 8), torch.zeros(2, 8)], draws)
    with draws.random(), pytest.raises(TrainingError, match=r"routing is 'example'.*use 'batch'"):
        module(torch.ones(5, 8))
