"""An expert kind of another package: packaged as the page says, installed by pip, served."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adapters_store.device_size import device_bytes
from adapters_store.errors import InvalidAdapterError
from adapters_store.expert_kinds.base import ExpertSpec
from adapters_store.expert_kinds.registry import expert_specs
from adapters_store.expert_kinds.unknown import UnknownExpertSpec
from adapters_store.formats.native import MANIFEST_FILE
from adapters_store.formats.tensor_file import TENSOR_FILE
from adapters_store.manifest import manifest_from_json, manifest_to_json
from adapters_store.types import AdapterManifest
from router_engine.config import CacheConfig, EngineConfig, KernelConfig
from router_engine.errors import MixtureError
from router_engine.events import FinishReason
from router_engine.experts.kinds import expert_kinds
from router_engine.mixture.rules import ARROW_NEEDS_PLAIN_LORA, require_plain_lora
from scripts.docs import ROOT
from tests.router_engine.conftest import MakeHarness
from tests.support.expert_adapters import LORA, make_expert_folder
from tests.support.expert_oracle import with_experts
from tests.support.harness import EngineHarness, request
from tests.support.oracle import assert_agrees, greedy
from tests.support.tiny import family_model

EXAMPLE = ROOT / "examples" / "custom_expert"
KIND = "channel_scale"
PROMPTS = (list(range(5, 30)), [40, 41, 42])
TARGETS = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.down_proj",
    "model.layers.1.mlp.up_proj",
    "lm_head",
)

Scales = Mapping[str, Tensor]  # by the paths of linear layers


@pytest.fixture
def installed(custom_expert_site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package is on the path, as in the environment of a server."""
    monkeypatch.syspath_prepend(str(custom_expert_site))
    return custom_expert_site


def scales_of(seed: int) -> Scales:
    random = torch.Generator().manual_seed(seed)
    linears = ((path, family_model("llama").get_submodule(path)) for path in TARGETS)
    return {
        path: torch.randn(linear.out_features, generator=random) * 0.5
        for path, linear in linears
        if isinstance(linear, nn.Linear)
    }


def make_folder(folder: Path, scales: Scales, **changes: Any) -> Path:
    """An adapter of channel scales in our own format."""
    spec: Callable[..., ExpertSpec] = importlib.import_module("channel_scale_spec").ChannelScaleSpec
    experts = tuple(
        spec(**{"module": path, "out_features": len(each), "tensor_scale": path, **changes})
        for path, each in scales.items()
    )
    folder.mkdir()
    (folder / MANIFEST_FILE).write_bytes(manifest_to_json(AdapterManifest("adaptermix", experts)))
    save_file(dict(scales), folder / TENSOR_FILE)
    return folder


def scale_outputs(model: nn.Module, mixture: list[tuple[Scales, float]]) -> None:
    """The equation by hand: y_i (1 + sum_j w_j s_ji) behind each linear layer."""
    for path in TARGETS:
        factor = 1 + sum(weight * scales[path] for scales, weight in mixture)

        def scaled(_: nn.Module, __: Any, y: Tensor, factor: Tensor | float = factor) -> Tensor:
            return y * factor

        model.get_submodule(path).register_forward_hook(scaled)


@pytest.fixture
def harness(
    installed: Path, make_harness: MakeHarness, family_folder: Callable[[str], Path]
) -> EngineHarness:
    return make_harness(model=family_folder("llama"))


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (ROOT / "docs" / "how-to-add-an-expert-kind.md").read_text("utf-8")
    files = {"channel_scale_spec.py": "python", "channel_scale.py": "python"}
    for name, language in (files | {"pyproject.toml": "toml"}).items():
        text = (EXAMPLE / name).read_text("utf-8")
        assert f"```{language}\n{text}```" in page


def test_it_is_no_part_of_our_code() -> None:
    assert KIND not in (*expert_specs().names, *expert_kinds().names)


def test_an_installed_kind_is_known(installed: Path) -> None:
    assert expert_specs().names == ("lora", "bottleneck", "prompt", KIND)
    assert expert_kinds().names == ("lora", "bottleneck", "prompt", KIND)


