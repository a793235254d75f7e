"""The mixed-batch oracle: requests of every kind in one step equal the same requests alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters_store.types import ResolvedMixture
from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from router_engine.request import EngineRequest, SamplingSpec, TokenRouting
from tests.router_engine.conftest import MakeEngine
from tests.router_engine.experts.conftest import PATHS
from tests.router_engine.paths import EnginePath, path_params
from tests.support.expert_adapters import (
    INSTANCE,
    LORA,
    MOE_LORA,
    NATIVE,
    PARALLEL,
    PROMPT,
    SERIAL,
    SOFT,
    SPARSE,
    make_expert_folder,
)
from tests.support.expert_oracle import with_experts
from tests.support.harness import Answer, request
from tests.support.oracle import assert_agrees, greedy

KINDS = {
    "lora": LORA,
    "soft": SOFT,
    "sparse": SPARSE,
    "parallel": PARALLEL,
    "serial": SERIAL,
    "prompt": PROMPT,
    "native": NATIVE,
    "moe-lora": MOE_LORA,
    "instance": INSTANCE,
}
# What a request runs under, by the names above.
MIXTURES: list[dict[str, float]] = [
    {},
    *({kind: 1.0} for kind in KINDS),
    {"lora": 0.6, "parallel": 0.5},
    {"soft": 0.5, "sparse": -0.4, "serial": 0.8},
    {"native": 0.7, "prompt": 0.6, "moe-lora": 0.5},
    {"instance": 0.6, "sparse": 0.5, "lora": -0.3},
]
TEXT = list(range(5, 25))
MERGING = [path for path in PATHS if path.quantization == "none"]  # a base in int8 takes nothing in
CONFIG = EngineConfig(
    cache=CacheConfig(num_blocks=96, prefix_cache=False),
    scheduler=SchedulerConfig(max_step_tokens=48),
)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    return {
        kind: make_expert_folder(tmp_path / kind, layers, seed=seed)
        for seed, (kind, layers) in enumerate(KINDS.items())
    }


def _prompt(path: EnginePath, index: int) -> list[int]:
    return path.short(TEXT[: 3 + 2 * index])


def test_a_row_in_a_mixed_batch_is_the_row_alone(
    path: EnginePath, make_engine: MakeEngine, folders: dict[str, Path]
) -> None:
    engine = make_engine(config=CONFIG)
    digests = {kind: engine.publish(kind, folder) for kind, folder in folders.items()}

    def asked(name: str, index: int) -> EngineRequest:
        mixture = {digests[kind]: weight for kind, weight in MIXTURES[index].items()}
        prompt = _prompt(path, index)
        return request(f"{name} {index}", prompt, mixture, max_new_tokens=path.tokens)

    together = engine.run(*(asked("together", index) for index in range(len(MIXTURES))))
    for index in range(0, len(MIXTURES), path.every):
        (alone,) = engine.run(asked("alone", index))
        assert alone.ids == together[index].ids
        assert alone.logprobs == pytest.approx(together[index].logprobs, abs=path.tolerance)
        mixture = [(folders[kind], weight) for kind, weight in MIXTURES[index].items()]
        prompt = _prompt(path, index)
        model = with_experts(path.base("llama"), mixture, len(prompt))
        ids, rows = greedy(model, prompt, path.tokens)
        assert_agrees(together[index], ids, rows, path.tolerance)


def test_weights_change_from_token_to_token(
    path: EnginePath, make_engine: MakeEngine, folders: dict[str, Path]
) -> None:
    """Under weights that a router gives; equal ones all the time are those of a fixed mixture."""
    engine = make_engine(config=CONFIG)
    kinds = ("soft", "serial", "instance")
    digests = tuple(engine.publish(kind, folders[kind]) for kind in kinds)
    prompt = path.short(TEXT)

    def routed(name: str, *rows: list[float]) -> EngineRequest:
        weights = [rows[i % len(rows)] for i in range(path.tokens)]
        routing = TokenRouting("given", {"weights": weights})
        sampling = SamplingSpec(max_new_tokens=path.tokens)
        return EngineRequest(name, tuple(prompt), sampling, digests, routing=routing)

    first = [0.5, 0.2, 0.9]
    given = dict(zip(digests, first, strict=True))
    fixed, same, other = engine.run(
        request("fixed", prompt, given, max_new_tokens=path.tokens),
        routed("same", first),
        routed("other", first, [0.0, 1.0, -0.5]),
    )
    assert same.ids == fixed.ids
    assert same.logprobs == pytest.approx(fixed.logprobs, abs=path.tolerance)
    assert other.logprobs[0] == pytest.approx(fixed.logprobs[0], abs=path.tolerance)
    assert other.logprobs != pytest.approx(fixed.logprobs, abs=path.tolerance)


@pytest.mark.parametrize("path", path_params(*MERGING), indirect=True)
def test_a_merged_mixture_is_taken_off(
    path: EnginePath, make_engine: MakeEngine, folders: dict[str, Path]
) -> None:
    """Every kind over a base that holds a LoRA, also prompts, whose keys come from the base."""
    engine = make_engine(config=CONFIG)
    digests = {kind: engine.publish(kind, folders[kind]) for kind in ("lora", "soft")}

    def traffic(name: str) -> list[Answer]:
        kinds = [None, *digests]
        return engine.run(
            *(
                request(
                    f"{name} {kind}",
                    path.short(TEXT),
                    {} if kind is None else {digests[kind]: 1.0},
                    max_new_tokens=path.tokens,
                )
                for kind in kinds
            )
        )

    unmerged = traffic("unmerged")
    engine.merge(ResolvedMixture((digests["lora"],), (1.0,)))
    digests["native"] = engine.publish("native", folders["native"])  # loaded while it is merged
    merged = traffic("merged")
    engine.merge(None)
    restored = traffic("restored")
    pairs = [*zip(unmerged, merged[:3], strict=True), *zip(merged, restored, strict=True)]
    for answer, other in pairs:
        assert answer.ids == other.ids
        assert answer.logprobs == pytest.approx(other.logprobs, abs=path.tolerance)
    model = with_experts(path.base("llama"), [(folders["native"], 1.0)])
    ids, rows = greedy(model, path.short(TEXT), path.tokens)
    assert_agrees(merged[-1], ids, rows, path.tolerance)
