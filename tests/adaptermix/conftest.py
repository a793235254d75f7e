"""One LLM for most tests: the tiny random model, its tiny encoder, three adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adaptermix import LLM
from tests.support.copies import make_copies
from tests.support.tiny import make_lora_folder
from tests.support.waiting import HANG_SECONDS

SMALL: dict[str, Any] = {
    "kernels": "reference",
    "kv_blocks": 256,
    "routing_patience": HANG_SECONDS,  # a machine may be slow to start an encoder
}


def tiny_llm(root: Path, **settings: Any) -> LLM:
    """The tiny random model, with everything that it keeps under `root`."""
    return LLM("tiny-random", cache=root, **(SMALL | settings))


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three adapters with sample texts: math, code, and copies of AdaMix."""
    root = tmp_path_factory.mktemp("adapters")
    folders = {
        "math": make_lora_folder(root / "math", rank=4, seed=1),
        "code": make_lora_folder(root / "code", rank=2, seed=2),
        "adamix": make_copies(root / "adamix").folder,
    }
    for name, folder in folders.items():
        texts = "".join(json.dumps({"text": f"{name} text {i}"}) + "\n" for i in range(3))
        (folder / "texts.jsonl").write_text(texts, encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def llm_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the LLM, with its store."""
    return tmp_path_factory.mktemp("llm")


@pytest.fixture(scope="session")
def llm(adapters: Path, llm_home: Path) -> Iterator[LLM]:
    """Leave its adapters as they are."""
    with tiny_llm(llm_home, adapters=adapters) as llm:
        yield llm
