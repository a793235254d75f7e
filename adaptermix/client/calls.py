"""A call of the HTTP API as data: what to send, and how to read what comes back.

Both clients execute the same calls, so that each route is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from adaptermix.client.failures import failure_of_event
from adaptermix.client.reading import as_json
from adaptermix.errors import BrokenStreamError

T = TypeVar("T")
Part = tuple[str, tuple[str, Any]]
"""A part of a form: its field, and its file's name with its content."""


@dataclass(frozen=True, slots=True)
class Form:
    """A multipart form."""

    fields: Mapping[str, Any]
    files: list[Part]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is sent."""

    method: str
    path: str
    json: Any = None
    params: Mapping[str, str] | None = None
    # Opens the files of an upload, checks them, and closes them when it was sent.
    form: Callable[[], AbstractContextManager[Form]] | None = None
    needs_base: bool = False  # `model` of its JSON is the base model's name, which is asked for

    def under(self, base: str) -> Request:
        """The same of the base model."""
        return replace(self, json={"model": base, **self.json}, needs_base=False)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A call that one body answers."""

    request: Request
    parse: Callable[[bytes], T]  # raises ForeignBodyError
    answers_at: frozenset[int] = frozenset()  # statuses beside those of success

    def raw(self) -> Call[Any]:
        """The same, answered by the JSON as it came once `parse` has found no fault in it."""

        def parse(content: bytes) -> Any:
            self.parse(content)
            return as_json(content)

        return replace(self, parse=parse)


@dataclass(frozen=True, slots=True)
class StreamCall(Generic[T]):
    """A call that server-sent events answer."""

    request: Request
    # The data of one event, and whether it is the last; raises ForeignBodyError.
    parse: Callable[[bytes], tuple[T, bool]]
    has_end_mark: bool = False  # `[DONE]` ends it, as in OpenAI's API

    def reader(self, headers: Mapping[str, str]) -> EventReader[T]:
        """A reader of one answer, which has these headers."""
        return EventReader(self.parse, headers, has_end_mark=self.has_end_mark)

    def raw(self) -> StreamCall[Any]:
        """The same in the JSON of the events once `parse` has found no fault in it."""

        def parse(data: bytes) -> tuple[Any, bool]:
            _, is_last = self.parse(data)
            return as_json(data), is_last

        return replace(self, parse=parse)


@dataclass(slots=True)
class EventReader(Generic[T]):
    """Bytes in, as they come from the network; what the events say out."""

    parse: Callable[[bytes], tuple[T, bool]]
    headers: Mapping[str, str]
    has_end_mark: bool
    _is_whole: bool = field(default=False, init=False)
    _waiting: bytes = field(default=b"", init=False)

    def feed(self, chunk: bytes) -> Iterator[T]:
        """What each event says that is whole with this chunk.

        A line ends at a line feed and nowhere else: JSON may hold what else Python ends lines at.
        Raises StatusError for an event that says that the answer failed, ForeignBodyError.
        """
        *lines, self._waiting = (self._waiting + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield from self._event(line.removeprefix(b"data:").strip())

    def end(self) -> None:
        """No more comes. Raises BrokenStreamError where the last event hasn't."""
        if not self._is_whole:
            raise BrokenStreamError("the answer is cut: the server ended it without its last event")

    def _event(self, data: bytes) -> Iterator[T]:
        if self.has_end_mark and data == b"[DONE]":
            self._is_whole = True
            return
        failure = failure_of_event(as_json(data), self.headers)
        if failure is not None:
            raise failure
        item, is_last = self.parse(data)
        self._is_whole = self._is_whole or is_last
        yield item


def path_of(*parts: str) -> str:
    """A path of parts, whatever characters they hold: none of them becomes two."""
    return "/".join(("", *(quote(part, safe="@:") for part in parts)))


def without_none(**fields: Any) -> dict[str, Any]:
    """Fields of a body; those that are None are left out."""
    return {name: value for name, value in fields.items() if value is not None}
