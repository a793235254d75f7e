"""Where the downloaded models are: `adaptermix pull` puts them there, `make test` calls it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def _model(name: str) -> Path:
    default = Path("~/.cache/adaptermix").expanduser()
    path = Path(os.environ.get("ADAPTERMIX_CACHE", default)) / "models" / name
    assert path.is_dir(), f"{path} is missing: run `adaptermix pull` (make test does)"
    return path


@pytest.fixture(scope="session")
def real_base() -> Path:
    """SmolLM2-135M-Instruct."""
    return _model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def real_encoder() -> Path:
    """all-MiniLM-L6-v2."""
    return _model("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def example_adapters() -> list[Path]:
    """The four adapters of `examples/adapters`: math, science, code, reading."""
    names = ("math", "science", "code", "reading")
    return [REPOSITORY / "examples" / "adapters" / name for name in names]
