"""PEFT's name patterns: which module gets which rank and alpha, and which is targeted at all.

They are regular expressions out of an uploaded file, so matching has a time limit.
Semantics: peft.utils.other.get_pattern_key, peft.tuners.tuners_utils.check_target_module_exists.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import regex

from adapters_store.problems import bounded_text

BUDGET_SECONDS = 5.0  # of processor time, for all patterns of one config together
_MOST_MATCHES = 1 << 21  # of a pattern with a module; a model of 900 linear layers needs half
MAX_PATTERN = 4096
_MOST_REPEATED = 1 << 16  # characters of a pattern with its counted repeats written out
_COUNT = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")
_MOST_RANGED = 1 << 18  # characters of all ranges such as [a-z], over which re goes one by one
_CHARACTER = r"\\N\{|\\x[\da-fA-F]{2}|\\u[\da-fA-F]{4}|\\U[\da-fA-F]{8}|\\[0-7]{1,3}|\\?."
# Wherever one may stand: which of them lie within brackets, and apart, is left to the compiler.
_RANGE = re.compile(rf"(?=({_CHARACTER})-({_CHARACTER}))", re.DOTALL)
ALL_LINEAR = "all-linear"

# What the compilers raise for one, some of it by accident.
_NO_PATTERN = (
    *(
        re.error,
        regex.error,
        Warning,
        RecursionError,
        OverflowError,
        MemoryError,
        ValueError,
        LookupError,
    ),
    *(TypeError, AttributeError, SystemError),
)


class PatternError(ValueError):
    """A pattern is no regular expression, or takes too long to match."""


class Matcher:
    """Matches a config's patterns; all of them share one budget of time and of matches."""

    def __init__(
        self, budget_seconds: float = BUDGET_SECONDS, most_matches: int = _MOST_MATCHES
    ) -> None:
        self._left = budget_seconds
        self._matches_left = most_matches
        self._compiled: dict[str, regex.Pattern[str]] = {}

    def first_key(self, keys: Iterable[str], module: str) -> str | None:
        """The first key whose pattern matches the module path, whole or from some dot on."""
        return next((key for key in keys if self.match(rf"(.*\.)?({key})$", module)), None)

    def match(self, expression: str, module: str) -> regex.Match[str] | None:
        """`re.match` within the budget. Raises PatternError."""
        return self._apply(regex.Pattern.match, expression, module)

    def fullmatch(self, expression: str, module: str) -> regex.Match[str] | None:
        """`re.fullmatch` within the budget. Raises PatternError.

        As it is: around it, what a pattern begins with, such as (?i), would no longer be allowed.
        """
        return self._apply(regex.Pattern.fullmatch, expression, module)

    def _apply(
        self, how: Callable[..., regex.Match[str] | None], expression: str, module: str
    ) -> regex.Match[str] | None:
        self._matches_left -= 1
        if self._left <= 0 or self._matches_left < 0:
            raise PatternError(
                "the patterns are too many, or too slow, for so many modules: name the modules "
                "in target_modules, and give rank_pattern and alpha_pattern fewer and simpler keys"
            )
        started = time.thread_time()
        try:
            if expression not in self._compiled:
                self._compiled[expression] = _compile(expression)
            return how(self._compiled[expression], module, timeout=max(self._left, 1e-3))
        except TimeoutError as error:
            raise PatternError(
                f"the pattern {bounded_text(expression)!r} takes too long to match "
                f"{bounded_text(module)!r}; name the modules in a list"
            ) from error
        finally:
            self._left -= time.thread_time() - started


def _compile(expression: str) -> regex.Pattern[str]:
    if len(expression) > MAX_PATTERN:
        raise PatternError(f"the pattern {expression[:60]!r}... is longer than {MAX_PATTERN}")
    if _written_out(expression) > _MOST_REPEATED:
        raise PatternError(
            f"the pattern {bounded_text(expression)!r} repeats too much: counts such as {{1000}} "
            "multiply"
        )
    if _ranged(expression) > _MOST_RANGED:
        raise PatternError(
            f"the pattern {bounded_text(expression)!r} has ranges of too many characters: such "
            f"as [a-z], at most {_MOST_RANGED} characters together"
        )
    try:
        re.compile(expression)  # PEFT's; regex knows more, which would mean nothing there
        return regex.compile(expression)
    except _NO_PATTERN as error:
        reason = str(error) or type(error).__name__
        raise PatternError(
            f"the pattern {bounded_text(expression)!r} is no regular expression: {reason}"
        ) from error


