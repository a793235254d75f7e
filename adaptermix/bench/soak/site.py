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
from adaptermix.bench.server import OwnServer, own_server, publish
from adaptermix.bench.settings import ModelSettings
from adaptermix.bench.soak.questions import ALIAS, FRESH, MOVING, VERSIONS
from adaptermix.bench.soak.settings import BLOCK_SIZE, SoakSettings, tolerance_of
from adaptermix.bench.subject import Subject, write_adapters
from adaptermix.bench.workload import make_prompts

# Strong enough that no adapter's answer could be taken for another's.
_STRENGTH = 24
_TEXTS = 4
_TEXT_TOKENS = 24
_RESIDENT_ON_HOST = 3  # adapters that fit in the memory of those that left the device


@dataclass(frozen=True, slots=True)
class SoakSite:
    """A server with all adapters of a soak."""

    server: OwnServer
    adapters: tuple[str, ...]  # names of those that stay
    folders: Path  # of the folders of all adapters
    database: Path  # of the store
    temporary: Path  # where the server keeps its temporary files
    tolerance: float  # nats between a log probability and its reference


@contextmanager
def opened(settings: SoakSettings, model: ModelSettings, subject: Subject) -> Iterator[SoakSite]:
    """The server runs until the block ends, unless it was told to end before."""
    with tempfile.TemporaryDirectory(prefix="adaptermix-soak-") as name:
        root = Path(name)
        temporary = root / "tmp"
        temporary.mkdir()
        adapters = tuple(f"a{index}" for index in range(settings.adapters))
        moving = tuple(f"{MOVING}-{version}" for version in VERSIONS)
        folders = _write(subject, root / "adapters", (*adapters, *moving, *FRESH))
        options, variables = _options(settings, model, folders), {"TMPDIR": str(temporary)}
        try:
            with own_server(subject.model, model, root, options, variables) as own:
                _publish(own.url, folders, adapters, subject)
                tolerance = tolerance_of(own.info["dtype"])
                database = root / "store" / "adapters.db"
                yield SoakSite(own, adapters, folders, database, temporary, tolerance)
        except BaseException:
            keep_log(root / "server.log", settings.out)
            raise


def keep_log(log: Path, out: Path) -> None:
    """A copy of the server's log beside the result."""
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(log, out.with_name(f"{out.name}.log"))


def _options(settings: SoakSettings, model: ModelSettings, folders: Path) -> dict[str, object]:
    slab = 2 * (folders / "a0" / "adapter_model.safetensors").stat().st_size  # float32 of bfloat16
    return {
        "dtype": "float32" if model.dtype == "auto" else model.dtype,
        "encoder-dtype": "float32",  # what is measured at a start could be another at the next
        "block-size": BLOCK_SIZE,
        "kv-blocks": settings.kv_blocks,
        "adapter-memory": settings.on_device * slab,
        "host-bytes": _RESIDENT_ON_HOST * slab,
        "max-waiting": max(4, settings.clients * 7 // 8),
        "engine-patience": settings.patience,
        "log-format": "json",
        "log-level": None,  # the server's own
    }


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
