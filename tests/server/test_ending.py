"""A benchmark that is told to end takes what it has started with it, even what it has stopped."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.support.waiting import HANG_SECONDS

_PROGRAM = """
import os, signal, sys
from pathlib import Path
from adaptermix.bench.server import free_port, http_process
from adaptermix.cli.bench import reporting

@reporting
def measure():
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    url, log = f"http://127.0.0.1:{port}", Path(sys.argv[1])
    with http_process(command, url, "/", log, own_group=True) as running:
        os.killpg(running.pid, signal.SIGSTOP)  # as who has no turn
        print(running.pid, flush=True)
        signal.pause()

measure()
"""


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as bench:
        assert bench.stdout is not None
        server = os.pidfd_open(int(bench.stdout.readline()))
        try:
            bench.send_signal(signal.SIGTERM)
            assert bench.wait(HANG_SECONDS) != 0
            ended, _, _ = select.select([server], [], [], 0)
            assert ended == [server]
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(server, signal.SIGKILL)
            os.close(server)
