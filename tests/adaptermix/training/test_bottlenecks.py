"""AdaMix on bottlenecks: the equations, what a draw leaves alone, merging, and the folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import gelu

from adaptermix.training.adamix.bottlenecks import CopiedBottlenecks
from adaptermix.training.adamix.draws import Draws
from adaptermix.training.data import Example
from adaptermix.training.errors import TrainingError
from adaptermix.training.loss import collate
from adaptermix.training.recipes.adamix import (
    AdamixTrainee,
    adamix_recipe,
    copies_folder,
    train_adamix,
)
from adaptermix.training.settings import AdamixSettings, LoraSettings, Routing, RunSettings
from adapters_store.expert_kinds.base import Copies
from adapters_store.expert_kinds.bottleneck import BottleneckExpertSpec
from adapters_store.manifest import manifest_from_json
from adapters_store.types import AdapterManifest
from tests.adaptermix.training.conftest import MakeRun
from tests.support.tiny import family_model

SEED, SIZE, FEATURES = 5, 6, 64
TOKENS = torch.arange(20, 40)[None]
MANY = AdamixSettings(kind="bottleneck", size=SIZE, copies=3, share="none", consistency=1)
ONE = AdamixSettings(kind="bottleneck", size=SIZE, copies=1, consistency=0)


def _plain_lora(settings: RunSettings) -> RunSettings:
    return replace(settings, lora=LoraSettings())


@pytest.fixture
def settings(make_run: MakeRun) -> RunSettings:
    return _plain_lora(make_run(data={"max_rows": 24}, loop={"learning_rate": 0.02}))


def _trainee(settings: RunSettings, adamix: AdamixSettings) -> AdamixTrainee:
    """A trainee in the middle of its training: biases are no longer zero, copies are far apart."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        trainee = adamix_recipe(adamix).build(settings)
        assert isinstance(trainee, AdamixTrainee)
        for parameter in trainee.model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    trainee.model.eval()
    return trainee


def _by_hand(bottleneck: Any, u: Tensor, down: int, up: int, *, tanh: bool = False) -> Tensor:
    """u + U_j gelu(D_i u + d_i) + e_j."""
    inner = u @ bottleneck.down.weights[down].T + bottleneck.down.biases[down]
    inner = gelu(inner, approximate="tanh" if tanh else "none")
    y: Tensor = u + inner @ bottleneck.up.weights[up].T + bottleneck.up.biases[up]
    return y


