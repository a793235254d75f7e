"""Both clients behind one face, so that each test asks through each of them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from adaptermix import AsyncClient, Client
from tests.support.waiting import HANG_SECONDS


@dataclass(frozen=True)
class Asker:
    """Uses a client of a server for one thing, and closes it."""

    url: str
    is_async: bool
    options: dict[str, Any] = field(default_factory=lambda: {"timeout": HANG_SECONDS})

    @property
    def kind(self) -> str:
        """Which client it is: part of names that both tests of a pair use."""
        return "async" if self.is_async else "sync"

    def __call__(self, use: Callable[[Any], Any]) -> Any:
        """What `use` makes of a client: a value, or a coroutine of one."""
        if not self.is_async:
            with Client(self.url, **self.options) as client:
                return use(client)

        async def main() -> Any:
            async with AsyncClient(self.url, **self.options) as client:
                value = use(client)
                return await value if inspect.isawaitable(value) else value

        return asyncio.run(main())

    def pieces(self, use: Callable[[Any], Any], most: int | None = None) -> list[Any]:
        """What comes of a stream, of which no more than `most` are read."""
        if not self.is_async:
            with Client(self.url, **self.options) as client, use(client) as stream:
                return list(islice(stream, most))

        async def main() -> list[Any]:
            pieces: list[Any] = []
            async with AsyncClient(self.url, **self.options) as client, use(client) as stream:
                while len(pieces) != most:
                    try:
                        pieces.append(await anext(stream))
                    except StopAsyncIteration:
                        break
            return pieces

        return asyncio.run(main())

    def with_key(self, key: str) -> Asker:
        """The same with an API key."""
        return Asker(self.url, self.is_async, self.options | {"api_key": key})
