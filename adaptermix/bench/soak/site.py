"""The server of a soak: small pools, short patience, a temporary folder of its own."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import default_kernels
from adaptermix.bench.process import Running, adaptermix, free_port, http_process, info, publish
from adaptermix.bench.prompts import make_prompts
from adaptermix.bench.settings import ModelSettings
from adaptermix.bench.soak.questions import ALIAS, FRESH, MOVING, VERSIONS
from adaptermix.bench.soak.settings import BLOCK_SIZE, SoakSettings, tolerance_of
from adaptermix.bench.subject import Subject, write_adapters

# Strong enough that no adapter's answer could be taken for another's.
_STRENGTH = 24
_TEXTS = 4
_TEXT_TOKENS = 24
_RESIDENT_ON_HOST = 3  # adapters that fit in the memory of those that left the device


@dataclass(frozen=True, slots=True)
class SoakServer:
    """A server that is ready, with all adapters there."""

    running: Running
    base: str
    adapters: tuple[str, ...]
    folders: Path
    database: Path
    temporary: Path  # where the server keeps its temporary files
    log: Path
    dtype: str
    kernels: str
    tolerance: float


@contextmanager
def opened(settings: SoakSettings, model: ModelSettings, subject: Subject) -> Iterator[SoakServer]:
    """The server runs until the block ends, unless it was told to end before."""
    with tempfile.TemporaryDirectory(prefix="adaptermix-soak-") as name:
        root = Path(name)
        temporary, log = root / "tmp", root / "server.log"
        temporary.mkdir()
        adapters = tuple(f"a{index}" for index in range(settings.adapters))
        moving = tuple(f"{MOVING}-{version}" for version in VERSIONS)
        folders = _write(subject, root / "adapters", (*adapters, *moving, *FRESH))
        kernels = model.kernels or default_kernels()
        options = _options(settings, model, subject, kernels, root)
        port = free_port()
        command = ["env", f"TMPDIR={temporary}", *adaptermix("serve", "--port", str(port))]
        url = f"http://127.0.0.1:{port}"
        try:
            with http_process([*command, *options], url, "/health/ready", log) as running:
                known = info(running.url)
                _publish(running.url, folders, adapters, subject)
                yield SoakServer(
                    running,
                    known["model_id"],
                    adapters,
                    folders,
                    root / "store" / "adapters.db",
                    temporary,
                    log,
                    known["dtype"],
                    kernels,
                    tolerance_of(known["dtype"]),
                )
        except BaseException:
            _keep_log(log, settings.out)
            raise


def _keep_log(log: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(log, out.with_name(f"{out.name}.log"))


def _options(
    settings: SoakSettings, model: ModelSettings, subject: Subject, kernels: str, root: Path
) -> list[str]:
    tensors = root / "adapters" / "a0" / "adapter_model.safetensors"
    given = {
        "model": subject.model,
        "store": root / "store",
        "dtype": "float32" if model.dtype == "auto" else model.dtype,
        "kernels": kernels,
        "engine-threads": model.threads,
        "encoder-dtype": "float32",  # what is measured at a start could be another at the next
        "block-size": BLOCK_SIZE,
        "kv-blocks": settings.kv_blocks,
        "max-rank-rows": settings.rank_rows,
        "host-bytes": _RESIDENT_ON_HOST * 2 * tensors.stat().st_size,  # float32 of bfloat16
        "max-waiting": max(4, settings.clients * 7 // 8),
        "engine-patience": settings.patience,
        "log-format": "json",
    }
    return [
        word
        for name, value in given.items()
        if value is not None
        for word in (f"--{name}", str(value))
    ]


def _write(subject: Subject, folder: Path, names: Sequence[str]) -> Path:
    for path in write_adapters(subject, folder, names):
        config = path / "adapter_config.json"
        told = json.loads(config.read_text(encoding="utf-8"))
        config.write_text(json.dumps(told | {"lora_alpha": _STRENGTH * told["r"]}))
    return folder


def _publish(url: str, folders: Path, adapters: Sequence[str], subject: Subject) -> None:
    """Each under texts of its own, so that a router can tell them apart."""
    for name in (*adapters, *FRESH):
        texts = make_prompts([_TEXT_TOKENS] * _TEXTS, f"texts of {name}", subject.count_tokens)
        publish(url, [folders / name], texts)
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
        for version in VERSIONS:
            folder = folders / f"{MOVING}-{version}"
            files = [("files", (path.name, path.read_bytes())) for path in folder.iterdir()]
            _expect(client.post("/admin/adapters", data={"name": MOVING}, files=files))
        place = f"/admin/adapters/{MOVING}/aliases/{ALIAS}"
        _expect(client.put(place, json={"version": VERSIONS[0]}))


def _expect(answer: httpx.Response) -> None:
    if not answer.is_success:
        raise BenchmarkError(f"{answer.request.url} answered {answer.status_code}: {answer.text}")
