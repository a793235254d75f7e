"""Where the library is kept, and what is said when it cannot be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_engine.config import EngineConfig, KernelConfig
from router_engine.errors import UnsupportedModelError
from router_engine.kernels.cpu.build import KernelBuildError, build, library_path
from tests.router_engine.conftest import MakeHarness
from tests.support.harness import request
from tests.support.tiny import save_family

PROMPT = list(range(5, 30))


def test_the_path_depends_on_the_cache_alone(tmp_path: Path) -> None:
    first, other = tmp_path / "a", tmp_path / "b"
    assert library_path(first) == library_path(first)
    assert library_path(first).name == library_path(other).name
    assert not first.exists()


def test_no_compiler_is_said_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelBuildError, match=r"no C\+\+ compiler: install one of g\+\+"):
        build(tmp_path / "cache")


def test_what_the_compiler_said_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelBuildError, match="it is broken"):
        build(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_auto_serves_by_the_reference_where_nothing_can_be_built(
    make_harness: MakeHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_harness()
    (expected,) = plain.run(request("r", PROMPT))
    monkeypatch.setenv("PATH", str(tmp_path))
    harness = make_harness(config=EngineConfig(kernels=KernelConfig("auto", tmp_path / "cache")))
    (answer,) = harness.run(request("r", PROMPT))
    assert answer.ids == expected.ids


def test_cpu_refuses_a_model_that_it_cannot_run(make_harness: MakeHarness, tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "gpt2")
    config = EngineConfig(kernels=KernelConfig("cpu", tmp_path / "cache"))
    with pytest.raises(UnsupportedModelError, match=r"'cpu'.*GPT2LMHeadModel.*LlamaForCausalLM"):
        make_harness(folder, config=config)
