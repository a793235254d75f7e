"""Experts beside LoRA and routers inside layers on the C++ decoder, against the reference.

Beside the tests of `tests.router_engine.experts`: what only comes together in a step, and threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters_store.types import ResolvedMixture
from router_engine.config import (
    CacheConfig,
    EngineConfig,
    KernelConfig,
    ModelConfig,
    SchedulerConfig,
)
from router_engine.mixture.weights import StepWeights
from router_engine.request import EngineRequest, LayerRouting, SamplingSpec
from router_engine.scheduling.plan import PlannedRow, StepPlan
from tests.router_engine.backends.conftest import Pair
from tests.support.expert_adapters import (
    MOE_LORA,
    NATIVE,
    PROMPT,
    SERIAL,
    SOFT,
    SPARSE,
    make_expert_folder,
)
from tests.support.expert_oracle import put_experts
from tests.support.harness import Answer, EngineHarness, request
from tests.support.tiny import family_model

pytestmark = pytest.mark.slow

MakePair = Callable[..., Pair]
MakeHarness = Callable[..., EngineHarness]
CACHE = CacheConfig(num_blocks=256, prefix_cache=False)
KINDS = {
    "soft": SOFT,
    "sparse": SPARSE,
    "native": NATIVE,
    "moe-lora": MOE_LORA,
    "serial": replace(SERIAL, serial=9, activation="gelu"),
    "prompt": PROMPT,
    "silent": replace(SERIAL, serial=4, activation="relu", biases=False),
}
TEXT = list(range(5, 40))


@pytest.fixture
def experts(tmp_path: Path) -> dict[str, Path]:
    return {
        kind: make_expert_folder(tmp_path / kind, layers, seed=seed)
        for seed, (kind, layers) in enumerate(KINDS.items())
    }


def _arrow(name: str, digests: list[str]) -> EngineRequest:
    sampling = SamplingSpec(max_new_tokens=8)
    routing = LayerRouting("arrow", {"top_k": 2})
    return EngineRequest(name, tuple(TEXT), sampling, tuple(digests), layer_routing=routing)


def _traffic(tag: str, plain: list[str], kinds: dict[str, str]) -> list[EngineRequest]:
    """Every way to weights at once: fixed, probed, linear and arrow, beside every kind."""
    mixtures = [
        *({kinds[kind]: 0.9} for kind in kinds),
        {kinds["soft"]: 0.5, kinds["native"]: -0.4, kinds["serial"]: 0.7, plain[1]: 0.6},
        {plain[0]: 0.8},
        {},
    ]
    requests = [
        request(f"{tag} {i}", TEXT[: 3 + 3 * i], mixture, max_new_tokens=8)
        for i, mixture in enumerate(mixtures)
    ]
    probed = [replace(one, request_id=f"{one.request_id} probed") for one in requests[:4]]
    linear = {plain[0]: 0.4, plain[3]: 1.1}
    return [
        *requests,
        *(replace(one, reads_hidden_states=True) for one in probed),
        request(f"{tag} linear", TEXT, linear, combination="linear", max_new_tokens=8),
        _arrow(f"{tag} arrow", plain[:3]),
    ]


def _assert_equal(one: list[Answer], other: list[Answer], tolerance: float = 1e-4) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.ids == b.ids
        assert b.logprobs == pytest.approx(a.logprobs, abs=tolerance)


def _publish(
    harness: EngineHarness, folders: list[Path], experts: dict[str, Path]
) -> tuple[list[str], dict[str, str]]:
    plain = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders[:4])]
    return plain, {kind: harness.publish(kind, folder) for kind, folder in experts.items()}


def test_every_way_to_weights_in_one_step(
    make_pair: MakePair, folders: list[Path], experts: dict[str, Path]
) -> None:
    """In chunks, over the base and over one that holds a mixture."""
    config = EngineConfig(
        model=ModelConfig(probe_layer=1),
        cache=CACHE,
        scheduler=SchedulerConfig(max_step_tokens=24, max_running=24),
    )
    pair = make_pair(config=config)
    (plain, kinds), _ = (_publish(harness, folders, experts) for harness in pair)
    merges = [
        None,
        ResolvedMixture(tuple(plain[:2]), (0.5, -0.3)),
        ResolvedMixture((plain[0], plain[3]), (0.5, 0.7), "linear"),
    ]
    unmerged: list[Answer] = []
    for index, merged in enumerate(merges):
        for harness in pair:
            harness.wait(harness.engine.merge(merged))
        reference, fast = (h.run(*_traffic(str(index), plain, kinds)) for h in pair)
        _assert_equal(reference, fast)
        _assert_equal(unmerged or fast, fast)
        unmerged = unmerged or fast
    texts = [tuple(answer.ids) for answer in unmerged]
    assert len(set(texts)) == len(texts)  # negative control: every request is another one


def test_threads_change_nothing(
    make_harness: MakeHarness, kernel_cache: Path, folders: list[Path], experts: dict[str, Path]
) -> None:
    """Each number is computed by one thread in one order, whichever thread that is.

    Prompts are near only: torch makes their keys when they are loaded, and sums by its threads.
    """
    threads = torch.get_num_threads()
    answers = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            config = EngineConfig(cache=CACHE, kernels=KernelConfig("cpu", kernel_cache))
            fast = make_harness(config=config)
            plain, kinds = _publish(fast, folders, experts)
            for digest in (*plain, *kinds.values()):  # so that all steps hold the same requests
                fast.wait(fast.engine.load(digest))
            answers.append(fast.run(*_traffic("r", plain, kinds)))
    finally:
        torch.set_num_threads(threads)
    prompts = (2, 5, 7, 12)  # of the requests
    for others in answers[1:]:
        for index, (one, other) in enumerate(zip(answers[0], others, strict=True)):
            _assert_equal([one], [other], 1e-4 if index in prompts else 0.0)


def test_bf16_is_as_near_to_fp32_as_the_reference(
    make_pair: MakePair, make_harness: MakeHarness, folders: list[Path], experts: dict[str, Path]
) -> None:
    """Without thresholds, where a rounding can change a gate by half."""
    smooth = {
        kind: folder for kind, folder in experts.items() if kind not in ("sparse", "moe-lora")
    }
    pair = make_pair(config=EngineConfig(cache=CACHE, model=ModelConfig(dtype="bfloat16")))
    exact = make_harness(config=EngineConfig(cache=CACHE, model=ModelConfig(dtype="float32")))
    (_, kinds), *_ = (_publish(harness, folders, smooth) for harness in (exact, *pair))
    rng = np.random.default_rng(2)
    requests = [
        request(
            f"{kind} {i}", rng.integers(3, 259, size=30).tolist(), {digest: 0.8}, max_new_tokens=1
        )
        for kind, digest in kinds.items()
        for i in range(10)
    ]
    truth = exact.run(*requests)
    errors = []
    for harness in pair:
        answers = harness.run(*requests)
        same = [(a, b) for a, b in zip(answers, truth, strict=True) if a.ids == b.ids]
        errors.append(np.mean([abs(a.logprobs[0] - b.logprobs[0]) for a, b in same]))
    assert 0 < errors[1] <= 1.2 * errors[0], errors


def _plan(tokens: Sequence[int], *, reads_hidden_states: bool) -> StepPlan:
    """One row at position 0, in the first blocks of the cache."""
    row = PlannedRow(
        EngineRequest(
            "r",
            tuple(tokens),
            SamplingSpec(max_new_tokens=1),
            reads_hidden_states=reads_hidden_states,
        ),
        arrival=0,
        token_ids=tuple(tokens),
        start=0,
        block_ids=tuple(range(len(tokens) // 16 + 1)),
        needs_logits=True,
        weight_runs=(),
        known_tokens=tokens,
    )
    return StepPlan((row,))


@torch.no_grad()
def test_readings_are_the_gates(
    make_harness: MakeHarness, kernel_cache: Path, experts: dict[str, Path]
) -> None:
    """`native` on the last token alone; `sparse` on the first tokens alone below the probe."""
    config = EngineConfig(
        model=ModelConfig(probe_layer=1), cache=CACHE, kernels=KernelConfig("cpu", kernel_cache)
    )
    harness = make_harness(config=config)
    pairs = sorted((harness.publish(kind, experts[kind]), kind) for kind in ("native", "sparse"))
    for digest, _ in pairs:
        harness.wait(harness.engine.load(digest))
    digests, kinds = zip(*pairs, strict=True)
    total = torch.full((len(TEXT), 2), 0.8)
    total[:-1, kinds.index("native")] = 0
    below = total.clone()
    below[5:] = 0
    backend = harness.engine.backend
    assert backend.capabilities.has_decoder
    whole = backend.forward(
        _plan(TEXT, reads_hidden_states=False), StepWeights(digests, total)
    ).gates
    weights = StepWeights(digests, total, below_probe=StepWeights(digests, below))
    probed = backend.forward(_plan(TEXT, reads_hidden_states=True), weights).gates
    assert backend.forward(_plan(TEXT, reads_hidden_states=False), None).gates is None
    assert whole is not None
    assert probed is not None
    firsts = {
        kind: (first, count) for kind, (_, first, count) in zip(kinds, whole.columns, strict=True)
    }
    (first, count), (native, others) = firsts["sparse"], firsts["native"]
    model = family_model("llama")
    (sparse,) = put_experts(model, [(experts["sparse"], 0.8)])
    model(input_ids=torch.tensor([TEXT[:-1]]), use_cache=False)
    for layer in range(2):
        expected = sparse.gates[f"model.layers.{layer}"]
        found = whole.values[layer, :, first : first + count]
        torch.testing.assert_close(found[:-1], expected, rtol=0, atol=1e-5)
        assert 0 < int((expected == 0).sum()) < expected.numel()
        assert not found[-1].isnan().any()
        assert whole.values[layer, :-1, native : native + others].isnan().all()
        assert not whole.values[layer, -1, native : native + others].isnan().any()
    assert probed.values[0, 5:].isnan().all()
    assert not probed.values[0, :5, first : first + count].isnan().any()
    assert not probed.values[1, :, first : first + count].isnan().any()
