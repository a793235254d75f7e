"""What is merged leaves the answers of others within the tolerance, or is refused."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from adapters_store.types import Combination, ResolvedMixture
from router_engine.config import CacheConfig, EngineConfig, KernelConfig, MergeConfig, ModelConfig
from router_engine.errors import MixtureError
from router_engine.merging.merge_bound import MergeBound
from router_engine.model.tiny import tiny_config, tiny_tokenizer
from router_engine.request import EngineRequest, SamplingSpec
from router_engine.tolerances import TOLERANCES
from tests.router_engine.conftest import ALL_LINEARS, MakeHarness
from tests.router_engine.merging.test_merged import base_weights, same
from tests.support.harness import EngineHarness, request
from tests.support.tiny import make_lora_folder

PROMPT = tuple(range(5, 35))
GIVEN = tuple(range(40, 60))
CONFIG = EngineConfig(cache=CacheConfig(num_blocks=128, prefix_cache=False))
FORMATS = ["float32", "bfloat16", "float16"]


def _config(dtype: Any) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(dtype=dtype), cache=CONFIG.cache, kernels=KernelConfig("reference")
    )


def _scored(harness: EngineHarness, tag: str, *mixtures: dict[str, float]) -> torch.Tensor:
    """Log probabilities [requests, tokens] of a given answer under each mixture."""
    sampling = SamplingSpec(max_new_tokens=len(GIVEN), given_token_ids=GIVEN)
    answers = harness.run(
        *(
            EngineRequest(f"{tag} {i}", PROMPT, sampling, tuple(mixture), tuple(mixture.values()))
            for i, mixture in enumerate(mixtures)
        )
    )
    return torch.tensor([answer.logprobs for answer in answers])


def _scaled(folder: Path, **factors: float) -> Path:
    """A LoRA folder with A or B multiplied: `lora_A=1e3`."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        for part, factor in factors.items():
            if part in name:
                tensors[name] = tensor * factor
    save_file(tensors, file)
    return folder


def _refusal(harness: EngineHarness, mixture: ResolvedMixture) -> str | None:
    """Merge it; why it was refused, or None."""
    try:
        harness.wait(harness.engine.merge(mixture))
    except MixtureError as error:
        return str(error)
    return None


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """As the table of tolerances counts it: relative to the largest."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("combination", ["sum", "linear"])
def test_what_is_accepted_leaves_the_others_within_the_tolerance(
    combination: Combination, dtype: str, make_harness: MakeHarness, folders: list[Path]
) -> None:
    """Weights from small to absurd. What is refused leaves the base bit for bit."""
    harness = make_harness(config=_config(dtype))
    digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders[:4])]
    others: list[dict[str, float]] = [{}, {digests[1]: 1.0}, {digests[0]: 0.5, digests[2]: -0.3}]
    untouched, weights = _scored(harness, "untouched", *others), base_weights(harness)
    tolerance = TOLERANCES[getattr(torch, dtype)]
    accepted = []
    for weight in (1e-3, 1.0, 3.0, 1e2, 1e4, 1e6, 1e30):
        mixture = ResolvedMixture((digests[0], digests[3]), (weight, weight / 2), combination)
        refusal = _refusal(harness, mixture)
        if refusal is None:
            accepted.append(weight)
            found = _scored(harness, f"merged {weight}", *others)
            assert _difference(found, untouched) <= tolerance
            harness.wait(harness.engine.merge(None))
        else:
            assert digests[0] in refusal
            assert f"{tolerance:.0e} is allowed in {dtype}" in refusal
            assert harness.engine.merged().mode == "unmerged"
            assert same(weights, base_weights(harness))
    assert {1e-3, 1.0} <= {*accepted} <= {1e-3, 1.0, 3.0, 1e2}


@pytest.mark.parametrize("weight", [1e4, 1e6])
def test_without_the_bound_the_others_are_answered_otherwise(
    weight: float, make_harness: MakeHarness, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: what is refused would have done harm."""
    harness = make_harness(config=CONFIG)
    digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders[:2])]
    untouched = _scored(harness, "untouched", {}, {digests[1]: 1.0})
    monkeypatch.setattr(MergeBound, "check", lambda *_: None)
    harness.wait(harness.engine.merge(ResolvedMixture((digests[0],), (weight,))))
    found = _scored(harness, "merged", {}, {digests[1]: 1.0})
    assert _difference(found, untouched) > TOLERANCES[torch.float32]


SCALED = [
    {"lora_A": 1e-6},
    {"lora_A": 1e3, "lora_B": 1e-3},  # the product is as it was
    {"lora_A": 1e20, "lora_B": 1e-20},
]
TOO_LARGE = [
    {"lora_B": 1e4},
    {"lora_A": 1e6},
    {"lora_A": 1e30, "lora_B": 1e7},
    {"lora_A": 1e25, "lora_B": 1e25},  # the sum is not finite
]


