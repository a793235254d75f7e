"""Run as a program: kills a process at each of its steps in turn, and looks at the store after it.

A step is a change to the file system, an SQL statement, a commit, or a stage of a publish. The
process kills itself by SIGKILL right before it, which is kill -9 at a moment that we choose.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

from sqlalchemy import Engine, event

from adapters_store.store import AdapterStore
from tests.adapters_store.folders import BASE, adapter, tensors

FILE_EVENTS = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.utime", "shutil.rmtree"}
WRITING = os.O_WRONLY | os.O_RDWR


class Countdown:
    """Ends the process at the n-th step."""

    def __init__(self, step: int) -> None:
        self._left = step

    def tick(self, *_: object, **__: object) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, name: str, arguments: tuple[object, ...]) -> None:
        flags = arguments[2] if name == "open" else 0
        if name in FILE_EVENTS or (isinstance(flags, int) and flags & WRITING):
            self.tick()

    def start(self) -> None:
        sys.addaudithook(self.audit)
        event.listen(Engine, "before_cursor_execute", self.tick)
        event.listen(Engine, "commit", self.tick)


def publish(root: Path, step: int, countdown: Countdown) -> None:
    store = AdapterStore.open(root)
    countdown.start()
    store.publish(
        "math",
        adapter(tensors(seed=step)),
        base=BASE,
        texts=["one"],
        tags=["tag"],
        progress=countdown.tick,
    )


def delete_and_collect(root: Path, step: int, countdown: Countdown) -> None:
    store = AdapterStore.open(root)
    store.publish("math", adapter(tensors(seed=step)), base=BASE, texts=["one"], tags=["tag"])
    store.publish("left", adapter(tensors(seed=100_000 + step)), base=BASE)
    store.delete("left")
    countdown.start()
    store.delete("math", store.list(name="math")[0].version)
    store.gc(grace_seconds=-60)


def look(root: Path) -> int:
    """Every version is whole, every blob verifies, and what the dead left can be taken away."""
    store = AdapterStore.open(root)
    records = store.list()
    for record in records:
        assert (record.tags, store.texts(record.digest)) == (("tag",), ["one"])
    for blob in store.blobs.blobs():
        store.blobs.fetch(blob.digest)
    store.gc(grace_seconds=-60)
    named = {record.digest for record in records}
    assert {blob.digest for blob in store.blobs.blobs()} == named
    assert not list((root / "blobs" / "staging").iterdir())
    store.close()
    return len(records)


def run(root: Path, work: Callable[[Path, int, Countdown], None]) -> tuple[int, int]:
    """Kill `work` before its 1st, 2nd, ... step until it has no more; steps and versions."""
    for step in count(1):
        child = os.fork()
        if child == 0:
            work(root, step, Countdown(step))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        versions = look(root)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            return step, versions
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError("unreachable")


if __name__ == "__main__":
    WORKS = {"publish": publish, "collect": delete_and_collect}
    steps, kept = run(Path(sys.argv[1]), WORKS[sys.argv[2]])
    sys.stdout.write(f"{steps} {kept}\n")
