"""Sends asks to the server, several at a time, and keeps every answer as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.routing.asks import Answer, Ask
from adaptermix.evaluation.routing.journal import Journal

_FORETOLD = 0.02  # share of the work after which the whole time is foretold


class Asking:
    """A server, and a journal of what it has answered. `identity` says what serves."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        journal: Journal,
        identity: Mapping[str, Any],
        concurrency: int,
        console: Console,
    ) -> None:
        self._http = http
        self._journal = journal
        self._identity = identity
        self._concurrency = concurrency
        self._console = console

    def answer(self, ask: Ask) -> Answer:
        """What was answered; KeyError where it has not been asked."""
        kept: Answer = self._journal[ask.key(self._identity)]
        return kept

    async def post(self, ask: Ask) -> dict[str, Any]:
        """The whole reply. Raises BenchmarkError with the routing and the server's words."""
        async with self._http.post(ask.path, json=ask.body) as response:
            if response.status != HTTPStatus.OK:
                raise BenchmarkError(
                    f"routing {ask.routing!r}: the server answered {response.status}: "
                    f"{(await response.text())[:500]}"
                )
            reply: dict[str, Any] = await response.json()
            return reply

    async def ask_all(self, waves: Sequence[Sequence[Ask]]) -> None:
        """Ask what the journal does not know; those of a wave before those of the next."""
        pending = self._pending(waves)
        known = sum(map(len, waves)) - len(pending)
        if known:
            self._console.print(f"{known} answers are known or the same as others", style="dim")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeRemainingColumn(), console=self._console) as progress:
            bar = progress.add_task("asking", total=round(sum(a.size for a in pending.values())))
            told = _Foretold(self._console, sum(a.size for a in pending.values()))

            def done(ask: Ask) -> None:
                progress.update(bar, advance=ask.size, description=ask.routing)
                told.add(ask.size)

            await self._send(pending, done)

    def _pending(self, waves: Sequence[Sequence[Ask]]) -> dict[str, Ask]:
        pending: dict[str, Ask] = {}
        for wave in waves:
            for ask in wave:
                key = ask.key(self._identity)
                if key not in self._journal:
                    pending.setdefault(key, ask)
        return pending

    async def _send(self, pending: Mapping[str, Ask], done: Callable[[Ask], None]) -> None:
        waiting: Iterator[tuple[str, Ask]] = iter(pending.items())

        async def one_client() -> None:
            for key, ask in waiting:
                self._journal.put(key, ask.kept(await self.post(ask)))
                done(ask)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(one_client())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None


class _Foretold:
    """Says once how long all of it will take."""

    def __init__(self, console: Console, total: float) -> None:
        self._console = console
        self._total = total
        self._done = 0.0
        self._began = asyncio.get_running_loop().time()
        self._said = False

    def add(self, size: float) -> None:
        self._done += size
        if self._said or self._done < _FORETOLD * self._total:
            return
        self._said = True
        seconds = asyncio.get_running_loop().time() - self._began
        minutes = seconds * self._total / self._done / 60
        self._console.print(f"about {minutes:.0f} minutes for all of it", style="dim")