def test_a_mixture_with_it_follows_its_equation(harness: EngineHarness, tmp_path: Path) -> None:
    """Two of its adapters and a LoRA, each request of a batch under weights of its own."""
    first, second = scales_of(1), scales_of(2)
    lora = make_expert_folder(tmp_path / "lora", LORA, family="llama", seed=3)
    folders = (make_folder(tmp_path / "a", first), make_folder(tmp_path / "b", second), lora)
    digests = [harness.publish(folder.name, folder) for folder in folders]
    copy = harness.engine._residency.host_copy(digests[0])
    assert device_bytes(copy.manifest, harness.engine.base) == copy.num_bytes
    mixtures = ((0.8, -0.4, 0.5), (0.0, 1.0, 0.0), (0.0, 0.0, 0.7), (0.0, 0.0, 0.0))
    answers = harness.run(
        *(
            request(f"{prompt[0]}-{i}", prompt, dict(zip(digests, weights, strict=True)))
            for i, weights in enumerate(mixtures)
            for prompt in PROMPTS
        )
    )
    asked = [(weights, prompt) for weights in mixtures for prompt in PROMPTS]
    for (weights, prompt), answer in zip(asked, answers, strict=True):
        model = with_experts(family_model("llama"), [(lora, weights[2])])
        scale_outputs(model, [(first, weights[0]), (second, weights[1])])
        ids, rows = greedy(model, prompt, 12)
        assert_agrees(answer, ids, rows)
        _, without = greedy(with_experts(family_model("llama"), [(lora, weights[2])]), prompt, 1)
        changes = not torch.allclose(without[0], rows[0], atol=0.01)  # negative control
        assert changes == any(weights[:2])


def test_what_does_not_fit_is_refused_with_all_its_problems(
    harness: EngineHarness, tmp_path: Path
) -> None:
    scales = {**scales_of(1), "model.layers.0.mlp.dawn_proj": torch.ones(4)}
    with pytest.raises(InvalidAdapterError) as refused:
        harness.publish("bad", make_folder(tmp_path / "bad", scales, tensor_scale="lm_head"))
    told = str(refused.value)
    assert "model.layers.0.mlp.dawn_proj: is no module of" in told
    assert "near names: model.layers.0.mlp.down_proj" in told
    assert "lm_head: has shape" in told


def test_what_takes_plain_lora_alone_names_it(installed: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a", scales_of(1))
    manifest = manifest_from_json((folder / MANIFEST_FILE).read_bytes())
    with pytest.raises(MixtureError, match=f"holds a {KIND} expert at {TARGETS[0]}: layer router"):
        require_plain_lora("a", manifest, ARROW_NEEDS_PLAIN_LORA)


def test_an_adapter_whose_package_is_gone_is_listed_and_refused_by_name(
    custom_expert_site: Path,
    make_harness: MakeHarness,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    harness = make_harness(model=family_folder("llama"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(custom_expert_site))
        folder = make_folder(tmp_path / "a", scales_of(1))
        digest = harness.publish("a", folder)
        known = manifest_from_json((folder / MANIFEST_FILE).read_bytes())
    unknown = manifest_from_json((folder / MANIFEST_FILE).read_bytes())
    assert manifest_to_json(unknown) == manifest_to_json(known)
    assert all(isinstance(expert, UnknownExpertSpec) for expert in unknown.experts)
    (answer,) = harness.run(request("r", PROMPTS[0], {digest: 1.0}))
    assert answer.end.reason is FinishReason.FAILED
    assert f"unknown expert kind {KIND!r} (known: lora, bottleneck, prompt" in str(answer.end.error)


@pytest.mark.slow
def test_a_backend_without_code_for_it_refuses_it_by_name(
    installed: Path,
    make_harness: MakeHarness,
    family_folder: Callable[[str], Path],
    kernel_cache: Path,
    tmp_path: Path,
) -> None:
    """The C++ decoder would leave its experts out."""
    kernels = KernelConfig("cpu", cache=kernel_cache)
    config = EngineConfig(cache=CacheConfig(num_blocks=64), kernels=kernels)
    harness = make_harness(model=family_folder("llama"), config=config)
    digest = harness.publish("a", make_folder(tmp_path / "a", scales_of(1)))
    refused, base = harness.run(
        request("r", PROMPTS[0], {digest: 1.0}), request("base", PROMPTS[0])
    )
    assert refused.end.reason is FinishReason.REFUSED
    told = str(refused.end.error)
    assert f"holds a {KIND} expert at {TARGETS[0]}" in told
    assert "ADAPTERMIX_KERNELS=reference" in told
    assert base.end.reason is FinishReason.LENGTH
