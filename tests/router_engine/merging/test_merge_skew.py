"""The same change of the base by way of large and of small numbers: A times c, B divided by c.

What is merged is the product, which stays as it is. What is taken off for others is computed by way
of A x, and that is to stay in the range of the format, or the merge is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters_store.types import Combination, ResolvedMixture
from router_engine.config import CacheConfig, EngineConfig, KernelConfig, MergeConfig, ModelConfig
from router_engine.errors import MixtureError
from router_engine.merging.merge_bound import MergeBound
from router_engine.request import EngineRequest, SamplingSpec
from router_engine.tolerances import TOLERANCES
from tests.router_engine.conftest import ALL_LINEARS, MakeHarness
from tests.support.harness import EngineHarness, request
from tests.support.tiny import make_lora_folder

PROMPT = tuple(range(5, 25))
GIVEN = tuple(range(40, 46))
CACHE = CacheConfig(num_blocks=128, prefix_cache=False)
# By format, powers of ten: of A's largest and smallest that fit it, with an ordinary adapter.
POWERS = {
    "float32": (-43, -38, -35, -33, -30, -10, 10, 30, 34, 36, 37.5, 38, 38.9),
    "bfloat16": (-38, -35, -33, -30, -10, 10, 30, 34, 36, 37.5, 38, 38.9),
    "float16": (-6, -5, -4, -3, -2, 2, 3, 4, 5, 5.2),
}
ORDINARY = {"float32": (-30, -10, 10, 30), "bfloat16": (-30, -10, 10, 30), "float16": (-2, 2)}


def skewed(folder: Path, factor: float, back: float | None = None) -> Path:
    """A LoRA folder with A times `factor`, and B divided by it or times `back`."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    back = 1 / factor if back is None else back
    for name, tensor in tensors.items():
        by = factor if "lora_A" in name else back
        tensors[name] = (tensor.double() * by).clamp(-3e38, 3e38).float()
    save_file(tensors, file)
    return folder


def _scored(harness: EngineHarness, tag: str, *mixtures: dict[str, float]) -> torch.Tensor:
    """Log probabilities [requests, tokens] of a given answer; all requests have succeeded."""
    sampling = SamplingSpec(max_new_tokens=len(GIVEN), given_token_ids=GIVEN)
    answers = harness.run(
        *(
            EngineRequest(f"{tag} {i}", PROMPT, sampling, tuple(mixture), tuple(mixture.values()))
            for i, mixture in enumerate(mixtures)
        )
    )
    assert [answer.end.error for answer in answers] == [None] * len(answers)
    return torch.tensor([answer.logprobs for answer in answers])


def _is_merged(harness: EngineHarness, mixture: ResolvedMixture) -> bool:
    try:
        harness.wait(harness.engine.merge(mixture))
    except MixtureError:
        assert harness.engine.merged().mode == "unmerged"
        return False
    return True


@pytest.fixture(params=["reference", pytest.param("cpu", marks=pytest.mark.slow)])
def kernels(request: pytest.FixtureRequest, tmp_path: Path) -> KernelConfig:
    cache = request.getfixturevalue("kernel_cache") if request.param == "cpu" else tmp_path / "k"
    return KernelConfig(request.param, cache)


@pytest.mark.parametrize("dtype", POWERS)
@pytest.mark.parametrize("combination", ["sum", "linear"])
def test_others_are_answered_as_before_or_nothing_is_merged(
    combination: Combination,
    dtype: Any,
    kernels: KernelConfig,
    make_harness: MakeHarness,
    tmp_path: Path,
) -> None:
    if (kernels.kernels, dtype) == ("cpu", "float16"):
        return  # they compute no fp16
    config = EngineConfig(model=ModelConfig(dtype=dtype), cache=CACHE, kernels=kernels)
    harness = make_harness(config=config)
    plain = harness.publish("plain", make_lora_folder(tmp_path / "plain", targets=ALL_LINEARS))
    untouched = _scored(harness, "untouched", {}, {plain: 1.0})
    merged = set()
    for power in POWERS[dtype]:
        folder = make_lora_folder(tmp_path / str(power), targets=ALL_LINEARS, seed=2)
        digest = harness.publish("skewed", skewed(folder, 10.0**power))
        for mixture in (
            ResolvedMixture((digest,), (1.0,), combination),
            ResolvedMixture((digest, plain), (1.0, 0.5), combination),
        ):
            if not _is_merged(harness, mixture):
                continue
            merged.add(power)
            found = _scored(harness, f"{power} {len(mixture.digests)}", {}, {plain: 1.0})
            _check_as_before(found, untouched, dtype)
            harness.wait(harness.engine.merge(None))
    assert merged >= {*ORDINARY[dtype]}
    assert merged.isdisjoint((POWERS[dtype][0], POWERS[dtype][-1]))


def _check_as_before(found: torch.Tensor, untouched: torch.Tensor, dtype: str) -> None:
    difference = (found - untouched).abs().max() / untouched.abs().max()
    assert difference <= TOLERANCES[getattr(torch, dtype)]


