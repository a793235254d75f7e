"""Excerpts of what was sent, for messages: a few characters of it, however much it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any


def excerpt(value: Any, most: int = 80) -> str:
    """The `repr` of a value of JSON, at most `most` characters: no more of it is looked at."""
    if isinstance(value, str | bytes):
        text = repr(value[:most])
    elif isinstance(value, list | tuple):
        text = _joined("[", (excerpt(item, most) for item in value), "]", most)
    elif isinstance(value, dict):
        text = _joined("{", (_pair(item, most) for item in value.items()), "}", most)
    else:
        text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _pair(item: tuple[Any, Any], most: int) -> str:
    return f"{excerpt(item[0], most)}: {excerpt(item[1], most)}"


def _joined(opening: str, items: Iterable[str], closing: str, most: int) -> str:
    parts: list[str] = []
    length = 0
    for part in _between(items):
        parts.append(part)
        length += len(part)
        if length > most:
            break
    return "".join(chain([opening], parts, [closing]))


def _between(items: Iterable[str]) -> Iterator[str]:
    for number, item in enumerate(items):
        if number:
            yield ", "
        yield item
