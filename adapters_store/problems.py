"""Problems of an upload, and how many are told: the report stays short, whatever it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_PROBLEMS = 32
_MOST_WHERE = 400  # characters
_MOST_MESSAGE = 640


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why an adapter was refused: where, what, and what would work."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def shortened(problems: Sequence[Problem]) -> list[Problem]:
    """At most MAX_PROBLEMS, none of them long; the last then says how many more there are."""
    more = len(problems) - MAX_PROBLEMS + 1
    told = problems if more <= 1 else problems[: MAX_PROBLEMS - 1]
    short = [Problem(cut(one.where, _MOST_WHERE), cut(one.message)) for one in told]
    return short if more <= 1 else [*short, Problem("adapter", f"and {more} more problems")]


def shortened_names(names: Sequence[str]) -> tuple[str, ...]:
    """The same of names."""
    told = tuple(cut(name, _MOST_WHERE) for name in names[:MAX_PROBLEMS])
    more = len(names) - len(told)
    return (*told, f"and {more} more") if more else told


def cut(text: str, most: int = _MOST_MESSAGE) -> str:
    """The text, its middle left out where it is longer: reasons stand at either end."""
    if len(text) <= most:
        return text
    half = (most - 3) // 2
    return f"{text[:half]}...{text[-half:]}"
