"""One server for most tests: the tiny random model, its tiny encoder, three adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.logging import configure
from tests.server.live import Live, serving, tiny_settings
from tests.support.tiny import make_lora_folder


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    """The servers' threads must not write into the output that a test captures."""
    configure("error", "console")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEFT folders: math and code of rank 4, wide of rank 8, each with sample texts."""
    root = tmp_path_factory.mktemp("adapters")
    made = {}
    for seed, (name, rank) in enumerate({"math": 4, "code": 4, "wide": 8}.items(), start=1):
        made[name] = make_lora_folder(root / name, rank=rank, seed=seed)
        texts = "".join(json.dumps({"text": f"{name} text {i}"}) + "\n" for i in range(4))
        (made[name] / "texts.jsonl").write_text(texts, encoding="utf-8")
    return made


@pytest.fixture(scope="session")
def live(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with the encoder; its adapters came by `--adapters`. Leave those as they are."""
    root = tmp_path_factory.mktemp("live")
    directory = next(iter(folders.values())).parent
    with serving(tiny_settings(root, encoder="default", adapters=directory)) as server:
        yield server


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of one test module, with no adapters and no encoder."""
    with serving(tiny_settings(tmp_path_factory.mktemp("bare"))) as server:
        yield server