@pytest.mark.parametrize("factors", [*SCALED, *TOO_LARGE], ids=str)
def test_it_is_the_size_of_the_change_that_counts(
    factors: dict[str, float], make_harness: MakeHarness, tmp_path: Path
) -> None:
    harness = make_harness(config=CONFIG)
    digest = harness.publish("a", _scaled(make_lora_folder(tmp_path / "a"), **factors))
    untouched = _scored(harness, "untouched", {})
    refusal = _refusal(harness, ResolvedMixture((digest,), (1.0,)))
    assert (refusal is None) == (factors in SCALED), refusal
    assert refusal is None or "end the mixture with each request" in refusal
    assert _difference(_scored(harness, "after", {}), untouched) <= 1e-4


def test_what_cancels_in_the_sum_still_counts(make_harness: MakeHarness, tmp_path: Path) -> None:
    """Two large adapters whose sum is small: what others have taken off is not."""
    harness = make_harness(config=CONFIG)
    first = make_lora_folder(tmp_path / "a", seed=1)
    second = _scaled(make_lora_folder(tmp_path / "b", seed=1), lora_B=-0.9999)
    digests = (harness.publish("a", first), harness.publish("b", second))
    with pytest.raises(MixtureError, match="is allowed in float32"):
        harness.wait(harness.engine.merge(ResolvedMixture(digests, (1e5, 1e5))))


def test_what_the_refusal_advises_works(make_harness: MakeHarness, folders: list[Path]) -> None:
    harness = make_harness(config=CONFIG)
    digest = harness.publish("a", folders[0])
    with pytest.raises(MixtureError) as refused:
        harness.wait(harness.engine.merge(ResolvedMixture((digest,), (1e5,))))
    share = float(str(refused.value).split("merge it at ")[1].split()[0])
    state = harness.wait(harness.engine.merge(ResolvedMixture((digest,), (1e5 * share,))))
    assert state.mode == "merged"


