"""JSON read in slices: no library call holds up other threads until all of a long body is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

SLICE = 1 << 16  # bytes, which are read in a few milliseconds
_MOST_LEVELS = 200
_SPACE = b" \t\r\n"
_SPACES = re.compile(rb"[ \t\r\n]*+")
_SCALAR = re.compile(rb"[^\s,:\[\]{}\"]++")
# What can be read alone: no half of an escape, and no half of a surrogate pair.
_TEXT = re.compile(
    rb'(?:[^"\\]++|\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u(?![dD][89abAB])....|\\[^u])*+', re.DOTALL
)


class Most(NamedTuple):
    """Bounds on the parts of one JSON text."""

    brackets: int  # of lists and objects
    strings: int  # keys too
    numbers: int  # and true, false, null


class SlicedReader:
    """Reads one JSON text. Only its brackets are walked here: `read` reads all else in pieces.

    most: lists and objects, strings, and numbers and the like.
    """

    def __init__(self, text: bytes, read: Callable[[bytes], Any], most: Most) -> None:
        self._text = text
        self._read_piece = read
        self._most = most
        self._at = 0
        self._levels = 0
        self._count = Counter[str]()

    def read(self) -> Any:
        """The whole text. Raises ValueError."""
        value = self._value()
        if self._next():
            raise self._unexpected()
        return value

    def _value(self) -> Any:
        match self._next():
            case b"[":
                return self._nested(self._list)
            case b"{":
                return self._nested(self._object)
            case b'"':
                return self._string()
        scalar = _SCALAR.match(self._text, self._at, self._at + SLICE)
        if scalar is None:
            raise self._unexpected()
        self._at = scalar.end()
        self._add("numbers")
        return self._read_piece(scalar.group())

    def _nested(self, read: Callable[[], Any]) -> Any:
        self._at += 1
        self._levels += 1
        self._add("brackets")
        if self._levels > _MOST_LEVELS:
            raise ValueError(f"more than {_MOST_LEVELS} brackets inside each other")
        value = read()
        self._at += 1
        self._levels -= 1
        return value

    def _list(self) -> list[Any]:
        end = self._text.find(b"]", self._at)
        if end >= 0 and all(
            self._text.find(mark, self._at, end) < 0 for mark in (b"[", b"{", b'"')
        ):
            return self._scalars(end)
        items: list[Any] = []
        while self._next() != b"]":
            if items:
                self._take(b",")
            items.append(self._value())
        return items

    def _scalars(self, end: int) -> list[Any]:
        """A list of numbers and the like, up to its end."""
        items: list[Any] = []
        while end - self._at > SLICE:
            cut = self._text.rfind(b",", self._at, self._at + SLICE)
            if cut < 0:
                raise ValueError(f"more than {SLICE} bytes from number to number")
            items += self._part(cut)
            self._at = cut + 1
        if items or self._text[self._at : end].strip(_SPACE):
            items += self._part(end)
        self._at = end
        return items

    def _part(self, end: int) -> list[Any]:
        part = self._text[self._at : end]
        if not part.strip(_SPACE):
            raise self._unexpected()
        read: list[Any] = self._read_piece(b"[" + part + b"]")
        self._add("numbers", len(read))
        return read

    def _object(self) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while self._next() != b"}":
            if items:
                self._take(b",")
            if self._next() != b'"':
                raise self._unexpected()
            key = self._string()
            if key in items:
                raise ValueError(f"duplicate key {key[:80]!r} in an object")
            self._take(b":")
            items[key] = self._value()
        return items

    def _string(self) -> str:
        self._at += 1
        self._add("strings")
        parts: list[str] = []
        while self._text[self._at : self._at + 1] != b'"':
            part = _TEXT.match(self._text, self._at, self._boundary())
            if part is None or part.end() == self._at:
                raise self._unexpected()
            parts.append(self._read_piece(b'"' + part.group() + b'"'))
            self._at = part.end()
        self._at += 1
        return "".join(parts)

    def _boundary(self) -> int:
        """The end of a slice from here on, which is in no character's middle."""
        end = min(self._at + SLICE, len(self._text))
        while self._at < end < len(self._text) and self._text[end] & 0xC0 == 0x80:
            end -= 1
        return end

    def _next(self) -> bytes:
        """The byte after spaces; b"" at the end."""
        while (mark := self._text[self._at : self._at + 1]) and mark in _SPACE:
            spaces = _SPACES.match(self._text, self._at, self._at + SLICE)
            assert spaces is not None
            self._at = spaces.end()
        return mark

    def _take(self, mark: bytes) -> None:
        if self._next() != mark:
            raise self._unexpected()
        self._at += 1

    def _add(self, kind: Literal["brackets", "strings", "numbers"], count: int = 1) -> None:
        self._count[kind] += count
        most = getattr(self._most, kind)
        if self._count[kind] > most:
            raise ValueError(f"more than {most} {kind}")

    def _unexpected(self) -> ValueError:
        if self._at >= len(self._text):
            return ValueError("it ends before it is whole")
        return ValueError(f"{self._text[self._at : self._at + 8]!r} at byte {self._at}")
