"""Requests to a server, several at a time, and the answers that are kept of them."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import each
from adaptermix.evaluation.journal import Journal

Answer = Mapping[str, Any]  # of a journal: see `Ask.answer_in`
Body = dict[str, Any]
Key = TypeVar("Key", bound=Hashable)

_CHARACTERS = 4.0  # of a token, roughly
_PREFILL = 3.0  # tokens of prompts that take as long as one of an answer, roughly
_SHARE = 0.02  # of the work, after which the time of all of it is told


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to the server."""

    routing: str  # its name
    path: str
    body: Body
    cuts: tuple[int, ...] = ()  # in characters: they divide completions into parts
    cost: float = 1.0  # of a token, in tokens under a fixed mixture

    def key(self, identity: Mapping[str, Any]) -> str:
        """Digest of all that the answer depends on: `identity` says what serves it.

        Its `adapters` count as far as the request names them.
        """
        named, there = named_in(self.body.get("mixture")), identity.get("adapters", {})
        adapters = {name: there[name] for name in named if name in there}
        parts = [{**identity, "adapters": adapters}, self.path, self.body, self.cuts]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def size(self) -> float:
        """About how long it takes, in tokens of an answer under a fixed mixture."""
        prompt = len(self.body["inputs"]) / _CHARACTERS / _PREFILL
        texts = self.body.get("completions")
        if texts is None:
            return prompt + self.cost * float(self.body["parameters"]["max_new_tokens"])
        return prompt + self.cost * sum(map(len, texts)) / _CHARACTERS

    def answer_in(self, reply: Mapping[str, Any]) -> Answer:
        """{"text"} of a generation; {"scores": [...]} of completions: see `_parts`."""
        if self.path == "/generate":
            return {"text": reply["generated_text"]}
        texts = self.body["completions"]
        pairs = zip(texts, reply["scores"], strict=True)
        return {"scores": [_parts(text, score, self.cuts) for text, score in pairs]}


async def post(http: aiohttp.ClientSession, ask: Ask) -> dict[str, Any]:
    """The whole reply. Raises BenchmarkError with the routing and the server's words."""
    async with http.post(ask.path, json=ask.body) as response:
        if response.status != HTTPStatus.OK:
            raise BenchmarkError(
                f"routing {ask.routing!r}: the server answered {response.status}: "
                f"{(await response.text())[:500]}"
            )
        reply: dict[str, Any] = await response.json()
        return reply


async def ask_all(
    http: aiohttp.ClientSession,
    asks: Mapping[Key, Ask],
    keep: Callable[[Key, Mapping[str, Any]], None],
    concurrency: int,
    console: Console,
) -> None:
    """Send all, in their order, `concurrency` at a time; `keep` gets each reply as it comes.

    Raises BenchmarkError for the first that the server refuses.
    """
    total = sum(ask.size for ask in asks.values())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar, eta = progress.add_task("asking", total=round(total)), _Eta(console, total)

        async def one(item: tuple[Key, Ask]) -> None:
            key, ask = item
            keep(key, await post(http, ask))
            progress.update(bar, advance=ask.size, description=ask.routing)
            eta.add(ask.size)

        await each(asks.items(), concurrency, one)


class Asking:
    """A server, and a journal of its answers, which depend on `identity` and on the request."""

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
        """The answer in the journal; KeyError where it has not been asked."""
        answer: Answer = self._journal[ask.key(self._identity)]
        return answer

    async def post(self, ask: Ask) -> dict[str, Any]:
        """The whole reply, past the journal: see `post`."""
        return await post(self._http, ask)

    async def ask_all(self, waves: Sequence[Sequence[Ask]]) -> None:
        """Ask all that the journal lacks; those of a wave before those of the next."""
        pending: dict[str, Ask] = {}
        for wave in waves:
            for ask in wave:
                key = ask.key(self._identity)
                if key not in self._journal:
                    pending.setdefault(key, ask)
        answered = sum(map(len, waves)) - len(pending)
        if answered:
            self._console.print(f"{answered} answers are known or the same as others", style="dim")

        def keep(key: str, reply: Mapping[str, Any]) -> None:
            self._journal.put(key, pending[key].answer_in(reply))

        await ask_all(self._http, pending, keep, self._concurrency, self._console)


class _Eta:
    """Tells once how long all of it will take. Sizes are those of `Ask.size`."""

    def __init__(self, console: Console, total: float) -> None:
        self._console = console
        self._total = total
        self._done = 0.0
        self._began = asyncio.get_running_loop().time()
        self._is_told = False

    def add(self, size: float) -> None:
        self._done += size
        if self._is_told or self._done < _SHARE * self._total:
            return
        self._is_told = True
        seconds = asyncio.get_running_loop().time() - self._began
        minutes = seconds * self._total / self._done / 60
        self._console.print(f"about {minutes:.0f} minutes for all of it", style="dim")


def named_in(mixture: Mapping[str, Any] | None) -> set[str]:
    """Every adapter that a mixture names; what is not as it should be, the server will refuse."""
    mixture = mixture or {}
    router = mixture.get("router")
    members = router.get("candidates") if isinstance(router, Mapping) else mixture.get("adapters")
    names = [
        item.get("name") if isinstance(item, Mapping) else item
        for item in (members if isinstance(members, list) else [])
    ]
    return {name for name in names if isinstance(name, str)}


def _parts(text: str, score: Mapping[str, Any], cuts: Sequence[int]) -> dict[str, Any]:
    """{"parts": [[NLL in nats, tokens], ...]}, and "weights" {adapter: mean in each part}.

    A token belongs to the part in which its text begins. A part without tokens has weights 0.
    """
    tokens = score["tokens"]
    if "".join(token["text"] for token in tokens) != text:
        raise BenchmarkError(f"the scored tokens do not spell the completion {text!r}")
    members: list[list[int]] = [[] for _ in range(len(cuts) + 1)]
    begin = 0
    for index, token in enumerate(tokens):
        members[sum(begin >= cut for cut in cuts)].append(index)
        begin += len(token["text"])
    answer: dict[str, Any] = {
        "parts": [[-sum(tokens[i]["logprob"] for i in part), len(part)] for part in members]
    }
    routing = score.get("routing")
    if routing is not None and len(routing["weights"]) == len(tokens):
        answer["weights"] = {
            name: [_mean([routing["weights"][i][j] for i in part]) for part in members]
            for j, name in enumerate(routing["adapters"])
        }
    return answer


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0
