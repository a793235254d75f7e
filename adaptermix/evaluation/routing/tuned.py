"""The file of chosen parameters: written by a tuning run, read by an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptermix.bench.errors import BenchmarkError

Params = Mapping[str, Any]


def read_tuned(path: Path) -> dict[str, Params]:
    """{family: its parameters}; nothing where there is no file. Raises BenchmarkError."""
    if not path.exists():
        return {}
    try:
        families = json.loads(path.read_text(encoding="utf-8"))["families"]
        return {name: dict(family["chosen"]) for name, family in families.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchmarkError(
            f"{path} is no file of chosen parameters: write it with `adaptermix eval --tune`"
        ) from error
