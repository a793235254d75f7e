"""A newcomer's desk: the folder that the pages speak of, and the server that they ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from adaptermix.bench.server import publish, server
from tests.support.tiny import make_lora_folder
from tests.support.waiting import HANG_SECONDS

TEXTS = {
    "math": ["3 rows of 12 books are 36 books."],
    "science": ["Ice floats since it is less dense than water."],
    "code": ["def add(a, b):\n    return a + b"],
    "reading": ["The passage says that the treaty was signed in 1648."],
}


def adapters(desk: Path) -> list[Path]:
    """Where the desk has the examples' adapters."""
    return [desk / "examples" / "adapters" / name for name in TEXTS]


def lay_out(desk: Path) -> Path:
    """The folder, with tiny adapters in place of the examples."""
    for seed, folder in enumerate(adapters(desk)):
        make_lora_folder(folder, seed=seed)
    return desk


@contextmanager
def asked(desk: Path, python_path: str, encoder: Path) -> Iterator[str]:
    """The URL of a server of the tiny random model with these adapters, under this PYTHONPATH."""
    options = ["--model", "tiny-random", "--store", str(desk / "store"), "--encoder", str(encoder)]
    options += ["--kernels", "reference"]
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # of the server alone, not of what else runs
            patch.setenv("PYTHONPATH", python_path)
            # A slow start of the encoder is no fault.
            patch.setenv("ADAPTERMIX_ROUTING_PATIENCE", str(HANG_SECONDS))
            url = stack.enter_context(server(options, desk / "server.log"))
        for folder in adapters(desk):
            publish(url, [folder], TEXTS[folder.name])
        yield url
