"""Implementations by name: built-in ones, and those that installed packages add by entry points."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

Implementation = TypeVar("Implementation")


class Plugins(Generic[Implementation]):
    """Complete when it is made: nothing can be added. Each is imported when it is first asked for,
    so that what an unused one needs need not be installed.
    """

    def __init__(
        self,
        entries: Iterable[EntryPoint],
        check: Callable[[str, object], Implementation],
        *,
        nouns: tuple[str, str],
        error: type[Exception],
    ) -> None:
        """`check` gets a name and what stands there; raises ValueError if that is no such thing.

        nouns: what errors call one and several. Raises `error` when two entries share a name.
        """
        self._check = check
        self._noun, plural = nouns
        self._error = error
        self._loaded: dict[str, Implementation] = {}
        self._entries: dict[str, EntryPoint] = {}
        for entry in entries:
            other = self._entries.setdefault(entry.name, entry)
            if other is not entry and other.value != entry.value:
                raise error(f"two {plural} are named {entry.name!r}: {other.value}, {entry.value}")

    @property
    def names(self) -> tuple[str, ...]:
        """All names, built-in ones first, none of them imported for it."""
        return tuple(self._entries)

    def load(self, name: str) -> Implementation:
        """One of `names`; raises `error` where it cannot be imported or is something else."""
        if name not in self._loaded:
            self._loaded[name] = self._load(self._entries[name])
        return self._loaded[name]

    def _load(self, entry: EntryPoint) -> Implementation:
        try:
            loaded = entry.load()
        except Exception as error:  # a third party's module may fail in any way
            raise self._error(
                f"{self._noun} {entry.name!r} ({entry.value}) cannot be loaded: {error}"
            ) from error
        try:
            return self._check(entry.name, loaded)
        except ValueError as error:
            raise self._error(f"{entry.value} {error}") from error


def named(kind: type[Implementation]) -> Callable[[str, object], Implementation]:
    """A `check` of `Plugins`: an instance of `kind` whose attribute `name` is the entry's."""

    def check(name: str, loaded: object) -> Implementation:
        if not isinstance(loaded, kind) or getattr(loaded, "name", None) != name:
            raise ValueError(f"is no {kind.__name__} with the name {name!r}")
        return loaded

    return check


def with_installed(built_in: Iterable[EntryPoint], group: str) -> list[EntryPoint]:
    """The built-in entries and those of the packages that `sys.path` leads to.

    Looked for once a path: every installed package is read for it. What is installed while the
    process runs is seen by the next one.
    """
    return [*built_in, *_installed(group, tuple(sys.path))]


@functools.cache
def _installed(group: str, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))
