"""Weights that arise inside the layers: against PEFT, against the equation, in mixed batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters_store.types import ResolvedMixture
from router_engine.config import (
    CacheConfig,
    EngineConfig,
    KernelConfig,
    ModelConfig,
    SchedulerConfig,
)
from router_engine.events import FinishReason
from router_engine.request import EngineRequest, LayerRouting, Reports, SamplingSpec, TokenRouting
from tests.router_engine.conftest import ALL_LINEARS, MakeEngine, MakeHarness
from tests.router_engine.paths import CPU, CUDA, REFERENCE, TRITON, EnginePath, path_params
from tests.support.arrow import make_gapped_folder, peft_arrow, with_arrow
from tests.support.harness import request
from tests.support.oracle import assert_agrees, greedy
from tests.support.tiny import ATTENTION, family_model, make_lora_folder

# In 8 bits a score at a rounding edge may choose another adapter: no tolerance holds for that.
PATHS = path_params(REFERENCE, CPU, TRITON, CUDA)
PROMPT = list(range(5, 30))
REAL_TOKENS = 6  # that the real model generates: each is read by equations written out


@pytest.fixture(scope="module")
def gapped(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four adapters of rank 4 on all linears, as PEFT's arrow wants them."""
    root = tmp_path_factory.mktemp("gapped")
    return [
        make_gapped_folder(root / f"a{seed}", targets=ALL_LINEARS, seed=seed, alpha=16)
        for seed in range(1, 5)
    ]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ranks 3, 8 and 1, on all linears, on some, and on the head alone."""
    root = tmp_path_factory.mktemp("uneven")
    made = ((3, (*ALL_LINEARS, "lm_head")), (8, ATTENTION), (1, ("lm_head", "down_proj")))
    return [
        make_lora_folder(root / f"u{seed}", rank=rank, targets=targets, seed=seed)
        for seed, (rank, targets) in enumerate(made, 1)
    ]


def _arrow(
    name: str,
    digests: Sequence[str],
    prompt: Sequence[int] = PROMPT,
    *,
    new: int = 12,
    **params: Any,
) -> EngineRequest:
    return EngineRequest(
        name,
        tuple(prompt),
        SamplingSpec(max_new_tokens=new),
        adapters=tuple(digests),
        layer_routing=LayerRouting("arrow", params),
        reports=Reports(weights=True),
    )


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize(("top_k", "temperature"), [(3, 1.0), (2, 0.25), (1, 1.0), (4, 5.0)])
def test_arrow_matches_peft(
    top_k: int, temperature: float, path: EnginePath, make_engine: MakeEngine, gapped: list[Path]
) -> None:
    prompt = path.short(PROMPT)
    engine = make_engine()
    digests = [engine.publish(f"a{i}", folder) for i, folder in enumerate(gapped)]
    (answer,) = engine.run(
        _arrow("r", digests, prompt, new=path.tokens, top_k=top_k, temperature=temperature)
    )
    model = peft_arrow(path.base("llama"), gapped, top_k, temperature)
    assert_agrees(answer, *greedy(model, prompt, path.tokens), path.tolerance)
    assert [token.weights for token in answer.tokens] == [()] * path.tokens


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_every_parameter_matters(
    path: EnginePath, make_engine: MakeEngine, gapped: list[Path]
) -> None:
    """Negative control: the defaults, others, fewer candidates, equal weights, the base."""
    prompt = path.short(PROMPT)
    engine = make_engine()
    digests = [engine.publish(f"a{i}", folder) for i, folder in enumerate(gapped)]
    answers = engine.run(
        _arrow("default", digests, prompt, new=1),
        _arrow("one", digests, prompt, new=1, top_k=1),
        _arrow("all", digests, prompt, new=1, top_k=4),
        _arrow("sharp", digests, prompt, new=1, temperature=0.1),
        _arrow("fewer", digests[:3], prompt, new=1),
        request("uniform", prompt, dict.fromkeys(digests, 0.25), max_new_tokens=1),
        request("base", prompt, max_new_tokens=1),
    )
    first = sorted(answer.logprobs[0] for answer in answers)
    gaps = [high - low for low, high in pairwise(first)]
    assert min(gaps) > 10 * path.tolerance
    (said,) = engine.run(_arrow("said", digests, prompt, new=1, top_k=3, temperature=1.0))
    assert said.logprobs == pytest.approx(answers[0].logprobs, abs=path.tolerance)


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("top_k", [1, 2, 9])
def test_mixed_ranks_and_layers_match_the_equation(
    top_k: int, path: EnginePath, make_engine: MakeEngine, uneven: list[Path]
) -> None:
    """PEFT's arrow takes equal ranks and layers only."""
    prompt = path.short(PROMPT)
    engine = make_engine()
    digests = [engine.publish(f"u{i}", folder) for i, folder in enumerate(uneven)]
    (answer,) = engine.run(
        _arrow("r", digests, prompt, new=path.tokens, top_k=top_k, temperature=0.5)
    )
    model = with_arrow(path.base("llama"), uneven, top_k, 0.5)
    assert_agrees(answer, *greedy(model, prompt, path.tokens), path.tolerance)


