"""The JSON of an uploaded folder, read with care."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from adapters_store.errors import InvalidAdapterError
from adapters_store.problems import MAX_PROBLEMS, name_list
from adapters_store.texts import is_utf8
from adapters_store.types import Problem

# What a model of a thousand layers with experts of every kind needs, some times over.
_MOST_VALUES = 65_536
_MOST_LEVELS = 32
_MOST_DIGITS = 400  # of a whole number: as many as float64's have, and more

Config = TypeVar("Config", bound=BaseModel)


class ConfigError(ValueError):
    """The config as a whole is unreadable."""


def load_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """A JSON object from an uploaded file; raises ConfigError."""
    size = path.stat().st_size
    if size > max_bytes:
        raise ConfigError(f"is {size} bytes long, at most {max_bytes} are accepted")
    data = path.read_bytes()
    values = data.count(b",")
    if values > _MOST_VALUES:
        raise ConfigError(f"holds {values} values, at most {_MOST_VALUES} are accepted")
    try:
        value = json.loads(data, object_pairs_hook=_unique, parse_int=_whole)
    except RecursionError as error:
        raise ConfigError("is nested too deeply") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("must be a JSON object")
    _require_shallow(value)
    if not is_utf8(json.dumps(value, ensure_ascii=False)):
        raise ConfigError("holds a lone surrogate, which UTF-8 cannot say")
    return value


def _require_shallow(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(_MOST_LEVELS):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ConfigError(f"is nested too deeply: at most {_MOST_LEVELS} levels are accepted")


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:  # which would take time quadratic in it
        raise ConfigError(f"holds a number of {len(text)} digits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ConfigError(f"names a key twice: {name_list(twice)}")
    return result


def parse_flat_config(model: type[Config], raw: Mapping[str, Any], file: str) -> Config:
    """A flat config by its model; raises InvalidAdapterError naming each key that is wrong."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False)[:MAX_PROBLEMS]:
            key = str(item["loc"][0])
            if item["type"] == "missing":
                message = "is missing"
            elif item["type"] == "extra_forbidden":
                message = f"is {_short(raw[key])}: the key is unknown; remove it if it does nothing"
            else:
                message = f"is {_short(raw[key])}: {item['msg']}"
            problems.append(Problem(f"{file}: {key}", message))
        raise InvalidAdapterError(problems) from error


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."
