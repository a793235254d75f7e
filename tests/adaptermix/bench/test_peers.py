"""Workers, installation and the run beside the peers, on the tiny random model."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest
from typer.testing import CliRunner

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.goals import GOALS, INT8, MIXED, OFFLINE, OURS
from adaptermix.bench.load import Load, Round
from adaptermix.bench.machine import ROOT, descendants, import_bytes, resident_bytes
from adaptermix.bench.peers import run
from adaptermix.bench.peers.environment import PeerEnvironment
from adaptermix.bench.peers.plan import (
    SUITES,
    cells,
    key_of,
    mixed_bytes_over_one,
    traffics,
)
from adaptermix.bench.peers.run import failed, gpu_scalars
from adaptermix.bench.peers.settings import PEERS, PeerSettings
from adaptermix.bench.peers.systems import Context, Worker
from adaptermix.bench.peers.vllm_cpu import command
from adaptermix.bench.peers.workers import wire
from adaptermix.bench.rounds import Cell
from adaptermix.bench.settings import ModelSettings
from adaptermix.bench.subject import ALL_TARGETS, TARGETS, Subject, write_adapters
from adaptermix.bench.workload import Job, Population, Traffic, parse_lengths
from adaptermix.cli.main import app
from router_engine.model.tiny import TINY_RANDOM, save_tiny, tiny_tokenizer
from router_engine.processors import ThreadsError

ECHO = """
from adaptermix.bench.peers.workers.wire import serve
def handle(message):
    print("noise")
    return {"twice": 2 * message["number"]}
serve(lambda: ({"threads": 1}, handle))
"""
NAMES = ("a0", "a1")


def encode(text: str) -> list[int]:
    tokens: list[int] = tiny_tokenizer().encode(text)
    return tokens


def jobs(case: str, count: int = 4) -> list[Job]:
    lengths = parse_lengths("uniform:20:40"), parse_lengths("fixed:4")
    return Traffic(Population(NAMES, mixture_size=2), *lengths, len).jobs(case, count, "test")


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker([sys.executable, "-c", ECHO], tmp_path / "log", encode)
    yield worker
    worker.close()


def test_a_worker_answers_and_stands_still_in_between(echo: Worker) -> None:
    assert echo.about == {"threads": 1}
    assert echo.call({"number": 4}) == {"twice": 8}
    assert echo.call({"number": 5}) == {"twice": 10}
    _, changed = os.waitpid(echo.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(changed)


def test_what_goes_wrong_in_a_worker_is_told(echo: Worker) -> None:
    with pytest.raises(BenchmarkError, match="KeyError: 'number'"):
        echo.call({})
    assert echo.call({"number": 1}) == {"twice": 2}


def test_a_worker_that_dies_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="no such thing"):
        Worker([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path / "l", encode)


class TestPlan:
    def test_every_goal_between_systems_is_measured(self) -> None:
        settings = PeerSettings()
        systems = {key.system for goal in GOALS for key in (goal.over, *goal.under) if key}
        measured = {key_of(cell) for cell in cells(settings, sorted(systems))}
        needed = {key for goal in GOALS for key in (goal.over, *goal.under) if key}
        assert needed <= measured

    def test_what_is_not_there_is_not_measured(self) -> None:
        chosen = cells(PeerSettings(concurrency=(8,)), [OURS])
        assert {cell.system for cell in chosen} == {OURS}
        assert {cell.load.clients for cell in chosen} == {8}

    def test_suites_are_those_of_the_targets(self) -> None:
        assert [(s.count, s.ranks, s.targets) for s in SUITES] == [
            (8, (16,), ALL_TARGETS),
            (8, (8,), TARGETS),
            (64, (4, 8, 16, 32, 64), TARGETS),
        ]

    def test_predicted_bytes_by_hand(self) -> None:
        subject = Subject.of(TINY_RANDOM)
        traffic = traffics(4, len)[MIXED]
        cell = Cell(OURS, "many", Load(clients=3), 6, MIXED)
        picked = [
            set(traffic.picks("many", 3, f"mixed 3 clients round 0 wave {number}"))
            for number in range(2)
        ]
        rank = sum((4, 8, 16, 32, 64)[index % 5] for picks in picked for index in picks) / 2
        # bf16 bytes of one rank: q and o are 64 -> 64, k and v 64 -> 32, in two layers.
        one = 2 * 2 * (128 + 128 + 96 + 96)
        expected = (1000 + rank * one) / (1000 + 8 * one)
        found = mixed_bytes_over_one(subject, traffic, 1000, ["round 0"], cell)
        assert found == pytest.approx(expected)


def test_memory_counts_the_children_too() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', %r])"
    inner = "print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program % inner], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        found = descendants(process.pid)
        assert len(found) == 2
        assert resident_bytes(process.pid) > resident_bytes(found[1]) > 1 << 20
        process.communicate(b"\n")


def test_results_of_a_gpu_are_taken_in_where_there_are_some(tmp_path: Path) -> None:
    assert gpu_scalars(tmp_path / "gpu.json") == {}
    for gpu, expected in ((None, {}), ("H200", {"gpu_over_peft": [11.0]})):
        result = {"machine": {"gpu": gpu}, "scalars": {"gpu_over_peft": [11.0]}}
        (tmp_path / "gpu.json").write_text(json.dumps(result))
        assert gpu_scalars(tmp_path / "gpu.json") == expected


def test_vllm_is_told_of_every_adapter_or_of_none(tmp_path: Path) -> None:
    adapters = (tmp_path / "a0", tmp_path / "a1")
    with ExitStack() as stack:
        context = Context(
            *("model", adapters, 16, 8, 160, 2, tmp_path, tmp_path, encode, None, stack)
        )
        tuned = command("python", context, 1, lora=True)
        assert f"a1={adapters[1]}" in tuned
        assert tuned[tuned.index("--max-lora-rank") + 1] == "16"
        assert not any("lora" in word for word in command("python", context, 1, lora=False))


def test_an_unknown_peer_is_refused() -> None:
    with pytest.raises(BenchmarkError, match=f"there are {', '.join(PEERS)}, and none"):
        PeerSettings(peer=("tgi",))


@pytest.mark.parametrize("settings", [ModelSettings, PeerSettings])
@pytest.mark.parametrize("threads", [0, 4096])
def test_threads_without_a_core_are_refused(
    settings: type[ModelSettings | PeerSettings], threads: int
) -> None:
    with pytest.raises(ThreadsError, match=f"threads is {threads}; it must be at"):
        settings(threads=threads)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and a folder of two adapters for it."""
    root = tmp_path_factory.mktemp("tiny")
    write_adapters(Subject.of(TINY_RANDOM), root / "adapters", NAMES, (4,), ALL_TARGETS)
    return save_tiny(root / "model"), root / "adapters"


