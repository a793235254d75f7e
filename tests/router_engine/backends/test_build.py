"""Where the library is kept, and what is said when it cannot be built."""

from __future__ import annotations

from ctypes import Structure, c_int64
from pathlib import Path

import pytest

from router_engine.backends.cpu import build as kernel_build
from router_engine.backends.cpu import library as cpu_library
from router_engine.backends.cpu.build import (
    KernelBuildError,
    architecture,
    build,
    isas_of,
    known_isas,
    library_path,
)
from router_engine.backends.cpu.library import Library, supported_isas
from router_engine.backends.cpu.structures import STRUCTURES
from router_engine.config import EngineConfig, KernelConfig
from router_engine.errors import EngineError, UnsupportedModelError
from tests.router_engine.conftest import MakeHarness
from tests.support.harness import request
from tests.support.isas import here
from tests.support.tiny import save_family

PROMPT = list(range(5, 30))


def test_the_path_depends_on_the_cache_alone(tmp_path: Path) -> None:
    first, other = tmp_path / "a", tmp_path / "b"
    assert library_path(first) == library_path(first)
    assert library_path(first).name == library_path(other).name
    assert not first.exists()


def test_sets_are_found_by_all_that_they_need() -> None:
    """The table against the library's own questions to the processor."""
    if architecture() != "x86_64":
        return
    haswell = frozenset({"avx2", "fma", "bmi1", "bmi2", "abm", "popcnt", "f16c", "sse2"})
    assert isas_of(haswell) == ("avx2",)
    for hidden in haswell - {"sse2"}:  # by a virtual machine
        assert isas_of(haswell - {hidden}) == ()
    icelake = haswell | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512_vnni"}
    assert isas_of(icelake) == ("avx2", "avx512", "avx512_vnni")
    assert isas_of(icelake | {"avx512_bf16", "amx_tile"})[-1] == "avx512_bf16"


@pytest.mark.slow
def test_the_library_runs_the_sets_of_the_machine_down_to_the_limit(
    kernel_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(kernel_cache)
    assert supported_isas(path) == here()
    assert Library(path).isa == here()[-1]
    monkeypatch.setenv("ADAPTERMIX_CPU_ISA", here()[0])
    assert supported_isas(path) == here()[:1]
    with pytest.raises(EngineError, match="instruction set 'sse9' does not run here"):
        Library(path, "sse9")


@pytest.mark.slow
def test_a_structure_of_another_size_is_refused_by_name(
    library: Library, monkeypatch: pytest.MonkeyPatch, kernel_cache: Path
) -> None:
    """One field more on this side, in each structure in turn."""
    for structure in STRUCTURES:
        longer = type(structure.__name__, (structure,), {"_fields_": (("more", c_int64),)})
        monkeypatch.setattr(cpu_library, "STRUCTURES", (longer,))
        name = structure.__name__.removesuffix("Struct")
        with pytest.raises(KernelBuildError, match=f"the library's structure {name} has"):
            Library(build(kernel_cache), library.isa)
    unknown = type("OtherStruct", (Structure,), {"_fields_": (("more", c_int64),)})
    monkeypatch.setattr(cpu_library, "STRUCTURES", (unknown,))
    with pytest.raises(KernelBuildError, match="structure Other has -1 bytes, and 8 here"):
        Library(build(kernel_cache), library.isa)


def test_no_compiler_is_said_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelBuildError, match=r"no C\+\+ compiler: install one of g\+\+"):
        build(tmp_path / "cache", known_isas()[:1])


def test_what_the_compiler_said_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelBuildError, match="it is broken"):
        build(tmp_path / "cache", known_isas()[:1])
    assert not list((tmp_path / "cache").iterdir())


def test_auto_serves_by_the_reference_where_nothing_can_be_built(
    make_harness: MakeHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_harness()
    (expected,) = plain.run(request("r", PROMPT))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(kernel_build, "SHIPPED", tmp_path)  # nothing is
    harness = make_harness(config=EngineConfig(kernels=KernelConfig("auto", tmp_path / "cache")))
    (answer,) = harness.run(request("r", PROMPT))
    assert answer.ids == expected.ids
    assert not harness.engine.backend.capabilities.has_decoder


def test_cpu_refuses_a_model_that_it_cannot_run(make_harness: MakeHarness, tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "gpt2")
    config = EngineConfig(kernels=KernelConfig("cpu", tmp_path / "cache"))
    with pytest.raises(UnsupportedModelError, match=r"'cpu'.*GPT2LMHeadModel.*LlamaForCausalLM"):
        make_harness(folder, config=config)