@pytest.mark.parametrize("routing", ["batch", "example"])
def test_a_call_computes_what_was_drawn(routing: Routing, settings: RunSettings) -> None:
    trainee = _trainee(settings, replace(MANY, routing=routing))
    bottleneck = trainee.model.model.layers[0].mlp.adamix
    same = Draws(routing, settings.loop.seed)
    u = torch.randn(4, 5, FEATURES, generator=torch.Generator().manual_seed(1))
    seen = set()
    for _ in range(6):
        with trainee.draws.random(), same.random():
            y = bottleneck(u)
            down, up = (same.choose(3, u.shape) or [] for _ in range(2))
        pairs = list(zip(down, up, strict=True)) * (4 // len(down))
        expected = [_by_hand(bottleneck, row, *pair) for row, pair in zip(u, pairs, strict=True)]
        torch.testing.assert_close(y, torch.stack(expected), rtol=1e-5, atol=1e-5)
        wrong = _by_hand(bottleneck, u[0], (pairs[0][0] + 1) % 3, pairs[0][1])
        assert (y[0] - wrong).abs().max() > 0.1
        seen |= set(pairs)
    assert len({i - j for i, j in seen}) > 1  # the two sides are drawn apart


def test_the_whole_model_is_the_base_with_a_bottleneck_after_each_feed_forward(
    settings: RunSettings,
) -> None:
    trainee = _trainee(settings, ONE)
    base: Any = family_model("llama")
    for ours, layer in zip(trainee.model.model.layers, base.model.layers, strict=True):
        layer.mlp.register_forward_hook(
            lambda module, inputs, output, held=ours.mlp.adamix: _by_hand(held, output, 0, 0)
        )
    with torch.no_grad():
        ours, expected = trainee.model(TOKENS).logits, base(TOKENS).logits
        plain: Tensor = family_model("llama")(TOKENS).logits
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert (ours - plain).abs().max() > 0.1  # negative control


def test_gpt2_takes_the_tanh_form(settings: RunSettings, tmp_path: Path) -> None:
    family_model("gpt2").save_pretrained(tmp_path)
    held = CopiedBottlenecks(replace(settings, base=str(tmp_path)), ONE, Draws("batch", SEED))
    bottleneck = held.model.transformer.h[1].mlp.adamix
    torch.nn.init.normal_(bottleneck.down.weights[0])
    u = torch.randn(1, 5, FEATURES, generator=torch.Generator().manual_seed(1))
    expected = _by_hand(bottleneck, u, 0, 0, tanh=True)
    torch.testing.assert_close(bottleneck(u), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(bottleneck(u), _by_hand(bottleneck, u, 0, 0), rtol=1e-6, atol=1e-6)


def test_weights_begin_small_and_apart_and_biases_at_zero(settings: RunSettings) -> None:
    trainee = adamix_recipe(MANY).build(settings)
    learnt = {n: p for n, p in trainee.model.named_parameters() if p.requires_grad}
    assert len(learnt) == 2 * 2 * 2 * 3  # layers, sides, weight and bias, copies
    for name, parameter in learnt.items():
        if ".biases." in name:
            assert not parameter.any()
        else:
            assert 0.01 < parameter.std() < 0.03
    down = trainee.model.model.layers[0].mlp.adamix.down.weights
    assert not torch.equal(down[0], down[1])


def test_what_was_not_drawn_has_no_gradient(settings: RunSettings) -> None:
    trainee = _trainee(settings, replace(MANY, share="up", consistency=0))
    batch = collate([Example(tuple(range(10, 30)), prompt_length=15)], torch.device("cpu"))
    torch.autograd.backward(trainee.losses(batch).total)
    for layer in trainee.model.model.layers:
        drawn = [weight.grad is not None for weight in layer.mlp.adamix.down.weights]
        assert sum(drawn) == 1
        assert drawn == [bias.grad is not None for bias in layer.mlp.adamix.down.biases]
        [up] = layer.mlp.adamix.up.weights
        assert up.grad is not None


def test_gradients_are_those_of_finite_differences(settings: RunSettings) -> None:
    bottleneck = _trainee(settings, ONE).model.model.layers[0].mlp.adamix
    u = torch.randn(1, 2, FEATURES, generator=torch.Generator().manual_seed(2))
    loss = bottleneck(u).square().sum()
    torch.autograd.backward(loss)
    for parameter in bottleneck.parameters():
        place = (0,) * parameter.ndim
        values = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                parameter[place] += step
                values.append(float(bottleneck(u).square().sum()))
                parameter[place] -= step
        assert parameter.grad is not None
        numeric = (values[0] - values[1]) / 2e-2
        assert numeric == pytest.approx(float(parameter.grad[place]), rel=2e-2, abs=2e-2)


def test_training_writes_the_mean_and_the_copies(settings: RunSettings, tmp_path: Path) -> None:
    out = tmp_path / "a"
    adamix = replace(MANY, share="up", keep_copies=True, draws=2)
    longer = replace(settings, data=replace(settings.data, epochs=6, max_rows=None))
    outcome = train_adamix(longer, out, adamix=adamix)
    assert outcome.dev_before is not None
    assert outcome.dev_after is not None
    assert outcome.dev_after < 0.8 * outcome.dev_before
    (mean, tensors), (copies, kept) = _folder(out), _folder(copies_folder(out))
    for expert, twin in zip(mean, copies, strict=True):
        assert expert == replace(twin, copies=None)
        assert expert.site == f"{expert.module}#serial"
        assert (expert.size, expert.features, expert.activation) == (SIZE, FEATURES, "gelu")
        assert twin.copies == Copies((1 / 3,) * 3, (1.0,))
        for key in (expert.tensor_down, expert.tensor_down_bias, expert.tensor_up):
            assert key is not None
            torch.testing.assert_close(tensors[key], kept[key].mean(dim=0))
        assert kept[expert.tensor_down].shape == (3, SIZE, FEATURES)
        assert kept[expert.tensor_up].shape == (1, FEATURES, SIZE)
    card = (out / "README.md").read_text()
    assert "A bottleneck adapter for" in card
    assert "library_name: adaptermix" in card
    assert f"| bottleneck | size {SIZE}, GELU, after each feed-forward module |" in card
    assert "| AdaMix | mean of 3 ways down and 1 ways up, drawn for each batch, independent" in card


def _folder(path: Path) -> tuple[list[BottleneckExpertSpec], dict[str, Tensor]]:
    manifest: AdapterManifest = manifest_from_json((path / "adaptermix.json").read_bytes())
    experts = [one for one in manifest.experts if isinstance(one, BottleneckExpertSpec)]
    assert len(experts) == len(manifest.experts) == 2
    return experts, load_file(path / "adapter_model.safetensors")


def test_merging_leaves_what_the_copies_computed_undrawn(settings: RunSettings) -> None:
    trainee = _trainee(settings, MANY)
    with torch.no_grad():
        undrawn = trainee.model(TOKENS).logits
        with trainee.draws.random():
            drawn = trainee.model(TOKENS).logits
        trainee.experts.merge()
        merged = trainee.model(TOKENS).logits
    assert torch.equal(undrawn, merged)
    assert (drawn - merged).abs().max() > 0.1  # negative control


def test_settings_of_lora_are_refused(make_run: MakeRun) -> None:
    with pytest.raises(TrainingError, match="rank is 4, but a bottleneck has none"):
        adamix_recipe(MANY).build(make_run())
