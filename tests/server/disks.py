"""A server in a process of its own whose disk can be filled up."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from tests.support.waiting import HANG_SECONDS, wait_for

_SIZE = 8 << 20  # bytes of the small disk
_LIMIT = 4096  # bytes of a file
_BLOCK = bytes(4096)
_AS_ROOT = ["unshare", "--mount"]
_AS_ANYBODY = ["unshare", "--mount", "--map-root-user"]


@dataclass
class OnDisk:
    """A server, and what fills and empties the disk of its store and uploads, by kind."""

    client: httpx.Client
    store: Path
    fill: dict[str, Callable[[], object]]
    empty: dict[str, Callable[[], object]]


def _in_a_mount() -> list[str]:
    """The command before one that may mount; empty where nobody lets us."""
    for command in (_AS_ROOT, _AS_ANYBODY):
        tried = [*command, "mount", "-t", "tmpfs", "none", "/mnt"]
        if subprocess.run(tried, capture_output=True, check=False).returncode == 0:
            return command
    return []


MOUNTING = _in_a_mount()
# A file system that is full, where one may be mounted; files that may not grow, anywhere.
KINDS = ["limit", "tmpfs"] if MOUNTING else ["limit"]


@contextmanager
def server_on_disk(root: Path) -> Iterator[OnDisk]:
    """The tiny model's server, with its store and its temporary files on a small disk."""
    disk = root / "disk"
    disk.mkdir()
    command = [sys.executable, "-m", "adaptermix.cli.main", "serve", "--model", "tiny-random"]
    command += ["--encoder", "none", "--kernels", "reference", "--port", "0"]
    command += ["--cache", str(root / "cache"), "--store", str(disk / "store")]
    if MOUNTING:
        script = 'mount -t tmpfs -o size=$0 none "$1" && mkdir "$1/tmp" && shift && exec "$@"'
        command = [*MOUNTING, "sh", "-c", script, str(_SIZE), str(disk), *command]
    else:
        (disk / "tmp").mkdir()
    log = root / "log"
    environment = os.environ | {"TMPDIR": str(disk / "tmp")}
    with (
        log.open("wb") as sink,
        subprocess.Popen(command, stdout=sink, stderr=sink, env=environment) as process,
    ):
        try:
            wait_for(lambda: b"ready: " in log.read_bytes() or process.poll() is not None)
            found = re.search(r"on (http://\S+),", log.read_text())
            assert found, log.read_text()
            with httpx.Client(base_url=found[1], timeout=HANG_SECONDS) as client:
                seen = Path(f"/proc/{process.pid}/root{disk}")  # in the server's own mounts
                grown = partial(resource.prlimit, process.pid, resource.RLIMIT_FSIZE)
                most = grown()
                yield OnDisk(
                    client,
                    seen / "store",
                    {"tmpfs": partial(_fill, seen), "limit": partial(grown, (_LIMIT, most[1]))},
                    {"tmpfs": partial(_empty, seen), "limit": partial(grown, most)},
                )
        finally:
            process.kill()


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(_BLOCK)
        except OSError:
            return


def _empty(disk: Path) -> None:
    (disk / "filler").unlink()
