"""What must come out alike: adapters that say the same, and steps that are cut up differently."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from adapters_store.formats.native import MANIFEST_FILE
from adapters_store.formats.tensor_file import TENSOR_FILE
from adapters_store.manifest import manifest_from_json, manifest_to_json
from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from router_engine.request import EngineRequest
from tests.router_engine.conftest import MakeEngine
from tests.router_engine.paths import EnginePath
from tests.support.expert_adapters import (
    MOA_TARGETS,
    NATIVE,
    SOFT,
    SPARSE,
    Layers,
    edited,
    make_expert_folder,
)
from tests.support.harness import Answer, request

PROMPT = list(range(5, 30))
# The bias of a sigmoid that rounds to 1, and to 0 in fp32.
OPEN = {"router.weight": 0.0, "router.bias": 40.0}
OPEN_SWIGLU = {"router.w2.weight": 0.0, "router.w2.bias": 40.0}


def _alike(one: Answer, other: Answer, tolerance: float) -> bool:
    return one.ids == other.ids and one.logprobs == pytest.approx(other.logprobs, abs=tolerance)


def _answers(
    engine_of: MakeEngine, path: EnginePath, folders: list[Path], config: EngineConfig | None = None
) -> list[Answer]:
    """One request a folder, each alone."""
    engine = engine_of(config=config)
    answers = []
    for index, folder in enumerate(folders):
        digest = engine.publish(f"a{index}", folder)
        one = request(f"r{index}", path.short(PROMPT), {digest: 0.7}, max_new_tokens=path.tokens)
        answers += engine.run(one)
    return answers


def _without_routers(folder: Path, directory: Path) -> Path:
    """The same experts, none of which has a gate."""
    edited(folder, directory, {})
    manifest = manifest_from_json((directory / MANIFEST_FILE).read_bytes())
    experts = tuple(replace(expert, gate=None) for expert in manifest.experts)
    plain = replace(manifest, experts=experts, routers=())
    (directory / MANIFEST_FILE).write_bytes(manifest_to_json(plain))
    tensors = load_file(directory / TENSOR_FILE)
    kept = {key: tensor for key, tensor in tensors.items() if ".router." not in key}
    save_file(kept, directory / TENSOR_FILE)
    return directory


def test_gates_of_one_are_no_gates(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    made = make_expert_folder(tmp_path / "made", Layers(MOA_TARGETS, router="linear"))
    opened = edited(made, tmp_path / "open", OPEN)
    plain = _without_routers(made, tmp_path / "plain")
    gated, with_open_gates, without = _answers(make_engine, path, [made, opened, plain])
    assert _alike(with_open_gates, without, path.tolerance)
    assert not _alike(gated, without, path.tolerance)


def test_all_kinds_under_open_gates_are_ungated(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    made = make_expert_folder(tmp_path / "made", NATIVE)
    opened = edited(made, tmp_path / "open", OPEN_SWIGLU)
    plain = _without_routers(made, tmp_path / "plain")
    with_open_gates, without = _answers(make_engine, path, [opened, plain])
    assert _alike(with_open_gates, without, path.tolerance)


def test_soft_is_sparse_with_a_threshold_of_zero(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """Random numbers are drawn in one order: layers that differ in the threshold alone share all
    but that."""
    layers = replace(SOFT, threshold_net=False)
    folders = [
        make_expert_folder(tmp_path / f"at {maximum}", replace(layers, threshold=maximum))
        for maximum in (None, 0.0, 0.6)
    ]
    soft, at_zero, sparse = _answers(make_engine, path, folders)
    assert _alike(soft, at_zero, path.tolerance)
    assert not _alike(soft, sparse, path.tolerance)


def test_a_prompt_whose_head_gates_are_zero_does_nothing(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    made = make_expert_folder(tmp_path / "made", Layers(prompt=5))
    closed = edited(made, tmp_path / "closed", {"prompt_gate": 0.0})
    shown, hidden = _answers(make_engine, path, [made, closed])
    (base,) = make_engine().run(request("base", path.short(PROMPT), max_new_tokens=path.tokens))
    assert _alike(hidden, base, path.tolerance)
    assert not _alike(shown, base, path.tolerance)


@pytest.mark.parametrize("layers", [NATIVE, SPARSE], ids=["native", "sparse"])
def test_a_prompt_in_pieces_is_the_prompt(
    layers: Layers, path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """One prefill, chunks of 4 and token by token."""
    folder = make_expert_folder(tmp_path / "made", layers)
    answers = []
    for most in (512, 4, 1):
        config = EngineConfig(
            cache=CacheConfig(num_blocks=64), scheduler=SchedulerConfig(max_step_tokens=most)
        )
        answers += _answers(make_engine, path, [folder], config)
    assert all(_alike(answer, answers[0], path.tolerance) for answer in answers)


def test_preempted_requests_give_the_same_tokens(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """Three blocks for each request, whose prompt takes two: what is generated needs more."""
    folders = [make_expert_folder(tmp_path / f"a{seed}", NATIVE, seed=seed) for seed in range(2)]
    tight = EngineConfig(
        cache=CacheConfig(block_size=2, num_blocks=6, prefix_cache=False),
        scheduler=SchedulerConfig(max_running=2),
    )
    engine = make_engine(config=tight)
    digests = [engine.publish(f"a{i}", folder) for i, folder in enumerate(folders)]

    def ask(name: str, index: int) -> EngineRequest:
        new = min(path.tokens, 6) + 2
        return request(f"{name} {index}", PROMPT[:4], {digests[index]: 0.7}, max_new_tokens=new)

    alone = [engine.run(ask("alone", index))[0] for index in range(2)]
    assert engine.stats().preemptions == 0
    together = engine.run(*(ask("together", index) for index in range(2)))
    assert engine.stats().preemptions > 0
    for one, other in zip(together, alone, strict=True):
        assert _alike(one, other, path.tolerance)


def test_prefixes_are_read_again_under_the_same_adapter_only(
    path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """The same text under another adapter has gates, and keys, of its own."""
    folders = [make_expert_folder(tmp_path / f"a{seed}", NATIVE, seed=seed) for seed in range(2)]
    alone = _answers(make_engine, path, folders)
    assert not _alike(alone[0], alone[1], path.tolerance)
    engine = make_engine(config=EngineConfig(cache=CacheConfig(block_size=2, num_blocks=64)))
    digests = [engine.publish(f"a{i}", folder) for i, folder in enumerate(folders)]
    prompt = path.short(PROMPT)
    for turn in range(2):
        for index, digest in enumerate(digests):
            one = request(f"{turn} {index}", prompt, {digest: 0.7}, max_new_tokens=path.tokens)
            assert _alike(engine.run(one)[0], alone[index], path.tolerance)
        assert (engine.stats().prefix_hit_tokens > 0) == (turn == 1)
