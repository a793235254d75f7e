"""The choice of what computes on a CPU: measured once, by the least that it falls behind."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from router_engine.backends.base import TORCH
from router_engine.backends.cpu import build as kernel_build
from router_engine.backends.cpu.build import build, library_path
from router_engine.backends.cpu.choice import Choice, choose, parse_choice
from router_engine.backends.cpu.trial import ROWS, LayerShape, TorchTrial, measure
from router_engine.backends.json_cache import read_cached, write_cached
from router_engine.config import CacheConfig, CpuIsa, EngineConfig, KernelConfig
from router_engine.errors import EngineError
from tests.router_engine.conftest import MakeHarness
from tests.support.harness import request
from tests.support.isas import here
from tests.support.waiting import wait_for

SHAPE = LayerShape(hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96)


def test_the_one_that_is_least_behind_is_the_fastest() -> None:
    seconds = {"avx2": {1: 1.0, 8: 4.0}, "avx512": {1: 1.1, 8: 2.0}, TORCH: {1: 3.0}}
    choice = Choice("avx2", seconds)
    assert choice.behind == pytest.approx({"avx2": 1.0, "avx512": 1.1, TORCH: 3.0})  # rows of all
    assert choice.isa == "avx2"
    both = Choice("avx512", {name: seconds[name] for name in ("avx2", "avx512")})
    assert both.isa == "avx512"


def test_as_many_rows_are_measured_as_there_is_time_for() -> None:
    ran: list[int] = []
    assert list(measure(ran.append, 3600.0)) == list(ROWS)
    assert set(ran) == set(ROWS)
    assert list(measure(ran.append, -1.0)) == [ROWS[0]]


@pytest.mark.parametrize("rows", ROWS)
def test_torch_computes_the_layer_too(rows: int) -> None:
    TorchTrial(SHAPE, torch.float32).run(rows)


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_measured_once_and_kept(
    dtype: torch.dtype, *, int8: bool, kernel_cache: Path, tmp_path: Path
) -> None:
    library = build(kernel_cache)
    first = choose(library, tmp_path, SHAPE, dtype, int8=int8)
    assert first == choose(library, tmp_path, SHAPE, dtype, int8=int8)
    assert len(list(tmp_path.iterdir())) == 1
    assert set(first.seconds) == {*here()[-3:], *([] if int8 else [TORCH])}
    assert first.chosen in (first.isa, TORCH)
    assert first.isa in here()


def _seconds(*names: str) -> dict[str, dict[str, float]]:
    return {name: {"1": 0.5, "8": 1.0} for name in names}


# What a cache may hold after a crash, a full disk or another version: none of it is a choice.
UNFIT: list[object] = [
    *(b"", b"{", b"[]", b"null", b"7", b'"avx2"', b"\xff\xfe", b"[" * 100_000, b"{}"),
    {"chosen": "avx2"},
    {"chosen": "zzz", "seconds": _seconds("avx2", TORCH)},
    {"chosen": ["avx2"], "seconds": _seconds("avx2", TORCH)},
    {"chosen": "avx2", "seconds": []},
    {"chosen": "avx2", "seconds": {}},
    {"chosen": "avx2", "seconds": {"avx2": 5, TORCH: 6}},
    {"chosen": "avx2", "seconds": {"avx2": {}, TORCH: {}}},
    {"chosen": "avx2", "seconds": {"avx2": {"1": 0.5}, TORCH: {"8": 0.5}}},
    {"chosen": "avx2", "seconds": {"avx2": {"one": 0.5}, TORCH: {"1": 0.5}}},
    {"chosen": "avx2", "seconds": {"avx2": {"1": "0.5s"}, TORCH: {"1": 0.5}}},
    {"chosen": "avx2", "seconds": {"avx2": {"1": 0.0}, TORCH: {"1": 0.5}}},
    {"chosen": "avx2", "seconds": {"avx2": {"1": float("nan")}, TORCH: {"1": 0.5}}},
    {"chosen": "avx2", "seconds": _seconds("avx2", "amx", TORCH)},
    {"chosen": TORCH, "seconds": _seconds(TORCH)},
]


def _written(file: Path, content: object) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return file


@pytest.mark.parametrize("content", UNFIT, ids=lambda content: str(content)[:60])
def test_a_file_that_is_no_choice_is_none(tmp_path: Path, content: object) -> None:
    parse = partial(parse_choice, ("avx2", TORCH))
    assert read_cached(_written(tmp_path / "kept", content), parse) is None
    assert read_cached(tmp_path, parse) is None
    assert read_cached(tmp_path / "nothing", parse) is None
    good = {"chosen": "avx2", "seconds": _seconds("avx2", TORCH)}
    assert read_cached(_written(tmp_path / "kept", good), parse) is not None


@pytest.mark.parametrize("content", UNFIT, ids=lambda content: str(content)[:60])
def test_it_is_replaced_and_a_good_one_stays(tmp_path: Path, content: object) -> None:
    file = _written(tmp_path / "kept", content)

    def stays() -> bool:
        return read_cached(file, partial(parse_choice, ("avx2", TORCH))) is not None

    good = {"chosen": "avx2", "seconds": _seconds("avx2", TORCH)}
    write_cached(file, good, stays)
    assert json.loads(file.read_text()) == good
    write_cached(file, good | {"chosen": TORCH}, stays)
    assert json.loads(file.read_text()) == good
    write_cached(file, {"chosen": TORCH})
    assert json.loads(file.read_text()) == {"chosen": TORCH}
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_system_without_links_keeps_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(_part: str, _file: Path) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    file = tmp_path / "kept"
    write_cached(file, {"first": 1}, file.exists)
    write_cached(file, {"second": 2}, file.exists)
    assert json.loads(file.read_text()) == {"first": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signalled = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        write_cached(tmp_path / "kept", "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signalled)
    assert "is not kept" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["/dev/null/x", "/proc/x", "a-file/x", "a-folder", "a\0b"])
def test_what_cannot_be_written_is_said(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-folder" / "kept").mkdir(parents=True)
    write_cached(tmp_path / place / "kept", {})
    assert "is not kept, and found out again at the next start" in caplog.text
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"[]", {"chosen": "zzz", "seconds": _seconds("zzz")}])
def test_it_is_measured_again_where_the_file_is_none(
    content: object, kernel_cache: Path, tmp_path: Path
) -> None:
    library = build(kernel_cache)
    choose(library, tmp_path, SHAPE, torch.float32, int8=True)
    (kept,) = tmp_path.iterdir()
    _written(kept, content)
    again = choose(library, tmp_path, SHAPE, torch.float32, int8=True)
    assert again.chosen in here()
    assert choose(library, tmp_path, SHAPE, torch.float32, int8=True) == again


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_costs_a_measurement(
    kernel_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = build(kernel_cache)
    found = choose(library, Path("/dev/null/x"), SHAPE, torch.float32, int8=True)
    assert found.chosen in here()
    assert "/dev/null/x" in caplog.text


@pytest.mark.parametrize("place", ["/dev/null/x", "a\0b"])
def test_a_build_that_fails_in_any_way_leaves_the_reference(
    place: str,
    make_harness: MakeHarness,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The second path is none at all, which is no error that a build expects."""
    monkeypatch.setattr(kernel_build, "SHIPPED", tmp_path)  # nothing is
    harness = make_harness(config=EngineConfig(kernels=KernelConfig("auto", Path(place))))

    def told() -> bool:
        harness.run(request("r", [5, 6, 7], max_new_tokens=2))
        return "the CPU kernels are not used" in caplog.text

    wait_for(told)
    assert harness.engine.stats().kernels == TORCH


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_a_library_that_cannot_be_loaded_leaves_the_reference(
    content: bytes,
    make_harness: MakeHarness,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(kernel_build, "SHIPPED", tmp_path / "nothing")
    library_path(tmp_path).write_bytes(content)
    harness = make_harness(config=EngineConfig(kernels=KernelConfig("auto", tmp_path)))
    assert harness.engine.stats().kernels == TORCH
    assert f"delete {library_path(tmp_path)}" in caplog.text
    with pytest.raises(EngineError, match="delete"):
        make_harness(config=EngineConfig(kernels=KernelConfig("cpu", tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("isa", here())
def test_the_set_that_is_asked_for_computes(
    isa: CpuIsa, make_harness: MakeHarness, kernel_cache: Path
) -> None:
    config = EngineConfig(cache=CacheConfig(num_blocks=64))
    kernels = KernelConfig("cpu", kernel_cache, isa)
    harness = make_harness(config=EngineConfig(cache=config.cache, kernels=kernels))
    harness.run(request("r", [5, 6, 7], max_new_tokens=2))
    assert harness.engine.stats().kernels == isa


def test_without_the_decoder_torch_computes(make_harness: MakeHarness) -> None:
    assert make_harness().engine.stats().kernels == TORCH
