"""The image built and started in a plain Debian, as far as no card and no driver is needed."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from adaptermix.bench.server import free_port
from tests.support.dockerfile import Build, Stage
from tests.support.waiting import HANG_SECONDS, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.image]

ROOT = Path(__file__).resolve().parent.parent
SUITE = "bookworm"  # its Python is the oldest that is served
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
KEY = "a key of sixteen or more letters"


def _torch_index() -> str:
    """The one of torch's builds for CPUs, where it is reached; else pip's own."""
    with suppress(OSError):
        urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=HANG_SECONDS).close()
        return CPU_INDEX
    return ""


def _built(scratch: Path) -> Stage:
    """The Dockerfile's last stage, from a Debian with apt and nothing else."""
    base = scratch / "base"
    options = ("--quiet", "--mode=root", "--variant=apt", "--dpkgopt=force-unsafe-io")
    done = subprocess.run(
        ["mmdebstrap", *options, SUITE, str(base)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    base.chmod(0o755)
    for name in ("resolv.conf", "hosts"):
        (base / "etc" / name).write_bytes((Path("/etc") / name).read_bytes())
    arguments = {"TORCH_INDEX_URL": _torch_index(), "BASE_IMAGE": SUITE}
    return Build(base, ROOT, scratch, arguments).run((ROOT / "Dockerfile").read_text())


def _start(image: Stage, log: Path, **settings: str) -> subprocess.Popen[bytes]:
    """A container's first process; `settings` without their prefix."""
    given = {"MODEL": "tiny-random", "ENCODER": "none", "ADMIN_KEY": KEY} | settings
    variables = {f"ADAPTERMIX_{name}": value for name, value in given.items()}
    command, environment = image.command(*image.entrypoint, variables=variables)
    with log.open("wb") as sink:
        return subprocess.Popen(command, env=environment, stdout=sink, stderr=sink)


def test_the_image_is_built_asks_for_a_card_and_serves_on_a_cpu(tmp_path: Path) -> None:
    image = _built(tmp_path)
    log = tmp_path / "log"
    _asks_for_a_card(image, log)
    _serves(image, log)
    (volume,) = image.volumes
    assert (image.root / volume.lstrip("/") / "store").is_dir()


def _asks_for_a_card(image: Stage, log: Path) -> None:
    with _start(image, log) as server:
        assert server.wait(HANG_SECONDS) == 1, log.read_text()
    assert re.search(r"^error: .*cuda", log.read_text(), re.MULTILINE | re.IGNORECASE)


def _serves(image: Stage, log: Path) -> None:
    port = free_port()
    with _start(image, log, DEVICE="cpu", PORT=str(port)) as server:
        try:
            wait_for(lambda: b"ready: " in log.read_bytes() or server.poll() is not None)
            url, keyed = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {KEY}"}
            body = {"inputs": "a b", "parameters": {"max_new_tokens": 3}}
            answer = httpx.post(f"{url}/generate", json=body, headers=keyed, trust_env=False)
            assert answer.status_code == 200, log.read_text() + answer.text
            assert _is_healthy(image, port)
            assert _user_of(server.pid) == int(image.user)
            server.terminate()
            assert server.wait(HANG_SECONDS) == 0, log.read_text()
        finally:
            server.kill()


def _is_healthy(image: Stage, port: int) -> bool:
    check = [part.replace(":8000/", f":{port}/") for part in image.health_check]
    command, environment = image.command(*check, variables={})
    return subprocess.run(command, env=environment, check=False).returncode == 0


def _user_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
    assert found
    return int(found[1])