def test_a_family_without_a_decoder_of_ours_matches_the_equation(
    make_harness: MakeHarness, tmp_path: Path, family_folder: Callable[[str], Path]
) -> None:
    folders = [
        make_lora_folder(
            tmp_path / f"g{seed}",
            family="gpt2",
            targets=["c_attn", "c_proj"],
            seed=seed,
            options={"fan_in_fan_out": True},
        )
        for seed in (1, 2)
    ]
    harness = make_harness(family_folder("gpt2"))
    digests = [harness.publish(folder.name, folder) for folder in folders]
    (answer,) = harness.run(_arrow("r", digests, top_k=1))
    assert_agrees(answer, *greedy(with_arrow(family_model("gpt2"), folders, 1, 1.0), PROMPT, 12))


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_a_mixed_batch_equals_each_request_alone(
    path: EnginePath, make_engine: MakeEngine, folders: list[Path]
) -> None:
    """Six gates beside the base, fixed mixtures, token routing and layers below the probe layer."""
    config = EngineConfig(model=ModelConfig(probe_layer=1), cache=CacheConfig(num_blocks=512))
    engine, other = make_engine(config=config), make_engine(config=config)
    for each in (engine, other):
        digests = [each.publish(f"a{i}", folder) for i, folder in enumerate(folders)]
    prompt, new = path.short(PROMPT), path.tokens
    routing = TokenRouting("given", {"weights": [[0.5, -1.0], [0.0, 0.7]] * new})
    requests = [
        _arrow("all", digests, prompt[1:], new=new),
        _arrow("two", digests[2:4], prompt[2:], new=new, top_k=1),
        _arrow("sharp", digests[::-1], prompt[1:], new=new, temperature=0.05),
        _arrow("flat", digests[1:], prompt[3:], new=new, top_k=6, temperature=20),
        _arrow("narrow", digests[4:], prompt, new=new, top_k=2),
        _arrow("single", digests[:1], prompt, new=new),
        request("base", prompt, max_new_tokens=new),
        request("fixed", prompt, {digests[0]: 0.4, digests[5]: -1.0}, max_new_tokens=new),
        request(
            "linear",
            prompt,
            {digests[0]: 0.4, digests[3]: 1.1},
            combination="linear",
            max_new_tokens=new,
        ),
        EngineRequest(
            "routed",
            tuple(prompt),
            SamplingSpec(max_new_tokens=new),
            adapters=tuple(digests[1:3]),
            routing=routing,
        ),
        replace(
            request("probed", prompt, dict.fromkeys(digests[:3], 0.5), max_new_tokens=new),
            reads_hidden_states=True,
        ),
    ]
    together = engine.run(*requests)
    for one, both in list(zip(requests, together, strict=True))[:: path.every]:
        (alone,) = other.run(one)
        assert both.ids == alone.ids
        assert both.logprobs == pytest.approx(alone.logprobs, abs=path.tolerance)


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_merged_equals_unmerged(
    path: EnginePath, make_engine: MakeEngine, folders: list[Path]
) -> None:
    engine = make_engine(config=EngineConfig(cache=CacheConfig(num_blocks=64, prefix_cache=False)))
    digests = tuple(engine.publish(f"a{i}", folder) for i, folder in enumerate(folders[:4]))

    def traffic(tag: str) -> list[EngineRequest]:
        prompt, new = path.short(PROMPT), path.tokens
        return [
            _arrow(f"{tag} arrow", digests, prompt, new=new, top_k=2),
            _arrow(f"{tag} others", digests[2:], prompt, new=new),
            request(f"{tag} fixed", prompt, {digests[1]: 0.5}, max_new_tokens=new),
        ]

    unmerged = engine.run(*traffic("unmerged"))
    mixtures = [
        ResolvedMixture(digests[:2], (0.5, -0.3)),
        ResolvedMixture((digests[0], digests[3]), (0.5, 0.7), "linear"),
    ]
    for index, mixture in enumerate(mixtures[:: path.every]):
        assert engine.merge(mixture).mixture == mixture
        for answer, expected in zip(engine.run(*traffic(str(index))), unmerged, strict=True):
            assert answer.ids == expected.ids
            assert answer.logprobs == pytest.approx(expected.logprobs, abs=path.tolerance)


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_preempted_requests_give_the_same_tokens(
    path: EnginePath, make_engine: MakeEngine, gapped: list[Path]
) -> None:
    """Three blocks for each request, whose prompt takes two: what is generated needs more."""
    prompt = PROMPT[:4]
    count = 4 if path.every == 1 else 2
    tight = EngineConfig(
        cache=CacheConfig(block_size=2, num_blocks=3 * count, prefix_cache=False),
        scheduler=SchedulerConfig(max_running=count),
    )
    engine = make_engine(config=tight)
    digests = [engine.publish(f"a{i}", folder) for i, folder in enumerate(gapped)]
    new = path.tokens + 2
    answers = engine.run(
        *(_arrow(f"r{k}", digests, prompt, new=new, top_k=k) for k in range(1, count + 1))
    )
    assert engine.stats().preemptions > 0
    for top_k, answer in enumerate(answers, 1):
        model = peft_arrow(path.base("llama"), gapped, top_k, 1.0)
        assert_agrees(answer, *greedy(model, prompt, new), path.tolerance)


