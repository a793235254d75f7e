"""Every backend, a package's own among them, by the Protocol; and which one an engine takes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from router_engine.backends.select import GROUP, BackendRegistry
from router_engine.config import CacheConfig, CpuIsa, EngineConfig, KernelConfig, ModelConfig
from router_engine.errors import EngineError, UnsupportedModelError
from router_engine.kernels.dispatch import GROUP as KERNELS
from router_engine.kernels.dispatch import KernelRegistry
from router_engine.model.loader import load_model
from router_engine.request import EngineRequest, LayerRouting, SamplingSpec
from tests.router_engine.backends.backend_checks import Made, check_backend
from tests.router_engine.conftest import MakeHarness
from tests.router_engine.kernels.triton_process import Run
from tests.router_engine.paths import modules_called
from tests.support.expert_adapters import NATIVE, SERIAL, SPARSE, make_expert_folder
from tests.support.harness import request
from tests.support.isas import here
from tests.support.packages import install
from tests.support.their_backend import CountingBackend
from tests.support.tiny import make_lora_folder

PROMPT = list(range(5, 25))
KERNEL_MODULE = "tests.support.their_kernels"


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that brings a backend."""
    entries = {"counting": "tests.support.their_backend:COUNTING"}
    install(tmp_path / "package", monkeypatch, GROUP, entries)


def test_torch(tmp_path: Path) -> None:
    check_backend("cpu", Made("reference", "TorchBackend", tmp_path / "kernels"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("isa", here())
def test_cpu(isa: CpuIsa, kernel_cache: Path, tmp_path: Path) -> None:
    check_backend("cpu", Made("cpu", "CpuBackend", kernel_cache, isa), tmp_path)


@pytest.mark.slow
def test_cuda(run: Run, tmp_path: Path) -> None:
    run(check_backend, Made("triton", "CudaBackend", tmp_path / "kernels"), tmp_path)


@pytest.mark.usefixtures("theirs")
def test_a_package_s_own(tmp_path: Path) -> None:
    check_backend("cpu", Made("counting", "CountingBackend", tmp_path / "kernels"), tmp_path)


@pytest.mark.usefixtures("theirs")
def test_a_package_s_backend_serves(make_harness: MakeHarness, tmp_path: Path) -> None:
    folder, answers = make_lora_folder(tmp_path / "lora"), []
    for kernels in ("reference", "counting"):
        config = EngineConfig(cache=CacheConfig(num_blocks=64), kernels=KernelConfig(kernels))
        harness = make_harness(config=config)
        digest = harness.publish("a", folder)
        answers.append([answer.ids for answer in harness.run(request("r", PROMPT, {digest: 0.7}))])
    assert answers[0] == answers[1]
    backend = harness.engine.backend
    assert isinstance(backend, CountingBackend)
    assert backend.operations == "ReferenceOperations"
    assert backend.steps == harness.engine.stats().steps


@pytest.mark.usefixtures("theirs")
def test_a_package_s_refusal_says_why(
    make_harness: MakeHarness, family_folder: Callable[[str], Path]
) -> None:
    config = EngineConfig(kernels=KernelConfig("counting"))
    reason = "backend 'counting' cannot run this model: it counts Llamas only"
    with pytest.raises(UnsupportedModelError, match=reason):
        make_harness(family_folder("gpt2"), config)


@pytest.mark.usefixtures("theirs")
def test_unknown_names_are_told_those_of_packages(make_harness: MakeHarness) -> None:
    known = r"unknown kernels 'fast' \(known: auto, counting, cpu, reference"
    with pytest.raises(EngineError, match=known):
        make_harness(config=EngineConfig(kernels=KernelConfig("fast")))


@pytest.mark.parametrize("name", ["cpu", "auto", "triton", "torch"])
def test_a_built_in_name_is_taken(name: str) -> None:
    entry = EntryPoint(name, "tests.support.their_backend:CPU", GROUP)
    with pytest.raises(EngineError, match=f"a backend may not be named '{name}' .*: that is built"):
        BackendRegistry([entry], KernelRegistry([]))


def test_a_broken_entry_is_named() -> None:
    loaded = load_model(ModelConfig(device="cpu"))
    registry = BackendRegistry(
        [EntryPoint("mine", "nowhere_to_be_found:SPEC", GROUP)], KernelRegistry.discover()
    )
    with pytest.raises(EngineError, match=r"backend 'mine' .* cannot be loaded"):
        registry.choose("mine", loaded)


def test_kernels_of_a_package_serve_every_kind(
    make_harness: MakeHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All seven operations are the set's own: the reference is never asked."""
    install(tmp_path / "package", monkeypatch, KERNELS, {"loops": f"{KERNEL_MODULE}:LOOPS"})
    folders = {
        kind: make_expert_folder(tmp_path / kind, layers)
        for kind, layers in {"sparse": SPARSE, "native": NATIVE, "serial": SERIAL}.items()
    }
    folders["lora"] = make_lora_folder(tmp_path / "lora")
    answers = []
    for kernels in ("reference", "loops"):
        config = EngineConfig(cache=CacheConfig(num_blocks=64), kernels=KernelConfig(kernels))
        harness = make_harness(config=config)
        digests = {kind: harness.publish(kind, folder) for kind, folder in folders.items()}
        requests = [
            request(kind, PROMPT[:9], {digest: 0.8}, max_new_tokens=2)
            for kind, digest in digests.items()
        ]
        lora = {digests["lora"]: 0.7}
        requests.append(request("linear", PROMPT[:9], lora, combination="linear", max_new_tokens=2))
        requests.append(
            EngineRequest(
                *("arrow", tuple(PROMPT[:9]), SamplingSpec(max_new_tokens=2), tuple(lora)),
                layer_routing=LayerRouting("arrow", {"top_k": 1}),
            )
        )
        with modules_called() as called:
            answers.append([answer.ids for answer in harness.run(*requests)])
    assert answers[0] == answers[1]
    assert KERNEL_MODULE in called
    assert not any(name.startswith("router_engine.kernels.reference") for name in called)


def test_kernels_of_an_older_version_are_refused_by_what_they_lack(
    make_harness: MakeHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, KERNELS, {"old": f"{KERNEL_MODULE}:OLD"})
    missing = "kernels 'old' lack layer_routing, gating, mix_bottleneck, attend_prompts: made for"
    with pytest.raises(UnsupportedModelError, match=missing):
        make_harness(config=EngineConfig(kernels=KernelConfig("old")))
