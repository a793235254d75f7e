"""The admin of a soak, who publishes, moves, merges, pins and deletes, one thing at a time.

Now and then another program holds the write lock of the store's database meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from adaptermix.bench.soak.answers import MalformedError, error_of
from adaptermix.bench.soak.questions import ALIAS, FRESH, MOVING, VERSIONS
from adaptermix.bench.soak.record import SoakRecord

_PAUSE_SECONDS = 0.25
_LOCKED_SECONDS = 2.0
_MERGED_WEIGHTS = (0.3, 0.7)
# Beside success: the engine is away, or the adapter is in use or pinned.
_EXPECTED = {"engine_not_ready", "engine_died", "conflict"}

Action = Callable[[], Awaitable[None]]


class RefusedError(Exception):
    """An admin's request that was refused, as it may be."""


@dataclass(slots=True)
class Admin:
    """Alone in what it does: so it knows what must be there when it looks."""

    http: aiohttp.ClientSession
    ledger: SoakRecord
    adapters: Sequence[str]
    folders: Path  # of those that come and go
    database: Path  # SQLite, of the store
    bound: float
    chooser: random.Random
    there: set[str] = field(default_factory=set)  # of FRESH
    unsure: set[str] = field(default_factory=set)  # where an answer was an error
    pinned: str | None = None

    async def work(self, done: Callable[[], bool]) -> None:
        """One action after another until `done`; then everything is let go."""
        actions: dict[str, tuple[Action, int]] = {
            "publish": (self._publish, 2),
            "delete": (self._delete, 2),
            "move an alias": (self._move, 2),
            "move an alias of a locked database": (self._move_locked, 1),
            "merge": (self._merge, 1),
            "restore": (self._restore, 1),
            "pin": (self._pin, 1),
            "load": (self._load, 1),
            "unload": (self._unload, 1),
            "list": (self._list, 1),
        }
        names, often = list(actions), [count for _, count in actions.values()]
        while not done():
            (name,) = self.chooser.choices(names, often)
            await self._one(name, actions[name][0])
            await asyncio.sleep(_PAUSE_SECONDS)

    async def let_go(self) -> None:
        """Take out what is merged, pinned or loaded."""
        await self._one("restore", self._restore)
        await self._one("pin", self._unpin)
        for name in sorted(self.there | self.unsure):
            await self._one("delete", partial(self._remove, name, force=True))
        for name in (*self.adapters, *(f"{MOVING}@{version}" for version in VERSIONS)):
            await self._one("unload", partial(self._unload, name))

    async def _one(self, name: str, action: Action) -> None:
        try:
            async with asyncio.timeout(self.bound):
                await action()
        except RefusedError as refused:
            self.ledger.admin[f"{name}: {refused}"] += 1
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            self.ledger.note_lost(f"admin, {name}: {type(error).__name__} {error}")
            self.ledger.begun += 1
        except MalformedError as error:
            self.ledger.note_undocumented(f"admin, {name}: {error}")
            self.ledger.begun += 1
        else:
            self.ledger.admin[f"{name}: done"] += 1

    async def _ask(self, method: str, path: str, *, may: Sequence[str] = (), **options: Any) -> Any:
        """The reply. Raises RefusedError for what may be refused, MalformedError for all else."""
        async with self.http.request(method, path, **options) as response:
            reply = msgspec.json.decode(await response.read())
            if response.status < HTTPStatus.BAD_REQUEST:
                return reply
            kind = error_of(reply)
            if kind in _EXPECTED or kind in may:
                raise RefusedError(f"{response.status} {kind}")
            raise MalformedError(f"{method} {path}: {response.status} {str(reply)[:300]}")

    async def _publish(self) -> None:
        name = self.chooser.choice(FRESH)
        files = aiohttp.FormData({"name": name})
        for path in sorted((self.folders / name).iterdir()):
            files.add_field("files", path.read_bytes(), filename=path.name)
        self.unsure.add(name)
        reply = await self._ask("POST", "/admin/adapters", data=files)
        self.unsure.discard(name)
        self.there.add(name)
        listed = await self._ask("GET", f"/admin/adapters/{name}")  # it must be there at once
        versions = [adapter["version"] for adapter in listed["adapters"]]
        if reply["version"] not in versions:
            raise MalformedError(f"{name}@{reply['version']} was published and is not there")

    async def _delete(self) -> None:
        if self.there:
            await self._remove(
                self.chooser.choice(sorted(self.there)), force=self.chooser.random() < 0.5
            )

    async def _remove(self, name: str, *, force: bool) -> None:
        may = ("not_found",) if name in self.unsure else ()
        query = {"force": "true" if force else "false"}
        try:
            await self._ask("DELETE", f"/admin/adapters/{name}", may=may, params=query)
        except RefusedError:
            self.unsure.add(name)  # an engine that died may have been asked too late
            raise
        self.there.discard(name)
        self.unsure.discard(name)

    async def _move(self) -> None:
        version = self.chooser.choice(VERSIONS)
        body = {"version": version}
        await self._ask("PUT", f"/admin/adapters/{MOVING}/aliases/{ALIAS}", json=body)
        listed = await self._ask("GET", f"/admin/adapters/{MOVING}@{ALIAS}")
        if [adapter["version"] for adapter in listed["adapters"]] != [version]:
            raise MalformedError(f"{MOVING}@{ALIAS} was moved to {version} and is not there")

    async def _move_locked(self) -> None:
        """The move waits for the lock, and is done."""
        with closing(await asyncio.to_thread(_locked, self.database)):
            move = asyncio.ensure_future(self._move())
            done, _ = await asyncio.wait({move}, timeout=_LOCKED_SECONDS)
        await move
        if done:
            raise MalformedError("an alias was moved in a locked database")

    async def _merge(self) -> None:
        names = self.chooser.sample(list(self.adapters), len(_MERGED_WEIGHTS))
        # In a coarse format the bound on what a merge does to others may be in the way.
        pairs = zip(names, _MERGED_WEIGHTS, strict=True)
        adapters = [{"name": name, "weight": weight} for name, weight in pairs]
        await self._ask("PUT", "/admin/merged", may=("validation",), json={"adapters": adapters})

    async def _restore(self) -> None:
        await self._ask("DELETE", "/admin/merged")

    async def _pin(self) -> None:
        await self._unpin()
        name = self.chooser.choice(list(self.adapters))
        self.pinned = name
        await self._ask("POST", f"/admin/adapters/{name}/pin", json={"pinned": True})

    async def _unpin(self) -> None:
        if self.pinned is not None:
            path = f"/admin/adapters/{self.pinned}/pin"
            await self._ask("POST", path, json={"pinned": False})
            self.pinned = None

    async def _load(self) -> None:
        name = self.chooser.choice(list(self.adapters))
        await self._ask("POST", f"/admin/adapters/{name}/load")

    async def _unload(self, name: str | None = None) -> None:
        name = name or self.chooser.choice(list(self.adapters))
        await self._ask("POST", f"/admin/adapters/{name}/unload")

    async def _list(self) -> None:
        reply = await self._ask("GET", "/admin/adapters")
        names = {adapter["name"] for adapter in reply["adapters"]}
        missing = {*self.adapters, MOVING, *(self.there - self.unsure)} - names
        if missing:
            raise MalformedError(f"not listed: {', '.join(sorted(missing))}")


def _locked(database: Path) -> sqlite3.Connection:
    """A connection that holds the write lock until it is closed."""
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    return connection