def _on_one_token(folder: Path, token: int) -> Path:
    """A LoRA folder of lm_head with all of B 0 but the row of a token."""
    file = make_lora_folder(folder, targets=["lm_head"], seed=token) / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if "lora_B" in name:
            only = torch.zeros_like(tensor)
            only[token] = tensor[token]
            tensors[name] = only
    save_file(tensors, file)
    return folder


@pytest.mark.parametrize("dtype", POWERS)
@pytest.mark.parametrize("combination", ["sum", "linear"])
def test_one_token_of_the_output_head_is_answered_as_before_too(
    combination: Combination, dtype: Any, make_harness: MakeHarness, tmp_path: Path
) -> None:
    """What is lost below the smallest number is lost by that token alone."""
    kernels = KernelConfig("reference", tmp_path / "k")
    config = EngineConfig(model=ModelConfig(dtype=dtype), cache=CACHE, kernels=kernels)
    harness = make_harness(config=config)
    token = GIVEN[2]
    plain = harness.publish("plain", _on_one_token(tmp_path / "plain", GIVEN[3]))
    untouched = _scored(harness, "untouched", {}, {plain: 1.0})
    merged = set()
    for power in POWERS[dtype]:
        folder = skewed(_on_one_token(tmp_path / str(power), token), 10.0**power)
        mixture = ResolvedMixture((harness.publish("skewed", folder),), (1.0,), combination)
        if _is_merged(harness, mixture):
            merged.add(power)
            found = _scored(harness, f"{power}", {}, {plain: 1.0})
            _check_as_before(found, untouched, dtype)
            harness.wait(harness.engine.merge(None))
    assert merged >= {*ORDINARY[dtype]}
    assert merged.isdisjoint((POWERS[dtype][0], POWERS[dtype][-1]))


@pytest.mark.parametrize(
    ("dtype", "factor", "back", "weight"),
    [  # of A, of B, and of the mixture
        ("float16", 3e-7, 1.0, 1.7e7),
        ("float16", 1e-5, 1e4, 70.0),
        ("float32", 1e-43, 1e6, 1e38),
        ("bfloat16", 1e-38, 1e3, 1e35),
        ("float16", 1.5e5, 1 / 1.5e5, 1.0),
        ("float32", 1e30, 1e-38, 1e8),
        ("float32", 1.0, 1e-38, 1e38),
    ],
)
def test_large_weights_of_small_numbers_and_small_weights_of_large_ones(
    dtype: Any,
    factor: float,
    back: float,
    weight: float,
    make_harness: MakeHarness,
    tmp_path: Path,
) -> None:
    kernels = KernelConfig("reference", tmp_path / "k")
    config = EngineConfig(model=ModelConfig(dtype=dtype), cache=CACHE, kernels=kernels)
    harness = make_harness(config=config)
    folder = skewed(make_lora_folder(tmp_path / "a", targets=ALL_LINEARS), factor, back)
    mixture = ResolvedMixture((harness.publish("a", folder),), (weight,))
    assert not _is_merged(harness, mixture)


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 7.9e38), ("float16", 4e4)])
def test_without_the_bound_the_others_fail(
    dtype: Any,
    factor: float,
    make_harness: MakeHarness,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control: what is refused would have done harm."""
    kernels = KernelConfig("reference", tmp_path / "k")
    config = EngineConfig(model=ModelConfig(dtype=dtype), cache=CACHE, kernels=kernels)
    harness = make_harness(config=config)
    folder = make_lora_folder(tmp_path / "a", targets=ALL_LINEARS)
    digest = harness.publish("a", skewed(folder, factor))
    monkeypatch.setattr(MergeBound, "check", lambda *_: None)
    harness.wait(harness.engine.merge(ResolvedMixture((digest,), (1.0,))))
    (answer,) = harness.run(request("base", PROMPT))
    assert answer.end.error is not None


def test_the_traffic_merges_none_that_overflows(make_harness: MakeHarness, tmp_path: Path) -> None:
    config = EngineConfig(cache=CACHE, merge=MergeConfig(mode="auto", half_life=32))
    harness = make_harness(config=config)
    digest = harness.publish("a", skewed(make_lora_folder(tmp_path / "a"), 7.9e38))
    untouched = _scored(harness, "untouched", {})
    for turn in range(3):
        harness.run(*(request(f"{turn} {i}", PROMPT[i:], {digest: 1.0}) for i in range(8)))
        assert harness.engine.merged().mode == "unmerged"
    assert torch.equal(_scored(harness, "again", {}), untouched)


@pytest.mark.parametrize("alpha", [1e-80, 1e-37, 1e36])
def test_scales_whose_roots_pass_the_range(
    alpha: float, make_harness: MakeHarness, tmp_path: Path
) -> None:
    """`linear` multiplies by the root of a scale, and by its inverse."""
    harness = make_harness(config=EngineConfig(cache=CACHE))
    untouched = _scored(harness, "untouched", {})
    folder = make_lora_folder(tmp_path / "a", alpha=alpha)
    digest = harness.publish("a", folder)
    if _is_merged(harness, ResolvedMixture((digest,), (1.0,), "linear")):
        found = _scored(harness, "merged", {})
        assert (found - untouched).abs().max() <= 1e-4 * untouched.abs().max()
