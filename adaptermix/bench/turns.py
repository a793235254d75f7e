"""Parts of a measurement in turn, round after round; what fails is left out, the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from rich.console import Console
from rich.progress import track

from adaptermix.bench.errors import BenchmarkError
from router_engine.errors import EngineError

# What ends a part of a run and not the run. Torch raises RuntimeError for what a machine can't do.
FAILURES = (EngineError, RuntimeError)

Part = TypeVar("Part", bound=Hashable)
Value = TypeVar("Value")


@contextmanager
def attempt(missing: MutableMapping[str, str], name: str, console: Console) -> Iterator[None]:
    """Measuring what is called `name`: where it fails, `missing` says why, and all goes on."""
    try:
        yield
    except FAILURES as error:
        missing[name] = str(error)
        console.print(f"{name} is left out: {error}", style="yellow", markup=False)


class Turns(Generic[Part, Value]):
    """The values of each part. One that fails loses those it had, and has no further turns."""

    def __init__(
        self, parts: Sequence[Part], name_of: Callable[[Part], str], console: Console
    ) -> None:
        self.values: dict[Part, list[Value]] = {part: [] for part in parts}
        self.missing: dict[str, str] = {}
        self._name_of = name_of
        self._console = console

    def rounds(self, count: int, title: str) -> Iterator[tuple[int, Part]]:
        """(round, part), all parts in each round: a slow minute of the machine falls on all alike.

        Whoever goes first finds the caches cold, so each does in turn.
        """
        parts = list(self.values)
        turns = [
            (number, parts[(number + index) % len(parts)])
            for number in range(count)
            for index in range(len(parts))
        ]
        for number, part in track(turns, title, console=self._console):
            if part in self.values:
                yield number, part

    @contextmanager
    def turn(self, part: Part) -> Iterator[list[Value]]:
        """A turn of a part, which adds to its values."""
        name = self._name_of(part)
        with attempt(self.missing, name, self._console):
            yield self.values[part]
        if name in self.missing:
            del self.values[part]

    def require_some(self) -> None:
        """Raises BenchmarkError, with the first reason, where all parts failed."""
        if not self.values:
            raise BenchmarkError(next(iter(self.missing.values()), "there is nothing to measure"))
