"""The JSON of an uploaded folder, read with care."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """The config as a whole is unreadable."""


def load_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """A JSON object from an uploaded file; raises ConfigError."""
    size = path.stat().st_size
    if size > max_bytes:
        raise ConfigError(f"is {size} bytes long, at most {max_bytes} are accepted")
    try:
        value = json.loads(path.read_bytes(), object_pairs_hook=_unique)
    except RecursionError as error:
        raise ConfigError("is nested too deeply") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("must be a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ConfigError(f"names a key twice: {', '.join(twice)}")
    return result
