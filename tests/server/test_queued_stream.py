"""A stream that nobody waits for: what it loses is counted, and the rest is whole and in order."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from server import queued_stream
from server.queued_stream import QueuedStream
from server.serving import _StructlogHandler
from tests.support.waiting import HANG_SECONDS

_PAGE = 4096


def _notice(lost: int) -> str:
    return f"lost {lost}\n"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """`finish` is left only when all is written."""
    monkeypatch.setattr(queued_stream, "_LAST_SECONDS", HANG_SECONDS)


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    """What is read from, and written to; it holds one page."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PAGE)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        yield reading, stream
    os.close(reading)


def read(descriptor: int, until: bytes) -> bytes:
    found = b""
    while until not in found:
        found += os.read(descriptor, _PAGE)
    return found


def test_an_ordinary_reader_gets_all_in_order(tmp_path: Path) -> None:
    count = queued_stream._MAX_WRITES // 4  # lines of four writes: all may wait, if they have to
    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        stream = QueuedStream(file, _notice)
        for number in range(count):
            print(number, "é", file=stream)
        stream.finish()
    lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert lines == [f"{number} é" for number in range(count)]


@pytest.mark.parametrize(("limit", "few"), [("_MAX_WRITES", 3), ("_MAX_BYTES", 3 * _PAGE)])
def test_what_comes_while_nobody_reads_is_counted(
    pipe: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch, limit: str, few: int
) -> None:
    monkeypatch.setattr(queued_stream, limit, few)
    reading, file = pipe
    stream = QueuedStream(file, _notice)
    count = 50
    for number in range(count):
        stream.write(f"{number:<{_PAGE - 1}}\n")
    told = lost = 0
    with os.fdopen(os.dup(reading), "rb") as log:
        while told < count:  # each line, or its place in a number of lost ones
            word, *more = log.readline().decode().split()
            if word == "lost":
                lost += int(more[0])
                told += int(more[0])
            else:
                assert int(word) == told
                told += 1
        assert lost > 0
        stream.write("later\n")
        assert log.readline() == b"later\n"


@pytest.mark.parametrize("blocking", [True, False])
def test_who_reads_late_gets_what_waited(pipe: tuple[int, TextIO], *, blocking: bool) -> None:
    reading, file = pipe
    os.set_blocking(file.fileno(), blocking)
    stream = QueuedStream(file, _notice)
    lines = [f"{number:<{_PAGE - 2}}\n" for number in range(20)]
    for line in lines:
        stream.write(line)
    stream.write("end\n")
    assert read(reading, b"end\n").decode() == "".join([*lines, "end\n"])


def test_a_reader_that_has_gone_and_a_full_disk_are_no_errors() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for descriptor in (writing, os.open("/dev/full", os.O_WRONLY)):
        with os.fdopen(descriptor, "w") as file:
            stream = QueuedStream(file, _notice)
            for _ in range(3):
                stream.write("x\n")
                stream.finish()
            again, other = os.pipe()
            os.dup2(other, stream.fileno())  # somebody reads again
            stream.write("y\n")
            assert read(again, b"y\n") == b"lost 3\ny\n"
            os.close(again)
            os.close(other)


class _Unprintable:
    def __str__(self) -> str:
        raise ValueError("no text")


def test_a_record_that_cannot_be_told_is_no_error_of_who_logs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.Logger("alone")
    logger.addHandler(_StructlogHandler())
    logger.error("%s", _Unprintable())
    assert "no text" in capsys.readouterr().err


_PROGRAM = """
import sys, warnings
from server import logging
logging.configure("info", "json")
for number in range(3000):
    logging.log.info("one", number=number)
warnings.warn("a warning")
print("the last", file=sys.stderr)
"""


def test_what_waits_is_written_at_a_program_s_end() -> None:
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True)
    lines = done.stderr.splitlines()
    assert [f'"number": {n},' in line for n, line in enumerate(lines[:3000])] == [True] * 3000
    assert "a warning" in done.stderr
    assert lines[-1] == "the last"
