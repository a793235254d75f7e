"""Poisoned neighbours: what overflows in one request fails that one, and changes no other.

On every path: in the same step, in later ones, through blocks that a failed request has left, and
by weights of 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from adapters_store.types import Combination, ResolvedMixture
from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from router_engine.events import FinishReason
from router_engine.request import EngineRequest, LayerRouting, SamplingSpec, TokenRouting
from router_engine.scheduling.request_validation import NOT_FINITE
from tests.router_engine import paths
from tests.router_engine.conftest import WITHOUT_DECODER, MakeEngine
from tests.router_engine.paths import EnginePath, PathEngine, path_params
from tests.router_engine.poison import HUGE, POISONS, Poison
from tests.support.expert_adapters import (
    GPT2_TARGETS,
    INSTANCE,
    LORA,
    NATIVE,
    PROMPT,
    SERIAL,
    SPARSE,
    Layers,
    make_expert_folder,
)
from tests.support.harness import Answer, request
from tests.support.isas import here

KINDS = {
    "lora": replace(LORA, rank=5),  # odd: where products read pairs, one lies past the last
    "other": replace(LORA, rank=5),
    "sparse": SPARSE,
    "serial": SERIAL,
    "prompt": PROMPT,
    "native": NATIVE,
    "instance": INSTANCE,
}
TEXT = list(range(5, 30))
# Few blocks: those of a request that failed are soon another's. Chunks: some rows sample nothing.
CONFIG = EngineConfig(
    cache=CacheConfig(num_blocks=56, block_size=4, prefix_cache=False),
    scheduler=SchedulerConfig(max_step_tokens=24),
)
ROOMY = EngineConfig(cache=replace(CONFIG.cache, num_blocks=256))  # all requests in one step
# The parity tests take the narrowest and the widest instruction set; these take them all.
EVERY_PATH = (
    *path_params(paths.REFERENCE),
    *(
        pytest.param(
            replace(paths.CPU, name=f"cpu-{isa}", isa=isa), id=f"cpu-{isa}", marks=pytest.mark.slow
        )
        for isa in here()
    ),
    *path_params(paths.INT8, paths.CUDA, paths.TRITON),
)
every_path = pytest.mark.parametrize("path", EVERY_PATH, indirect=True)
every_other_path = pytest.mark.parametrize("path", EVERY_PATH[:-1], indirect=True)  # than TRITON


def _is_interpreted(path: EnginePath) -> bool:
    """Whether a step takes as long as each of its tokens is interpreted."""
    return path.every > 1


def _tokens(path: EnginePath) -> int:
    """That a request generates: past the end of a block, and of a pair of positions."""
    return min(path.tokens, 5)


def _publish(engine: PathEngine, root: Path, kinds: Mapping[str, Layers]) -> dict[str, str]:
    return {
        kind: engine.publish(kind, make_expert_folder(root / kind, layers, seed=seed))
        for seed, (kind, layers) in enumerate(kinds.items())
    }


def _bring(engine: PathEngine, digests: Mapping[str, str]) -> None:
    """All of them to the device, so that what is asked for next starts in one step."""
    mixture = dict.fromkeys(digests.values(), 0.1)
    (answer,) = engine.run(request("all adapters are there", TEXT[:2], mixture, max_new_tokens=1))
    assert answer.end.reason is FinishReason.LENGTH, answer.end.error


def _neighbours(tag: str, digests: Mapping[str, str], path: EnginePath) -> list[EngineRequest]:
    """Every way to weights. Texts of different lengths, so that some rows are padded."""
    text = path.short(TEXT)
    if _is_interpreted(path):
        text = text[:4]  # a block
    lora, other = digests["lora"], digests["other"]
    plain: dict[str, dict[str, float]] = {
        "base": {},
        "lora": {lora: 0.9},
        "both": {lora: 0.5, digests["sparse"]: -0.4, digests["serial"]: 0.7},
        "prompt": {digests["prompt"]: 0.8, other: 0.6},
        "native": {digests["native"]: 0.7},
        "instance": {digests["instance"]: 1.0},
    }
    sampling = SamplingSpec(max_new_tokens=_tokens(path))
    made = [
        request(f"{tag} {name}", text[: 2 + 4 * i], mixture, max_new_tokens=_tokens(path))
        for i, (name, mixture) in enumerate(plain.items())
    ]
    linear = {lora: 0.4, other: 1.1}
    return [
        *made,
        replace(made[2], request_id=f"{tag} probed", reads_hidden_states=True),
        replace(
            request(f"{tag} linear", text[:5], linear, max_new_tokens=_tokens(path)),
            combination="linear",
        ),
        EngineRequest(
            f"{tag} arrow",
            tuple(text),
            sampling,
            (lora, other),
            layer_routing=LayerRouting("arrow", {"top_k": 1}),
        ),
        EngineRequest(
            f"{tag} ensemble", tuple(text[:4]), sampling, (lora,), (0.9,), ensemble=((other,),)
        ),
    ]


def _poisoned(name: str, digest: str, path: EnginePath) -> EngineRequest:
    return request(name, path.short(TEXT), {digest: 1.0}, max_new_tokens=_tokens(path))


def _late(name: str, prompt: Sequence[int], digest: str) -> EngineRequest:
    """Poisoned in the step that would yield its second token."""
    routing = TokenRouting("given", {"weights": [[0.0], [1.0]]})
    sampling = SamplingSpec(max_new_tokens=2)
    return EngineRequest(name, tuple(prompt), sampling, (digest,), routing=routing)


def _assert_failed(*answers: Answer, tokens: int = 0) -> None:
    for answer in answers:
        assert (answer.end.reason, answer.end.error) == (FinishReason.FAILED, NOT_FINITE)
        assert len(answer.tokens) == tokens


def _assert_equal(found: Sequence[Answer], expected: Sequence[Answer], path: EnginePath) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.end.reason is FinishReason.LENGTH, one.end.error
        assert one.ids == other.ids
        assert one.logprobs == pytest.approx(other.logprobs, abs=path.tolerance)


def _batches(path: EnginePath) -> list[list[tuple[str, Poison]]]:
    """Poisons that are tried together: each alone, or some of them at once where steps are long."""
    poisons = list(POISONS.items())
    return [poisons[:: path.every]] if _is_interpreted(path) else [[each] for each in poisons]


@every_path
def test_neighbours_of_every_poison(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """All of them start in one step, and a request that poison reaches later decodes with them."""
    engine = make_engine(config=ROOMY)
    digests = _publish(engine, tmp_path / "kinds", KINDS)
    _bring(engine, digests)
    expected = engine.run(*_neighbours("without", digests, path))
    assert not engine.spoilt_blocks()
    for index, batch in enumerate(_batches(path)):
        poisons: dict[str, str] = {}
        for name, poison in batch:
            folder = poison.folder(tmp_path / name, seed=index + len(poisons))
            poisons[name] = engine.publish(f"p{index}-{len(poisons)}", folder)
        alone = [request(f"alone {name}", TEXT[:2], {d: 1.0}) for name, d in poisons.items()]
        _assert_failed(*engine.run(*alone))
        neighbours = _neighbours(f"beside {index}", digests, path)
        found = engine.run(
            *neighbours,
            _late(f"late {index}", path.short(TEXT), poisons[batch[0][0]]),
            request(f"heavy {index}", path.short(TEXT), {digests["other"]: HUGE}),
            *(_poisoned(name, digest, path) for name, digest in poisons.items()),
        )
        beside, (late, *poisoned) = found[: len(neighbours)], found[len(neighbours) :]
        _assert_failed(*poisoned)
        _assert_failed(late, tokens=1)
        _assert_equal(beside, expected, path)
    if not _is_interpreted(path):
        _assert_equal(engine.run(*_neighbours("after", digests, path)), expected, path)


@every_other_path
def test_bits_are_those_beside_a_healthy_twin(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """The same steps with a weight that overflows and with one that does not: all else is equal."""
    engine = make_engine(config=ROOMY)
    digests = _publish(engine, tmp_path / "kinds", KINDS)
    _bring(engine, digests)
    for kind in digests:
        runs: list[list[Answer]] = []
        for tag, weight in (("healthy", 1.0), ("poison", HUGE)):
            name = f"{tag} {kind}"
            twin = request(name, path.short(TEXT), {digests[kind]: weight}, max_new_tokens=1)
            *beside, ended = engine.run(*_neighbours(f"beside {name}", digests, path), twin)
            if weight == HUGE:
                _assert_failed(ended)
            runs.append(beside)
        for healthy, beside_poison in zip(*runs, strict=True):
            assert healthy.end.reason is beside_poison.end.reason is FinishReason.LENGTH
            assert healthy.ids == beside_poison.ids
            # torch's own products depend on where their operands lie in memory.
            tolerance = 0.0 if path.is_compiled else path.tolerance
            assert beside_poison.logprobs == pytest.approx(healthy.logprobs, rel=0, abs=tolerance)


@every_path
def test_blocks_that_poison_has_filled_are_used_by_others(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """From block 0 on, which rows are padded with, all blocks hold NaN or infinity before."""
    config = replace(CONFIG, cache=CacheConfig(num_blocks=16, block_size=4))
    text = path.short(TEXT)
    prompts = [text[:3], text[:5], text]
    expected = make_engine(config=config).run(
        *(request(f"r{len(p)}", p, max_new_tokens=_tokens(path)) for p in prompts)
    )
    engine = make_engine(config=config)
    digest = engine.publish("poison", POISONS["A"].folder(tmp_path / "poison", seed=1))
    full = [_poisoned(f"p{i}", digest, path) for i in range(16 // -(-len(text) // 4))]
    _assert_failed(*engine.run(*full))
    last = len(text) // 4 * 4  # negative control: the cache is full of it
    spoilt = engine.spoilt_blocks()
    assert len(spoilt) >= len(full) * (last // 4)
    assert 0 in spoilt
    assert not engine.findable_blocks()
    found = engine.run(*(request(f"r{len(p)}", p, max_new_tokens=_tokens(path)) for p in prompts))
    _assert_equal(found, expected, path)
    assert not engine.findable_blocks() & engine.spoilt_blocks()


@every_path
def test_what_a_failed_request_wrote_is_never_found(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """Chunk by chunk, and by a request whose weights are poison from its second token on."""
    config = EngineConfig(
        cache=CacheConfig(num_blocks=64, block_size=2),
        scheduler=SchedulerConfig(max_step_tokens=4),
    )
    engine = make_engine(config=config)
    digest = engine.publish("poison", POISONS["A"].folder(tmp_path / "poison", seed=1))
    text = path.short(TEXT)
    for name in ("first", "again"):
        (answer,) = engine.run(_poisoned(name, digest, path))
        _assert_failed(answer)
        assert answer.end.num_cached_tokens == 0
    assert not engine.findable_blocks()
    healthy = request("healthy", text, max_new_tokens=2)
    (expected,) = engine.run(healthy)
    kept = engine.findable_blocks()
    assert kept
    (answer,) = engine.run(_late("late", text, digest))
    _assert_failed(answer, tokens=1)
    assert answer.ids == expected.ids[:1]
    # What it has found of the healthy one stays; of its own nothing does.
    assert answer.end.num_cached_tokens > 0
    assert engine.findable_blocks() == kept


@every_path
def test_poison_of_weight_zero_is_nothing(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(config=CONFIG)
    digests = _publish(engine, tmp_path / "kinds", {"lora": LORA, "other": LORA})
    poisons = [
        engine.publish(f"poison{i}", POISONS[name].folder(tmp_path / name, seed=i))
        for i, name in enumerate(("A", "B, times its scale", "scale"))
    ]
    lora, other = digests["lora"], digests["other"]
    text = path.short(TEXT)

    def routed(name: str, *extra: str) -> EngineRequest:
        rows = [[0.8, *(0.0 for _ in extra)] for _ in range(_tokens(path))]
        return EngineRequest(
            name,
            tuple(text),
            SamplingSpec(max_new_tokens=_tokens(path)),
            (lora, *extra),
            routing=TokenRouting("given", {"weights": rows}),
        )

    def fixed(name: str, extra: Mapping[str, float]) -> list[EngineRequest]:
        mixture = {lora: 0.8, other: 0.5, **extra}
        one = request(f"{name} sum", text, mixture, max_new_tokens=_tokens(path))
        return [one, replace(one, request_id=f"{name} linear", combination="linear")]

    expected = engine.run(*fixed("without", {}), routed("without routed"))
    found = engine.run(
        *fixed("zero", dict.fromkeys(poisons, 0.0)),
        routed("zero routed", *poisons),
        # So that their rows take part in the step.
        *(_poisoned(f"poison {i}", poison, path) for i, poison in enumerate(poisons)),
    )
    for _ in poisons:
        _assert_failed(found.pop())
    _assert_equal(found, expected, path)


@every_path
def test_one_member_fails_its_ensemble_and_a_candidate_its_gate(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(config=replace(CONFIG, scheduler=SchedulerConfig(max_step_tokens=9)))
    digests = _publish(engine, tmp_path / "kinds", {"lora": LORA, "other": LORA})
    poison = engine.publish("poison", POISONS["A"].folder(tmp_path / "poison", seed=1))
    lora, other = digests["lora"], digests["other"]
    sampling, text = SamplingSpec(max_new_tokens=_tokens(path)), tuple(path.short(TEXT))
    members = ((lora, poison, other), (poison, lora, other), (lora, other, poison))
    failing = [
        *(
            EngineRequest(f"e{i}", text, sampling, (one,), (1.0,), ensemble=((two,), (three,)))
            for i, (one, two, three) in enumerate(members)
        ),
        EngineRequest(
            "arrow",
            text,
            sampling,
            (lora, poison, other),
            layer_routing=LayerRouting("arrow", {"top_k": 2}),
        ),
        replace(
            request("linear", text, {lora: 0.5, poison: 0.1}, max_new_tokens=4),
            combination="linear",
        ),
        replace(_poisoned("probed", poison, path), reads_hidden_states=True),
    ]
    _assert_failed(*engine.run(*failing))
    assert not engine.findable_blocks()


@every_path
def test_neighbours_over_a_merged_base(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    if path.quantization != "none":
        return  # such a base takes nothing in
    engine = make_engine(config=CONFIG)
    digests = _publish(engine, tmp_path / "kinds", KINDS)
    poison = engine.publish("poison", POISONS["B, times its scale"].folder(tmp_path / "p", seed=1))
    _bring(engine, digests)
    names = digests["lora"], digests["other"]
    combinations: tuple[Combination, ...] = ("sum", "linear")
    for combination in combinations[:: path.every]:
        engine.merge(ResolvedMixture(names, (0.4, 0.3), combination))
        some = slice(None, None, 2 if _is_interpreted(path) else 1)
        expected = engine.run(*_neighbours(f"without {combination}", digests, path)[some])
        *beside, poisoned = engine.run(
            *_neighbours(f"beside {combination}", digests, path)[some],
            _poisoned(f"poison {combination}", poison, path),
        )
        _assert_failed(poisoned)
        _assert_equal(beside, expected, path)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "mistral"])
@pytest.mark.parametrize(
    "path", path_params(paths.REFERENCE, paths.CPU, paths.TRITON), indirect=True
)
def test_neighbours_in_other_families(
    family: str, path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """transformers' own code with our kernels, norms of heads, and windows."""
    engine = make_engine(family, CONFIG)
    layers = Layers(GPT2_TARGETS if family in WITHOUT_DECODER else LORA.targets)
    healthy = engine.publish("a", make_expert_folder(tmp_path / "a", layers, family=family))
    folder = Poison(layers, {".a": HUGE}).folder(tmp_path / "poison", seed=1, family=family)
    poison = engine.publish("poison", folder)

    def neighbours(tag: str) -> list[EngineRequest]:
        return [
            request(
                f"{tag} {i}", path.short(TEXT[: 2 + 9 * i]), mixture, max_new_tokens=_tokens(path)
            )
            for i, mixture in enumerate(
                ({}, {healthy: 0.8}, {})[: 2 if _is_interpreted(path) else 3]
            )
        ]

    expected = engine.run(*neighbours("without"))
    *beside, poisoned = engine.run(*neighbours("beside"), _poisoned("poison", poison, path))
    _assert_failed(poisoned)
    _assert_equal(beside, expected, path)
    if not _is_interpreted(path):
        _assert_equal(engine.run(*neighbours("after")), expected, path)
