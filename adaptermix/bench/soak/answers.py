"""Requests of a soak, their answers in one form for every API, and how each ended."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from http import HTTPStatus
from itertools import zip_longest
from typing import Any, Literal

import aiohttp
import msgspec

from adaptermix.bench.soak.questions import Route, SoakRequest

Json = Mapping[str, Any]
Match = Literal["right", "tie", "wrong"]


class MalformedError(ValueError):
    """A reply that is not of the documented shape, or a stream that does not end as it must."""


@dataclass(frozen=True, slots=True)
class Told:
    """One answer."""

    tokens: tuple[str, ...]  # ids or spellings, as the API gives them
    logprobs: tuple[float, ...]
    leads: tuple[float, ...]  # nats between each token and the likeliest other
    text: str
    labels: tuple[str, ...]  # adapters that acted


@dataclass(frozen=True, slots=True)
class Comparison:
    """An answer compared with its reference."""

    match: Match
    difference: float  # the largest between two log probabilities, up to a tie
    why: str = ""


def compare(told: Told, references: Sequence[Told], tolerance: float) -> Comparison:
    """Against the reference whose adapters are those that acted.

    Tokens and text must be equal and log probabilities within `tolerance`. Where another token than
    the reference's was taken, and the reference was in doubt by less than twice that, it is a tie,
    and what follows it is not compared.
    """
    fitting = [candidate for candidate in references if candidate.labels == told.labels]
    if not fitting:
        expected_labels = " or ".join(
            ", ".join(candidate.labels) or "the base" for candidate in references
        )
        return Comparison(
            "wrong", 0.0, f"{', '.join(told.labels) or 'the base'} acted: not {expected_labels}"
        )
    reference = fitting[0]
    worst = 0.0
    pairs = zip_longest(told.tokens, reference.tokens)
    for index, (token, expected) in enumerate(pairs):
        if token is None or expected is None:
            lengths = f"{len(told.tokens)} tokens: not {len(reference.tokens)}"
            return Comparison("wrong", worst, lengths)
        if token != expected:
            if reference.leads[index] < 2 * tolerance:
                return Comparison("tie", worst)
            return Comparison("wrong", worst, f"token {index} is {token!r}: not {expected!r}")
        difference = abs(told.logprobs[index] - reference.logprobs[index])
        if not difference <= tolerance:  # so that NaN is wrong too
            return Comparison("wrong", difference, f"log probability {index} is off")
        worst = max(worst, difference)
    if told.text != reference.text:
        return Comparison("wrong", worst, f"{told.text!r}: not {reference.text!r}")
    return Comparison("right", worst)


def unversioned(told: Told) -> Told:
    """Without the versions of adapters: where each new one has the same bytes."""
    return replace(told, labels=tuple(label.partition("@")[0] for label in told.labels))


def read_whole(route: Route, reply: Any) -> Told:
    """A whole answer. Raises MalformedError."""
    try:
        return _WHOLE[route](reply)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise MalformedError(f"{route}: {type(error).__name__} {error}") from error


def read_stream(route: Route, frames: Sequence[Any]) -> Told:
    """Events of a stream from its first to its last. Raises MalformedError.

    `None` stands for OpenAI's `[DONE]`.
    """
    try:
        return _STREAMS[route](frames)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise MalformedError(f"{route}: {type(error).__name__} {error}") from error


def error_of(reply: Any) -> str:
    """The kind of a documented error, of either API. Raises MalformedError."""
    if isinstance(reply, dict) and isinstance(reply.get("error"), str):
        kind = reply.get("error_type")
    else:
        inner = reply.get("error") if isinstance(reply, dict) else None
        kind = inner.get("code") if isinstance(inner, dict) else None
    if not isinstance(kind, str):
        raise MalformedError(f"an error of no documented shape: {str(reply)[:200]}")
    return kind


def _labels(routing: Json | None) -> tuple[str, ...]:
    return tuple(routing["adapters"]) if routing else ()


def _lead(logprob: float, others: Sequence[float]) -> float:
    """`others` may hold the token itself, which is as likely as it is."""
    rest = sorted(others, reverse=True)[1:]
    return logprob - rest[0] if rest else math.inf


def _native(reply: Json) -> Told:
    details = reply["details"]
    tokens, top = details["tokens"], details.get("top_tokens")
    return Told(
        tuple(str(token["id"]) for token in tokens),
        tuple(token["logprob"] for token in tokens),
        _leads(tokens, top),
        reply["generated_text"],
        _labels(details.get("routing")),
    )


def _leads(tokens: Sequence[Json], top: Sequence[Sequence[Json]] | None) -> tuple[float, ...]:
    if top is None:
        return (math.inf,) * len(tokens)
    pairs = zip(tokens, top, strict=True)
    return tuple(_lead(token["logprob"], [o["logprob"] for o in others]) for token, others in pairs)


def _native_stream(frames: Sequence[Json]) -> Told:
    *before, last = frames
    if any(frame["generated_text"] is not None for frame in before):
        raise MalformedError("something came after the final event")
    if last["generated_text"] is None:
        raise MalformedError("no final event")
    # The end-of-text token has an event of its own, and is no token of the answer.
    answered = [frame for frame in frames if frame["token"]["logprob"] is not None]
    tokens = [frame["token"] for frame in answered]
    tops = [frame["top_tokens"] for frame in answered] if "top_tokens" in frames[0] else None
    return Told(
        tuple(str(token["id"]) for token in tokens),
        tuple(token["logprob"] for token in tokens),
        _leads(tokens, tops),
        last["generated_text"],
        _labels(last["details"].get("routing")),
    )


def _completion(reply: Json) -> Told:
    return _of_choices([reply["choices"][0]])


def _of_choices(choices: Sequence[Json]) -> Told:
    tokens: list[str] = []
    logprobs: list[float] = []
    leads: list[float] = []
    for choice in choices:
        told = choice["logprobs"]
        tokens += told["tokens"]
        logprobs += told["token_logprobs"]
        pairs = zip(told["token_logprobs"], told["top_logprobs"], strict=True)
        leads += [_lead(logprob, list(top.values())) for logprob, top in pairs]
    text = "".join(choice["text"] for choice in choices)
    last = choices[-1]
    return Told(tuple(tokens), tuple(logprobs), tuple(leads), text, _labels(last.get("routing")))


def _openai_end(frames: Sequence[Any]) -> list[Json]:
    """The chunks of a stream of one choice, which has to end once, and in `[DONE]`."""
    if frames[-1] is not None or None in frames[:-1]:
        raise MalformedError("not one [DONE] at the end")
    choices = [frame["choices"][0] for frame in frames[:-1] if frame["choices"]]
    ends = [index for index, choice in enumerate(choices) if choice.get("finish_reason")]
    if ends != [len(choices) - 1]:
        raise MalformedError("not one finish_reason, in the last chunk")
    return choices


def _completion_stream(frames: Sequence[Any]) -> Told:
    return _of_choices(_openai_end(frames))


def _chat(reply: Json) -> Told:
    choice = reply["choices"][0]
    content = choice["logprobs"]["content"]
    return _of_content(content, choice["message"]["content"], choice)


def _chat_stream(frames: Sequence[Any]) -> Told:
    choices = _openai_end(frames)
    content = [token for c in choices if c.get("logprobs") for token in c["logprobs"]["content"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return _of_content(content, text, choices[-1])


def _of_content(content: Sequence[Json], text: str, last: Json) -> Told:
    return Told(
        tuple(token["token"] for token in content),
        tuple(token["logprob"] for token in content),
        tuple(
            _lead(token["logprob"], [other["logprob"] for other in token["top_logprobs"]])
            for token in content
        ),
        text,
        _labels(last.get("routing")),
    )


def _scores(reply: Json) -> Told:
    tokens = [token for score in reply["scores"] for token in score["tokens"]]
    return Told(
        tuple(str(token["id"]) for token in tokens),
        tuple(token["logprob"] for token in tokens),
        (math.inf,) * len(tokens),  # they were given: there is nothing to choose
        "".join(token["text"] for token in tokens),
        _labels(reply["scores"][0].get("routing")),
    )


_WHOLE: Mapping[Route, Callable[[Any], Told]] = {
    "/generate": _native,
    "/v1/completions": _completion,
    "/v1/chat/completions": _chat,
    "/score": _scores,
}
_STREAMS: Mapping[Route, Callable[[Sequence[Any]], Told]] = {
    "/generate": _native_stream,
    "/v1/completions": _completion_stream,
    "/v1/chat/completions": _chat_stream,
}


Manner = Literal["whole", "stream", "slow", "cancel", "leave", "hurry"]
_SLOW_SECONDS = 0.1  # between two events, of a client that reads slowly
_HURRY_SECONDS = 0.5  # that one in a hurry gives a server
_LONGEST_PAUSE = 2.0  # however long a server asks to wait


@dataclass(frozen=True, slots=True)
class Ended:
    """One end of one request; exactly one of `told`, `error`, `lost` and `left` is set."""

    seconds: float
    told: Told | None = None
    status: int | None = None  # of an answer, or of an error before any event
    error: str | None = None  # its documented kind
    lost: str | None = None  # why nobody can know what became of it
    left: bool = False  # the client itself went away
    pause: float = 0.0  # how long the server asks to wait
    hurried: bool = False  # the request had a short `timeout`


async def ask(
    http: aiohttp.ClientSession,
    question: SoakRequest,
    body: Mapping[str, Any],
    manner: Manner,
    bound: float,
) -> Ended:
    """Never raises for what a server does; `bound` in seconds."""
    began = time.perf_counter()

    def after(**fields: Any) -> Ended:
        return Ended(time.perf_counter() - began, hurried=manner == "hurry", **fields)

    try:
        async with asyncio.timeout(bound):
            return after(**await _ask(http, question, body, manner))
    except TimeoutError:
        return after(lost=f"no end within {bound:g} s")
    except (aiohttp.ClientError, OSError) as error:
        return after(lost=f"the connection broke: {type(error).__name__} {error}")
    except (MalformedError, msgspec.DecodeError) as error:
        return after(lost=f"malformed: {error}")


async def _ask(
    http: aiohttp.ClientSession, question: SoakRequest, body: Mapping[str, Any], manner: Manner
) -> dict[str, Any]:
    """The fields of `Ended`."""
    if manner == "leave":
        return await _leave(http, question, body)
    whole = manner in ("whole", "hurry") or not question.streams
    asked = dict(body) | ({} if whole else _STREAM) | (_HURRY if manner == "hurry" else {})
    async with http.post(question.route, json=asked) as response:
        if response.status != HTTPStatus.OK:
            kind = error_of(msgspec.json.decode(await response.read()))
            pause = min(float(response.headers.get("Retry-After", 0)), _LONGEST_PAUSE)
            return {"status": response.status, "error": kind, "pause": pause}
        if whole:
            told = read_whole(question.route, msgspec.json.decode(await response.read()))
            return {"status": response.status, "told": told}
        return await _follow(question, response, manner)


async def _leave(
    http: aiohttp.ClientSession, question: SoakRequest, body: Mapping[str, Any]
) -> dict[str, Any]:
    """Go away while the answer is made, most likely before its first token."""
    request = asyncio.ensure_future(http.post(question.route, json=dict(body)))
    done, _ = await asyncio.wait({request}, timeout=_SLOW_SECONDS)
    if not done:
        request.cancel()
        await asyncio.wait({request})
    if not request.cancelled() and request.exception() is None:
        request.result().close()
    return {"left": True}


async def _follow(
    question: SoakRequest, response: aiohttp.ClientResponse, manner: Manner
) -> dict[str, Any]:
    frames: list[Any] = []
    async with aclosing(_frames(response)) as events:
        async for frame in events:
            frames.append(frame)
            if manner == "cancel" and len(frames) > 1:
                response.close()
                return {"left": True}
            if manner == "slow":
                await asyncio.sleep(_SLOW_SECONDS)
    failed = [frame for frame in frames if isinstance(frame, dict) and "error" in frame]
    if failed:
        _check_failure(frames, failed)
        return {"error": error_of(failed[0])}
    return {"status": HTTPStatus.OK.value, "told": read_stream(question.route, frames)}


def _check_failure(frames: list[Any], failed: list[Any]) -> None:
    ending = [frame for frame in frames if frame is not None]
    if len(failed) != 1 or ending[-1] is not failed[0]:
        raise MalformedError("an error that is not the one last event")


async def _frames(response: aiohttp.ClientResponse) -> AsyncGenerator[Any, None]:
    """The JSON of each event; None for `[DONE]`."""
    async for line in response.content:
        if line.startswith(b"data:"):
            data = line[len(b"data:") :].strip()
            yield None if data == b"[DONE]" else msgspec.json.decode(data)


_STREAM = {"stream": True}
_HURRY = {"timeout": _HURRY_SECONDS}
