"""The engine in this process: outputs in order, waits that end, invariants that are kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adapters_store.blobs import open_blobs
from adapters_store.store import AdapterStore
from router_engine.config import CacheConfig, EngineConfig, KernelConfig, Kernels, ModelConfig
from router_engine.engine import Engine
from router_engine.errors import EngineError
from router_engine.events import FinishReason
from router_engine.experts.base import AdapterSource
from router_engine.offline import EngineStalledError, OfflineEngine
from tests.support.harness import request
from tests.support.harness import request as make_request
from tests.support.oracle import assert_agrees, greedy, peft_model, set_mixture
from tests.support.tiny import family_model
from tests.support.waiting import HANG_SECONDS

CONFIG = EngineConfig(ModelConfig("tiny-random"), cache=CacheConfig(num_blocks=256))
PROMPTS = [tuple(range(5, 5 + length)) for length in (7, 20, 1, 33)]
LONG = 400


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[OfflineEngine]:
    with OfflineEngine.open(CONFIG, tmp_path, patience=HANG_SECONDS) as engine:
        yield engine


def test_a_batch_is_greedy_as_transformers_is_and_comes_in_its_order(
    engine: OfflineEngine,
) -> None:
    lengths = (9, 2, 6, 1)  # the last ends first
    requests = [
        request(f"r{index}", prompt, max_new_tokens=length)
        for index, (prompt, length) in enumerate(zip(PROMPTS, lengths, strict=True))
    ]
    model = family_model("llama")
    outputs = engine.generate(requests)
    assert [output.end.request_id for output in outputs] == ["r0", "r1", "r2", "r3"]
    for output, prompt, length in zip(outputs, PROMPTS, lengths, strict=True):
        assert_agrees(output, *greedy(model, prompt, length))
    assert not engine.has_unfinished_requests


def test_a_mixture_waits_for_its_adapters_and_is_that_of_peft(
    engine: OfflineEngine, folders: list[Path]
) -> None:
    digests = [engine.publish(f"a{index}", folders[index]) for index in range(2)]
    mixture = dict(zip(digests, (0.7, 0.3), strict=True))
    (output,) = engine.generate([request("mixed", PROMPTS[0], mixture, max_new_tokens=6)])
    model = peft_model(family_model("llama"), folders[:2])
    set_mixture(model, (0.7, 0.3), "sum")
    assert_agrees(output, *greedy(model, PROMPTS[0], 6))


def test_what_was_added_before_goes_on_beside_a_batch(engine: OfflineEngine) -> None:
    before = engine.add_request(request("before", PROMPTS[0], max_new_tokens=LONG))
    engine.generate([request("batch", PROMPTS[1], max_new_tokens=3)])
    assert before.tokens
    assert not before.is_finished
    with pytest.raises(EngineError, match="has not ended"):
        _ = before.end
    engine.abort_requests(["before", "nobody"])
    engine.run_until_idle()
    assert before.end.reason is FinishReason.CANCELLED
    engine.check_integrity()


def test_a_batch_that_fails_leaves_nothing_behind(
    engine: OfflineEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.engine, "step", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([request("r", PROMPTS[0], max_new_tokens=LONG)])
    monkeypatch.undo()
    engine.run_until_idle()
    engine.check_integrity()
    assert engine.engine.stats().blocks_owned == 0
    assert len(engine.generate([request("r", PROMPTS[0], max_new_tokens=2)])[0].ids) == 2


def _interrupted() -> None:
    raise KeyboardInterrupt


def test_futures_of_the_engine_are_waited_for(engine: OfflineEngine, folders: list[Path]) -> None:
    digest = engine.publish("a0", folders[0])
    assert engine.wait(engine.engine.load(digest)).digest == digest
    with pytest.raises(EngineError, match="sha256:0"):
        engine.wait(engine.engine.load("sha256:" + "0" * 64))


def test_nothing_to_wait_for_is_an_error_and_a_wake_ends_a_wait(tmp_path: Path) -> None:
    with OfflineEngine.open(CONFIG, tmp_path, patience=0.0) as engine:
        with pytest.raises(EngineStalledError, match="neither adapters nor weights"):
            engine.step()
        engine.wake()
        assert engine.step() == []


def test_a_broken_invariant_is_told_at_the_end_but_not_over_another_error(tmp_path: Path) -> None:
    broken = _made(tmp_path / "first")
    with pytest.raises(AssertionError, match="a block is lost"), broken:
        pass
    broken = _made(tmp_path / "second")
    with pytest.raises(ValueError, match="mine"), broken:
        raise ValueError("mine")


class _BrokenInvariant(Engine):
    def check_integrity(self) -> None:
        raise AssertionError("a block is lost")


def _made(root: Path) -> OfflineEngine:
    adapters: AdapterSource = open_blobs(root / "blobs")

    def make(wake: Callable[[], None]) -> Engine:
        return _BrokenInvariant(CONFIG, adapters=adapters, token_routers={}, wake=wake)

    return OfflineEngine(make, AdapterStore.open(root))


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_what_is_closed_and_let_go_of_is_freed_at_once(
    kernels: Kernels, tmp_path: Path, folders: list[Path], request: pytest.FixtureRequest
) -> None:
    """A KV cache is too large to wait for the collector, which counts objects and not bytes."""
    cache = request.getfixturevalue("kernel_cache") if kernels == "cpu" else tmp_path
    config = replace(CONFIG, kernels=KernelConfig(kernels=kernels, cache=cache))
    engine = OfflineEngine.open(config, tmp_path / "store", patience=HANG_SECONDS)
    mixture = {engine.publish("a", folders[0]): 1.0}
    engine.generate([make_request("mixed", PROMPTS[0], mixture, max_new_tokens=2)])
    parts = [weakref.ref(part) for part in (engine, engine.engine, engine.engine.backend)]
    gc.disable()
    try:
        engine.close()
        del engine
        assert [part() for part in parts] == [None, None, None]
    finally:
        gc.enable()