@pytest.mark.parametrize("weight", [math.nan, math.inf, 1e39])
def test_weights_that_are_no_numbers_are_refused(
    weight: float, make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness = make_harness(config=CONFIG)
    digest = harness.publish("a", folders[0])
    with pytest.raises(MixtureError, match="each must be a finite float32"):
        harness.wait(harness.engine.merge(ResolvedMixture((digest,), (weight,))))


@pytest.mark.parametrize("combination", ["sum", "linear"])
@pytest.mark.parametrize("zero", [0.0, -0.0, 1e-60])
def test_weight_0_merges_nothing_and_says_so(
    zero: float, combination: Combination, make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness = make_harness(config=CONFIG)
    digests = tuple(harness.publish(f"a{i}", folders[i]) for i in (0, 3))
    before = harness.engine.stats().adapter_loads
    state = harness.wait(harness.engine.merge(ResolvedMixture(digests, (zero, zero), combination)))
    assert (state.mode, state.mixture) == ("unmerged", None)
    assert harness.engine.stats().adapter_loads == before
    state = harness.wait(harness.engine.merge(ResolvedMixture(digests, (zero, 0.5), combination)))
    assert state.mixture == ResolvedMixture(digests[1:], (0.5,), combination)
    # Of a merged base it takes out what was in.
    assert harness.wait(harness.engine.merge(ResolvedMixture(digests, (zero, zero)))).mode == (
        "unmerged"
    )


def test_a_refused_merge_leaves_the_one_before_in_place(
    make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness = make_harness(config=CONFIG)
    digest = harness.publish("a", folders[0])
    mixture = ResolvedMixture((digest,), (1.0,))
    harness.wait(harness.engine.merge(mixture))
    with pytest.raises(MixtureError):
        harness.wait(harness.engine.merge(ResolvedMixture((digest,), (1e6,))))
    assert harness.engine.merged().mixture == mixture


@pytest.mark.parametrize("weight", [1e4, 1e6])
def test_the_traffic_merges_nothing_that_would_do_harm(
    weight: float, make_harness: MakeHarness, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is passed over once: the arithmetic is not done again for each step."""
    tried: list[ResolvedMixture] = []
    check = MergeBound.check

    def counted(bound: MergeBound, mixture: ResolvedMixture, *rest: Any) -> None:
        tried.append(mixture)
        check(bound, mixture, *rest)

    monkeypatch.setattr(MergeBound, "check", counted)
    harness = make_harness(
        config=EngineConfig(cache=CONFIG.cache, merge=MergeConfig(mode="auto", half_life=32))
    )
    digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders[:2])]
    untouched = _scored(harness, "untouched", {})
    for turn in range(3):
        harness.run(*(request(f"{turn} {i}", PROMPT[i:], {digests[0]: weight}) for i in range(8)))
        assert harness.engine.merged().mode == "unmerged"
    assert tried == [ResolvedMixture((digests[0],), (weight,))]
    assert torch.equal(_scored(harness, "again", {}), untouched)
    # What does no harm is merged as before, and what is passed over lets go of it.
    harness.run(*(request(f"small {i}", PROMPT[i:], {digests[1]: 1.0}) for i in range(12)))
    assert harness.engine.merged().mixture == ResolvedMixture((digests[1],), (1.0,))
    harness.run(*(request(f"large {i}", PROMPT[i:], {digests[0]: weight}) for i in range(16)))
    assert harness.engine.merged().mode == "unmerged"
    assert tried.count(ResolvedMixture((digests[0],), (weight,))) == 1


@pytest.mark.parametrize("family", ["llama-tied", "qwen3", "gpt2"])
def test_families_and_an_adapter_along_the_activations(
    family: str,
    make_harness: MakeHarness,
    family_folder: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """The heaviest weight that is let in. Every row of A is one direction, as trained ones tend."""
    is_gpt2 = family == "gpt2"
    targets = ("c_attn", "c_proj") if is_gpt2 else ALL_LINEARS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = make_lora_folder(
            tmp_path / "lora", family=family, targets=targets, options={"fan_in_fan_out": is_gpt2}
        )
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if "lora_A" in name:
            tensors[name] = tensor[:1].repeat(len(tensor), 1)
    save_file(tensors, file)
    harness = make_harness(family_folder(family), config=CONFIG)
    digest = harness.publish("lora", folder)
    untouched = _scored(harness, "untouched", {})
    with pytest.raises(MixtureError) as refused:
        harness.wait(harness.engine.merge(ResolvedMixture((digest,), (1e6,))))
    share = float(str(refused.value).split("merge it at ")[1].split()[0])
    harness.wait(harness.engine.merge(ResolvedMixture((digest,), (1e6 * share,))))
    assert _difference(_scored(harness, "merged", {}), untouched) <= 1e-4


@pytest.fixture(scope="module")
def many_tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A tiny llama with a real vocabulary's size; what its output head reads [tokens, hidden]."""
    path = tmp_path_factory.mktemp("many-tokens")
    config = tiny_config()
    config.vocab_size = 32000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    with torch.no_grad():
        hidden: torch.Tensor = model.model(torch.tensor([PROMPT + GIVEN])).last_hidden_state[0]
    return path, hidden


def _on_one_token(folder: Path, place: int, hidden: torch.Tensor) -> Path:
    """A LoRA of lm_head that changes the logit of GIVEN[place] alone, most where it is next."""
    make_lora_folder(folder, rank=1, targets=["lm_head"])
    file = folder / "adapter_model.safetensors"
    read = hidden[len(PROMPT) + place - 1]
    a, b = (read / read.norm())[None], torch.zeros(32000, 1)
    b[GIVEN[place]] = 1.0
    names = {name: a if "lora_A" in name else b for name in load_file(file)}
    save_file(names, file)
    return folder


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_one_token_of_the_output_head_gains_is_not_spread_over_all(
    dtype: str,
    make_harness: MakeHarness,
    many_tokens: tuple[Path, torch.Tensor],
    tmp_path: Path,
) -> None:
    """The heaviest weight that is let in, and some below it, which may round less well."""
    model, hidden = many_tokens
    harness = make_harness(model, config=_config(dtype))
    digest = harness.publish("a", _on_one_token(tmp_path / "a", place=5, hidden=hidden))
    (untouched,) = _scored(harness, "untouched", {})
    (greedy,) = harness.run(request("greedy", PROMPT))
    tolerance = TOLERANCES[getattr(torch, dtype)]
    with pytest.raises(MixtureError, match="at lm_head it is too large") as refused:
        harness.wait(harness.engine.merge(ResolvedMixture((digest,), (1e4,))))
    share = float(str(refused.value).split("merge it at ")[1].split()[0])
    for part in (1.0, 0.8, 0.6, 0.3):
        mixture = ResolvedMixture((digest,), (1e4 * share * part,))
        harness.wait(harness.engine.merge(mixture))
        (found,) = _scored(harness, f"merged {part}", {})
        assert _difference(found, untouched) <= tolerance
        (answer,) = harness.run(request(f"greedy {part}", PROMPT))
        if dtype == "float32":
            assert answer.ids == greedy.ids
    assert share * 1e4 >= 0.5  # an ordinary change of a token goes in
