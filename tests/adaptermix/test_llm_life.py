"""An LLM's threads, its encoder's process, its adapters, its bar: there when they are needed."""

from __future__ import annotations

import asyncio
import gc
import io
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from adaptermix import (
    LLM,
    AdapterRefusedError,
    ClosedError,
    InvalidInputError,
    Mixture,
    NotFoundError,
    SamplingParams,
)
from adaptermix.progress import progress_bar
from tests.adaptermix.conftest import tiny_llm
from tests.support.tiny import make_lora_folder
from tests.support.waiting import wait_for

THREADS = {"adaptermix", "engine"}
FOUR = SamplingParams(max_tokens=4, ignore_eos=True)


def own_threads(before: set[threading.Thread]) -> set[str]:
    return {thread.name for thread in set(threading.enumerate()) - before} & THREADS


def test_closing_ends_its_threads(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    llm = tiny_llm(tmp_path)
    llm.generate("hello", FOUR)
    assert own_threads(before) == THREADS
    pieces = llm.stream("on and on", SamplingParams(max_tokens=900, ignore_eos=True))
    next(pieces)
    llm.close()
    assert own_threads(before) == set()
    with pytest.raises(ClosedError, match="closed meanwhile"):
        list(pieces)
    llm.close()
    for use in (
        lambda: llm.generate("hello"),
        lambda: list(llm.stream("hello")),
        lambda: llm.score("hello", ["a"]),
        lambda: llm.adapters.list(),
    ):
        with pytest.raises(ClosedError, match="closed"):
            use()


def test_an_llm_that_is_forgotten_ends_its_threads(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    llm = tiny_llm(tmp_path)
    gone = weakref.ref(llm)
    del llm
    gc.collect()
    assert gone() is None
    wait_for(lambda: own_threads(before) == set())


def test_a_start_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with pytest.raises(InvalidInputError):
        tiny_llm(tmp_path, adapters=tmp_path / "nowhere")
    assert own_threads(before) == set()


def test_an_encoder_runs_once_a_router_needs_it(tmp_path: Path, adapters: Path) -> None:
    """What routes by hidden states needs none."""

    def children() -> set[int]:
        return {child.pid for child in psutil.Process().children(recursive=True)}

    before = children()
    with tiny_llm(tmp_path, adapters=adapters) as llm:
        names = ["math", "code"]
        llm.generate("hello", FOUR, mixture=Mixture.routed("hidden_mean", candidates=names))
        assert children() == before
        routed = Mixture.routed("similarity", candidates=names)
        (answer,) = llm.generate("math text 1", FOUR, mixture=routed)
        assert children() > before
        assert len(answer.weights) == 4
    assert children() <= before


def test_adapters_are_published_listed_and_deleted(tmp_path: Path, adapters: Path) -> None:
    with tiny_llm(tmp_path, encoder="none", adapters=adapters) as llm:
        assert [reply.name for reply in llm.adapters.list()] == ["adamix", "code", "math"]
        folder = make_lora_folder(tmp_path / "third", rank=2, seed=3)
        reply = llm.adapters.publish(folder, tags=["task"], texts=["a text"])
        assert (reply.name, reply.version, reply.tags) == ("third", 1, ["task"])
        assert llm.adapters.publish(folder, "other").version == 1
        assert [reply.name for reply in llm.adapters.list(tag="task")] == ["third"]
        assert llm.generate("hello", FOUR, mixture=Mixture(third=1.0))[0].adapters == ["third@1"]
        assert llm.adapters.delete("third").deleted == ["third@1"]
        with pytest.raises(NotFoundError, match="third"):
            llm.generate("hello", FOUR, mixture=Mixture(third=1.0))
        with pytest.raises(AdapterRefusedError, match="holds no adapter"):
            llm.adapters.publish(adapters)
        with pytest.raises(InvalidInputError, match="is not a directory"):
            llm.adapters.publish(tmp_path / "nowhere")
    with tiny_llm(tmp_path, encoder="none") as llm:  # over the same store
        assert [reply.name for reply in llm.adapters.list()] == ["adamix", "code", "math", "other"]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(patch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error, as if it were a terminal."""
    stream = _Terminal()
    patch.setenv("TERM", "xterm")
    patch.setattr(sys, "stderr", stream)
    return stream


def test_a_long_batch_shows_a_bar_on_a_terminal(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    llm.generate(["a", "b", "c"], FOUR)
    assert "prompts" in screen.getvalue()
    assert "3/3" in screen.getvalue()
    assert "12 tokens" in screen.getvalue()


@pytest.mark.parametrize(("prompts", "wanted"), [(3, False), (1, True)])
def test_no_bar_where_none_is_wanted_or_there_is_one_prompt(
    monkeypatch: pytest.MonkeyPatch, prompts: int, *, wanted: bool
) -> None:
    screen = terminal(monkeypatch)
    with progress_bar(prompts, wanted=wanted) as answered:
        answered(4)
    assert screen.getvalue() == ""


def test_no_bar_but_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(3, wanted=True) as answered:
        answered(4)
    assert capsys.readouterr() == ("", "")


_SCRIPT = """
import os
import sys

import adaptermix

assert "torch" not in sys.modules
llm = adaptermix.LLM("tiny-random", cache=sys.argv[1], kernels="reference", kv_blocks=64)
(answer,) = llm.generate("hello", adaptermix.SamplingParams(max_tokens=4, ignore_eos=True))
assert len(answer.tokens) == 4
http = {"fastapi", "starlette", "uvicorn", "sse_starlette"} & set(sys.modules)
print(os.environ["OMP_WAIT_POLICY"], sorted(http))
"""


_INTERRUPTED = """
import os
import signal
import sys
import threading

from adaptermix import LLM, SamplingParams

# Ignored, as what a shell runs in the background inherits it, it would interrupt nothing.
signal.signal(signal.SIGINT, signal.default_int_handler)
llm = LLM("tiny-random", cache=sys.argv[1], kernels="reference", kv_blocks=256)
live = llm._runtime._runtime.admission


def interrupt():
    while not live.live:
        pass
    os.kill(os.getpid(), signal.SIGINT)


threading.Thread(target=interrupt).start()
try:
    while True:
        llm.generate(["a", "b"], SamplingParams(max_tokens=900, ignore_eos=True))
except KeyboardInterrupt:
    (answer,) = llm.generate("a", SamplingParams(max_tokens=4, ignore_eos=True))
    print(len(answer.tokens), live.live)
"""


def test_an_interrupt_ends_a_batch_and_not_the_llm(tmp_path: Path) -> None:
    assert run_script(_INTERRUPTED, tmp_path) == (0, "4 0\n", "")


@pytest.mark.parametrize("way", ["generate", "stream", "score"])
def test_an_interrupt_as_work_is_handed_over_leaves_none_of_it(
    llm: LLM, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work runs already, and who asked for it has nothing yet to end it by."""
    long = SamplingParams(max_tokens=900, ignore_eos=True)
    ways: dict[str, Callable[[], object]] = {
        "generate": lambda: llm.generate("a", long),
        "stream": lambda: next(llm.stream("a", long)),
        "score": lambda: llm.score("a", [" b" * 400]),
    }
    admission = llm._runtime._runtime.admission
    real = asyncio.run_coroutine_threadsafe

    def interrupted(work: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> None:
        future = real(work, loop)
        while not admission.live and not future.done():
            pass
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "run_coroutine_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ways[way]()
    (answer,) = llm.generate("a", FOUR)
    assert len(answer.tokens) == 4
    assert admission.live == 0


def run_script(code: str, place: Path) -> tuple[int, str, str]:
    """The exit status of a script that is told a directory for its cache, and what it wrote."""
    script = place / "script.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(place / "cache")],
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": ".", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_script_needs_no_http_library_and_may_forget_to_close(tmp_path: Path) -> None:
    """It is silent but for what it prints, and its threads have what an engine's process has."""
    assert run_script(_SCRIPT, tmp_path) == (0, "PASSIVE []\n", "")
