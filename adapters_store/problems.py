"""Problems of an upload, and bounds on what a message repeats: the report stays short."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_PROBLEMS = 32
_MOST_WHERE = 400  # characters
_MOST_MESSAGE = 640
_MOST_LISTED = 8  # names in one message


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why an adapter was refused: where, what, and what would work."""

    where: str  # a file, a key, a module
    message: str  # completes "<where>: "

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def bounded_problems(problems: Sequence[Problem]) -> list[Problem]:
    """At most MAX_PROBLEMS, none of them long; the last then says how many more there are."""
    more = len(problems) - MAX_PROBLEMS + 1
    first = problems if more <= 1 else problems[: MAX_PROBLEMS - 1]
    bounded = [
        Problem(bounded_text(problem.where, _MOST_WHERE), bounded_text(problem.message))
        for problem in first
    ]
    return bounded if more <= 1 else [*bounded, Problem("adapter", f"and {more} more problems")]


def bounded_names(names: Sequence[str]) -> tuple[str, ...]:
    """At most MAX_PROBLEMS names, none of them long; then one item says how many more there are."""
    first = tuple(bounded_text(name, _MOST_WHERE) for name in names[:MAX_PROBLEMS])
    more = len(names) - len(first)
    return (*first, f"and {more} more") if more else first


def bounded_text(text: str, most: int = _MOST_MESSAGE) -> str:
    """The text, its middle left out where it is longer: reasons stand at either end."""
    if len(text) <= most:
        return text
    half = (most - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def name_list(names: Iterable[object], most: int = _MOST_LISTED) -> str:
    """The first `most` names, sorted, and how many more there are: "a, b and 3 more"."""
    listed = sorted(map(str, names))
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return (", ".join(listed[:most]) + more) or "nothing"
