"""The time that a request may take: one clock from its body to its last token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.errors import DeadlineExceededError, InputError


class Deadline:
    """A moment on the clock of the event loop that it is made in, or none."""

    def __init__(self, seconds: float | None) -> None:
        """seconds: from now on; None is without end."""
        self._seconds = seconds
        self._at = None if seconds is None else asyncio.get_running_loop().time() + seconds

    @asynccontextmanager
    async def within(self) -> AsyncIterator[None]:
        """Cancel the body once the moment has come. Raises DeadlineExceededError then."""
        limit = asyncio.timeout_at(self._at)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if self._seconds is None or not limit.expired():
                raise
            raise DeadlineExceededError(self._seconds) from error


def deadline_of(seconds: float | None, default: float | None, most: float) -> Deadline:
    """The deadline of a request that asks for so many seconds, or for none of its own.

    Raises InputError above `most`.
    """
    if seconds is not None and seconds > most:
        hint = f"at most {most:g} seconds (ADAPTERMIX_MAX_TIMEOUT)"
        raise InputError("timeout", f"{seconds:g}", hint)
    return Deadline(default if seconds is None else seconds)
