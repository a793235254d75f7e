"""Implementations by name: built-in ones, and those that installed packages add."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint
from typing import Generic, Protocol, TypeVar

from adapters_store.installed import installed
from router_engine.errors import EngineError


class Named(Protocol):
    """What every implementation says of itself."""

    @property
    def name(self) -> str: ...


Spec = TypeVar("Spec", bound=Named)


class Plugins(Generic[Spec]):
    """Complete when it is made: nothing can be added. Each is imported when it is first asked for,
    so that what an unused one needs need not be installed.
    """

    def __init__(
        self,
        spec_type: type[Spec],
        entries: Iterable[EntryPoint],
        *,
        nouns: tuple[str, str],
        error: type[EngineError],
    ) -> None:
        """nouns: what errors call one and several. Raises `error` when two entries share a name."""
        self._spec_type = spec_type
        self._noun, plural = nouns
        self._error = error
        self._specs: dict[str, Spec] = {}
        self._entries: dict[str, EntryPoint] = {}
        for entry in entries:
            other = self._entries.setdefault(entry.name, entry)
            if other is not entry and other.value != entry.value:
                raise error(f"two {plural} are named {entry.name!r}: {other.value}, {entry.value}")

    @property
    def names(self) -> tuple[str, ...]:
        """All names, none of them imported for it."""
        return tuple(sorted(self._entries))

    def load(self, name: str) -> Spec:
        """One of `names`; raises `error` where it cannot be imported or is something else."""
        if name not in self._specs:
            self._specs[name] = self._load(self._entries[name])
        return self._specs[name]

    def _load(self, entry: EntryPoint) -> Spec:
        try:
            spec = entry.load()
        except Exception as error:  # a third party's module may fail in any way
            raise self._error(
                f"{self._noun} {entry.name!r} ({entry.value}) cannot be loaded: {error}"
            ) from error
        if not isinstance(spec, self._spec_type) or spec.name != entry.name:
            wanted = self._spec_type.__name__
            raise self._error(f"{entry.value} is no {wanted} with the name {entry.name!r}")
        return spec


def with_installed(built_in: Iterable[EntryPoint], group: str) -> list[EntryPoint]:
    """The built-in entries and those of installed packages."""
    return [*built_in, *installed(group)]