def _written_out(expression: str) -> int:
    """At most how many characters a pattern has once counted repeats are written out."""
    size = len(expression)
    for counts in _COUNT.finditer(expression):
        size *= max(1, *(int(count[:9] or 0) for count in counts.groups()))
        if size > _MOST_REPEATED:
            break
    return size


def _ranged(expression: str) -> int:
    """At most how many characters all ranges of a pattern have together."""
    ends = (match.groups() for match in _RANGE.finditer(expression))
    return sum(max(0, _code(last) - _code(first) + 1) for first, last in ends)


def _code(character: str) -> int:
    """The number of a character as a pattern writes it; the highest for one by its name."""
    kind, digits = character[1:2], character[2:]
    if kind == "N":
        return sys.maxunicode
    if digits and kind in "xuU":
        return int(digits, 16)
    if kind and kind in "01234567":
        return int(character[1:], 8)
    return ord(character[-1])


@dataclass(frozen=True)
class Targets:
    """The modules that a config says it adapts; `target_modules` None says nothing."""

    target_modules: str | Sequence[str] | None
    exclude_modules: str | Sequence[str] | None = None
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None
    matcher: Matcher = field(default_factory=Matcher, repr=False, compare=False)

    @cached_property
    def _targets(self) -> frozenset[str]:
        return _names(self.target_modules)

    @cached_property
    def _exclusions(self) -> frozenset[str]:
        return _names(self.exclude_modules)

    @cached_property
    def _layers(self) -> frozenset[int]:
        wanted = self.layers_to_transform
        return frozenset([wanted] if isinstance(wanted, int) else wanted or ())

    @property
    def explicit(self) -> bool:
        """Whether the config tells targets from other modules."""
        return self.target_modules is not None and self.target_modules != ALL_LINEAR

    def include(self, module: str) -> bool:
        """Whether PEFT would adapt this module. Raises PatternError."""
        if self._excluded(module):
            return False
        if not self.explicit or self.target_modules is None:
            return True
        if isinstance(self.target_modules, str):
            return self.matcher.fullmatch(self.target_modules, module) is not None
        return _named(self._targets, module) and self._layer_included(module)

    def may_include(self, module: str) -> bool:
        """Like `include`, but with PEFT's looser rule before 0.4: any suffix, not only at a dot."""
        if self.include(module):
            return True
        return (
            not isinstance(self.target_modules, str)
            and self.target_modules is not None
            and not self._excluded(module)
            and module.endswith(tuple(self._targets))
            and self._layer_included(module)
        )

    def _excluded(self, module: str) -> bool:
        if not self.exclude_modules:
            return False
        if isinstance(self.exclude_modules, str):
            return self.matcher.fullmatch(self.exclude_modules, module) is not None
        return _named(self._exclusions, module)

    def _layer_included(self, module: str) -> bool:
        return not self._layers or self._layer_index(module) in self._layers

    def _layer_index(self, module: str) -> int | None:
        patterns = self.layers_pattern or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            lead = r".*?\." if not self.layers_pattern else r"(?:^|.*?\.)"
            match = self.matcher.match(rf"{lead}{pattern}\.(?P<idx>\d+)\.", module)
            if match:
                return int(match["idx"])
        return None


def _names(names: str | Sequence[str] | None) -> frozenset[str]:
    return frozenset(() if names is None or isinstance(names, str) else names)


def _named(names: frozenset[str], module: str) -> bool:
    """Whether a module has one of the names, whole or from some dot on."""
    start = 0
    while module[start:] not in names:
        start = module.find(".", start) + 1
        if not start:
            return False
    return True