@pytest.mark.parametrize("path", PATHS, indirect=True)
def test_a_prefix_is_shared_under_equal_candidates_and_parameters_only(
    path: EnginePath, make_engine: MakeEngine, gapped: list[Path]
) -> None:
    prompt = path.short(PROMPT)
    whole = (len(prompt) - 1) // 4 * 4  # in blocks, without the token that is sampled from
    engine = make_engine(config=EngineConfig(cache=CacheConfig(block_size=4, num_blocks=64)))
    digests = [engine.publish(f"a{i}", folder) for i, folder in enumerate(gapped)]
    first, *others = [
        engine.run(each)[0]
        for each in (
            _arrow("first", digests[:3], prompt, new=1),
            _arrow("again", digests[:3], prompt, new=1),
            _arrow("said", digests[2::-1], prompt, new=1, temperature=1.0, top_k=8),
            _arrow("temperature", digests[:3], prompt, new=1, temperature=0.5),
            _arrow("top_k", digests[:3], prompt, new=1, top_k=2),
            _arrow("candidates", digests, prompt, new=1),
            request("fixed", prompt, dict.fromkeys(digests[:3], 1.0), max_new_tokens=1),
            request("base", prompt, max_new_tokens=1),
        )
    ]
    assert [answer.end.num_cached_tokens for answer in others] == [whole, whole, *[0] * 5]
    for same in others[:2]:
        assert same.ids == first.ids
        assert same.logprobs == pytest.approx(first.logprobs, abs=path.tolerance)
    for other in others[2:]:  # negative control
        assert other.logprobs[0] != pytest.approx(first.logprobs[0], abs=path.tolerance)


@pytest.fixture(scope="module")
def real_expected(
    real_base: Path, example_adapters: list[Path]
) -> tuple[list[int], list[torch.Tensor]]:
    """What the equation makes of PROMPT on the real model, once for all paths."""
    base = AutoModelForCausalLM.from_pretrained(real_base, dtype=torch.float32)
    return greedy(with_arrow(base, example_adapters, 2, 1.0), PROMPT, REAL_TOKENS)


@pytest.mark.real_model
@pytest.mark.parametrize("path", path_params(REFERENCE, CPU), indirect=True)
def test_the_real_model_matches_the_equation(
    path: EnginePath,
    path_cache: Path,
    real_base: Path,
    example_adapters: list[Path],
    real_expected: tuple[list[int], list[torch.Tensor]],
    make_harness: MakeHarness,
) -> None:
    """In fp32, token by token; trained adapters' singular values are close to each other."""
    config = EngineConfig(
        model=ModelConfig(dtype="float32"),
        cache=CacheConfig(num_blocks=16),
        kernels=KernelConfig(path.decoder.setting, path_cache, path.isa),
    )
    harness = make_harness(real_base, config=config)
    digests = [harness.publish(folder.name, folder) for folder in example_adapters]
    (answer,) = harness.run(_arrow("r", digests, top_k=2, new=REAL_TOKENS))
    assert_agrees(answer, *real_expected)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"router": "arow"}, "layer router 'arow' is not served; served: arrow"),
        ({"params": {"use_gks": True}}, "router 'arrow' takes no parameter 'use_gks'"),
        ({"params": {"top_k": 0}}, "top_k = 0"),
        ({"params": {"temperature": 0.0}}, "temperature = 0.0"),
    ],
)
def test_what_is_not_served_is_refused(
    change: dict[str, Any], reason: str, make_harness: MakeHarness, folders: list[Path]
) -> None:
    harness = make_harness()
    digest = harness.publish("a0", folders[0])
    routing = LayerRouting(**{"router": "arrow"} | change)
    bad = EngineRequest("r", tuple(PROMPT), adapters=(digest,), layer_routing=routing)
    fine, answer = harness.run(_arrow("fine", [digest]), bad)
    assert fine.end.reason is FinishReason.LENGTH
    assert answer.end.reason is FinishReason.REFUSED
    assert reason in str(answer.end.error)