def measure(worker: Worker, case: str) -> Round:
    return asyncio.run(worker.round(case, Load(clients=2), jobs(case), lambda: None))


def test_workers_of_peers_load_where_nothing_is_installed() -> None:
    """Their environments hold the peer, and nothing of what AdapterMix needs."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {wire.__name__}"
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)


@pytest.mark.slow
def test_a_worker_does_the_work(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    """PEFT's; ours is one of the whole table's systems."""
    program = ["-m", "adaptermix.bench.peers.workers.transformers_peft", *map(str, tiny), "1"]
    worker = Worker([sys.executable, *program], tmp_path / "log", encode)
    try:
        for case in ("base", "one", "many"):
            one = measure(worker, case)
            assert one.output_tokens == 16
            assert all(0 < sample.ttft < one.seconds for sample in one.samples)
    finally:
        worker.close()


@pytest.mark.slow
def test_an_environment_is_made_once_and_what_fails_is_not_taken_for_it(tmp_path: Path) -> None:
    made: list[str] = []
    environment = PeerEnvironment("peer", tmp_path)

    def install(one: PeerEnvironment) -> None:
        one.pip("--version")
        made.append(one.output("-c", "print(1)"))

    for _ in range(2):
        environment.ensure("one", install)
    assert made == ["1"]
    assert str(environment.folder / "venv") in environment.log.read_text().splitlines()[-1]
    with pytest.raises(BenchmarkError, match="no-such-package-here"):
        environment.ensure("bad", lambda one: one.run(one.python, "-c", "no-such-package-here"))
    assert not environment.has("one")


def breaks(*_: object) -> NoReturn:
    raise KeyError("nothing there")


@pytest.mark.slow
def test_ours_alone_makes_the_whole_table_and_a_late_failure_loses_nothing_else(
    tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "gpu_scalars", breaks)
    model = ["--model", str(tiny[0]), "--kernels", "reference", "--threads", "1"]
    small = ["--concurrency", "1", "--concurrency", "32", "--rounds", "1", "--starts", "1"]
    small += ["--cell-seconds", "0"]  # every cell once
    work = ["--new-tokens", "2", "--peer", "none", "--out", str(tmp_path / "peers")]
    done = CliRunner().invoke(app, ["bench", "peers", *model, *small, *work])
    assert done.exit_code == 1, done.output
    assert "not measured: gpu" in done.output
    result = json.loads((tmp_path / "peers.json").read_text())
    assert result["failed"] == ["gpu"]
    assert "nothing there" in result["missing"]["gpu"]
    status = {goal["goal"]["what"]: goal["status"] for goal in result["goals"]}
    assert status["start to ready, warm cache"] in ("met", "missed")
    assert status["eight LoRAs against PEFT `adapter_names`, c = 32"] == "open"
    judged = [what for what, found in status.items() if found != "open"]
    assert len(judged) >= 9
    assert {cell["system"] for cell in result["cells"]} == {OURS, OFFLINE, INT8}
    page = (tmp_path / "peers.md").read_text()
    assert "| start to ready" in page
    assert "- gpu is missing: 'nothing there'" in page
    assert (tmp_path / "peers.png").stat().st_size > 10_000


def test_an_import_of_the_libraries_is_counted() -> None:
    assert import_bytes() > 1 << 24


def test_what_failed_of_ours_is_told_from_what_peers_cannot_do() -> None:
    missing = dict.fromkeys(["vllm", "llama.cpp, base, c = 1", f"{OURS}, many, c = 8", "steps"], "")
    assert failed(missing) == [f"{OURS}, many, c = 8", "steps"]
