"""That a parity test's engine runs on the kernels that its path names, and that others show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from router_engine.config import CacheConfig, EngineConfig, SchedulerConfig
from tests.router_engine import paths
from tests.router_engine.conftest import WITHOUT_DECODER, MakeEngine
from tests.router_engine.paths import EnginePath, PathHarness
from tests.support.harness import request
from tests.support.oracle import assert_agrees, greedy
from tests.support.tiny import make_lora_folder

PROMPT = [5]
OTHERS = (paths.CPU, paths.TRITON, paths.CUDA)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_step_calls_the_path_s_kernels_and_no_others(
    family: str, path: EnginePath, make_engine: MakeEngine, tmp_path: Path
) -> None:
    options = {"fan_in_fan_out": True} if family == "gpt2" else {}
    targets = ["c_attn"] if family == "gpt2" else ["q_proj"]
    folder = make_lora_folder(tmp_path / "lora", family=family, targets=targets, options=options)
    engine = make_engine(family)
    mixture = {engine.publish("a", folder): 0.5}
    called = engine.parts_called(
        request("base", PROMPT, max_new_tokens=2),
        request("sum", PROMPT, mixture, max_new_tokens=2),
        request("linear", PROMPT, mixture, combination="linear", max_new_tokens=1),
    )
    assert called == path.kernels(decoder=family not in WITHOUT_DECODER).calls


@pytest.mark.parametrize("claimed", OTHERS, ids=lambda path: path.name)
def test_an_engine_that_falls_back_to_the_reference_is_found_out(
    claimed: EnginePath, tmp_path: Path
) -> None:
    """Negative control: the path's name, the reference's kernels."""
    kernels = replace(claimed.decoder, setting="reference")
    path = replace(claimed, decoder=kernels, device="cpu")
    engine = PathHarness(tmp_path, path, tmp_path / "kernels")
    with pytest.raises(AssertionError, match=f"runs on None, not on {kernels.backend}"):
        engine.run(request("r", PROMPT))
    honest = PathHarness(tmp_path / "honest", paths.REFERENCE, tmp_path / "kernels")
    called = honest.parts_called(request("r", PROMPT, max_new_tokens=1))
    assert called == paths.REFERENCE.decoder.calls
    assert called not in (claimed.decoder.calls, claimed.plain.calls - {paths.TRANSFORMERS})
    for each in (engine, honest):
        each.engine.close()
        each.store.close()


def test_eight_bits_are_not_the_base_in_full(tmp_path: Path) -> None:
    """Negative control: int8's tolerance tells it from fp32. Two of three chunks sample nothing."""
    rounded = replace(paths.REFERENCE, quantization="int8")
    config = EngineConfig(
        cache=CacheConfig(num_blocks=64), scheduler=SchedulerConfig(max_step_tokens=10)
    )
    harness = PathHarness(tmp_path, rounded, tmp_path / "kernels", config=config)
    prompts = [range(first, first + 25) for first in (5, 40, 100)]
    answers = harness.run(*(request(f"r{p.start}", p) for p in prompts))

    def check(path: EnginePath) -> None:
        for prompt, answer in zip(prompts, answers, strict=True):
            ids, rows = greedy(path.base("llama"), prompt, 12)
            assert_agrees(answer, ids, rows, paths.INT8.tolerance)

    check(rounded)
    with pytest.raises(AssertionError, match="token"):
        check(paths.REFERENCE)
    harness.close()
