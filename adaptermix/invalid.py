"""Faults of arguments, in the server's words and under the arguments' names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from adaptermix.errors import InvalidInputError
from server.schemas.problems import describe_problem, path_of

_MOST_PROBLEMS = 8


def explained(
    name: str, error: ValidationError, argument_of: Callable[[Sequence[Any]], Sequence[Any]]
) -> InvalidInputError:
    """The error to raise instead.

    name: of what could not be made. argument_of: from the place of a problem in the body of a
    request to that in the arguments.
    """
    problems = [
        describe_problem(dict(problem), path_of(dict(problem), argument_of(problem["loc"])))
        for problem in error.errors()[:_MOST_PROBLEMS]
    ]
    return InvalidInputError(f"{name}: {'; '.join(problems)}")
