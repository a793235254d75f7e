"""The one use case behind every API: a prompt under a mixture becomes an answer."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence, Sized
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from router_engine.client.base import EngineClient
from router_engine.errors import EngineDiedError, RequestRefusedError
from router_engine.events import EngineEvent, FinalEvent, FinishReason, GateStatistics, TokenEvent
from router_engine.info import EngineInfo
from router_engine.request import EngineRequest, Reports, SamplingSpec
from router_engine.routers.errors import RouterUnavailableError
from server.errors import AnswerFailedError, InputError, RequestCancelledError
from server.generation.admission import Admission
from server.generation.answer_text import AnswerPiece, AnswerText
from server.generation.generation_input import NATIVE, GenerationInput, InputNames
from server.generation.mixtures import Mixtures, PlannedMixture
from server.generation.recording import Recorder
from server.generation.streams import yield_now_and_then
from server.generation.tokenization import Tokenization
from server.metrics import Metrics
from server.threads import BodyThreads

_SHORT = 4096  # characters, which are read in less time than another thread takes to begin
_TEXT_SIZE = 64  # characters that take as long to read as a text takes to begin with
_FEW = 64  # tokens, weights and alternatives, whose JSON is written in less time than that
Value = TypeVar("Value")
EndReason = Literal["length", "eos_token", "stop_sequence"]
_ENDS: dict[FinishReason, EndReason] = {
    FinishReason.LENGTH: "length",
    FinishReason.STOP_TOKEN: "eos_token",
}


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """An admissible request, ready to be submitted."""

    request: EngineRequest
    plan: PlannedMixture
    stops: tuple[str, ...]  # stop strings
    endpoint: str  # for metrics


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    finish_reason: EndReason
    pieces: tuple[AnswerPiece, ...]  # all its tokens; the end-of-text token is none of them
    prompt_tokens: int
    cached_tokens: int | None  # None where a stop string ended the request before the engine did
    stop_token_id: int | None
    plan: PlannedMixture
    gates: tuple[GateStatistics, ...] | None = None  # None where nobody asked

    @property
    def size(self) -> int:
        """The number of numbers and texts that writing it takes."""
        return _size(self.pieces, self.plan)

    def weights(self) -> list[list[float]]:
        """Weights in force at each token, [tokens][adapters]; [] where each layer has its own."""
        if self.plan.layer_routing is not None:
            return []
        return [list(self.plan.weights_at(piece.event)) for piece in self.pieces]


@dataclass(frozen=True, slots=True)
class Update:
    """The news of one answer."""

    pieces: Sequence[AnswerPiece]  # newly settled
    plan: PlannedMixture
    completion: Completion | None = None  # of the last update

    @property
    def size(self) -> int:
        """The number of numbers and texts that writing it takes."""
        return _size(self.pieces, self.plan) + (self.completion.size if self.completion else 0)


def _size(pieces: Sequence[AnswerPiece], plan: PlannedMixture) -> int:
    alternatives = len(pieces[0].event.top_tokens) if pieces else 0
    return len(pieces) * (max(1, len(plan.digests)) + alternatives)


def fresh_seed() -> int:
    """A seed for a request that gives none."""
    return secrets.randbits(53)  # JSON readers keep 53 bits


def text_size(texts: Iterable[Sized]) -> int:
    """The work of reading texts: their characters, and what each takes however short."""
    return sum(len(text) + _TEXT_SIZE for text in texts)


class Generation:
    """Prepares requests and follows them to their end."""

    def __init__(
        self,
        engine: EngineClient,
        info: EngineInfo,
        tokenization: Tokenization,
        mixtures: Mixtures,
        admission: Admission,
        metrics: Metrics,
        default_max_new_tokens: int,
        bodies: BodyThreads,
    ) -> None:
        """bodies: threads that read long bodies, and others that write long answers."""
        self._engine = engine
        self._mixtures = mixtures
        self._admission = admission
        self._metrics = metrics
        self._default_max_new_tokens = default_max_new_tokens
        self._bodies = bodies
        self.info = info
        self.tokenization = tokenization

    async def write(self, work: Callable[[], Value], size: int) -> Value:
        """The result of `work`, which writes answers: off the event loop where they are long.

        size: theirs together, as `Completion.size` and `Update.size` say.
        """
        return work() if size < _FEW else await self._bodies.writing.run(work)

    async def read(self, work: Callable[[], Value], size: int) -> Value:
        """The result of `work`, which reads a body: off the event loop where it is long.

        size: as `text_size` says.
        """
        return work() if size < _SHORT else await self._bodies.reading.run(work)

    def require_places(self, sequences: int, field: str) -> None:
        """Raises InputError where so many could never wait together."""
        most = self._admission.most
        if sequences > most:
            raise InputError(
                field,
                f"{sequences} sequences",
                f"at most {most} may wait at a time (ADAPTERMIX_MAX_WAITING); ask in parts",
            )

    async def prepare(self, inputs: GenerationInput) -> PreparedRequest:
        """Check, resolve and route: every error that can be known before submission comes here."""
        self._room(inputs)  # what is too long is not routed
        plan = await self._mixtures.plan(inputs.mixture, inputs.adapter, inputs.text)
        sampling = replace(
            inputs.sampling,
            max_new_tokens=self._room(inputs, 1 + len(plan.ensemble)),
            stop_token_ids=() if inputs.ignore_eos else self.info.eos_token_ids,
        )
        return self._prepared(inputs, plan, sampling)

    async def prepare_scores(
        self, inputs: GenerationInput, completions: Sequence[tuple[int, ...]]
    ) -> list[PreparedRequest]:
        """One request a completion, whose tokens it yields. The prompt alone is routed, once."""
        for completion in completions:
            self.require_room(inputs, len(completion))
        plan = await self._mixtures.plan(inputs.mixture, inputs.adapter, inputs.text)
        return [
            self._prepared(
                inputs,
                plan,
                replace(inputs.sampling, max_new_tokens=len(ids), given_token_ids=ids),
            )
            for ids in completions
        ]

    def _prepared(
        self, inputs: GenerationInput, plan: PlannedMixture, sampling: SamplingSpec
    ) -> PreparedRequest:
        request = EngineRequest(
            request_id=uuid.uuid4().hex,
            prompt_token_ids=inputs.prompt_ids,
            sampling=sampling,
            adapters=plan.digests,
            weights=plan.weights,
            combination=plan.combination,
            routing=plan.routing,
            priority=inputs.priority,
            reads_hidden_states=plan.reads_hidden_states,
            layer_routing=plan.layer_routing,
            ensemble=plan.ensemble,
            reports=Reports(weights=plan.routing is not None, gates=inputs.report_gates),
        )
        return PreparedRequest(request, plan, inputs.stops, inputs.endpoint)

    async def run(self, prepared: PreparedRequest) -> Completion:
        """The whole answer. Cancelling the caller cancels the request."""
        async with aclosing(self.stream(prepared)) as updates:
            async for update in updates:
                if update.completion is not None:
                    return update.completion
        raise AnswerFailedError("the engine ended the request without a final event")

    async def stream(self, prepared: PreparedRequest) -> AsyncGenerator[Update, None]:
        """Updates as they come; closing it early cancels the request.

        Raises OverloadedError, EngineNotReadyError, EngineDiedError, RequestRefusedError,
        RouterUnavailableError, AnswerFailedError, and AdapterNotFoundError where that is why.
        """
        plan = prepared.plan
        places = self._admission.enter(1 + len(plan.ensemble))
        with self._mixtures.uses.hold(plan.all_digests), places as on_first_token:
            recorder = Recorder(self._metrics, plan, prepared.endpoint, on_first_token)
            reason = "error"
            try:
                async with aclosing(self._follow(prepared, recorder)) as updates:
                    async for update in updates:
                        if update.completion is not None:
                            reason = update.completion.finish_reason
                        yield update
            except (GeneratorExit, asyncio.CancelledError):
                reason = "cancelled" if reason == "error" else reason
                raise
            except AnswerFailedError:
                await self._mixtures.require_there(plan)
                raise
            finally:
                recorder.end(reason, len(prepared.request.prompt_token_ids))

    async def _follow(
        self, prepared: PreparedRequest, recorder: Recorder
    ) -> AsyncGenerator[Update, None]:
        follower = _Follower(prepared, self.tokenization)
        async with aclosing(self._engine.submit(prepared.request)) as events:
            async for event in events:
                if isinstance(event, FinalEvent):
                    recorder.final(event)
                    yield follower.finish(event)
                    return
                recorder.token(event)
                pieces = follower.push(event)
                await yield_now_and_then(follower.answer.num_tokens)
                if follower.answer.is_stopped:
                    break
                if pieces:
                    yield Update(pieces, prepared.plan)
            reports_gates = prepared.request.reports.gates
            final = await self._ended(prepared.request, events) if reports_gates else None
        yield follower.finish(final)

    async def _ended(
        self, request: EngineRequest, events: AsyncGenerator[EngineEvent, None]
    ) -> FinalEvent | None:
        """End a request early, for what its final event says."""
        await self._engine.cancel(request.request_id)
        async for event in events:
            if isinstance(event, FinalEvent):
                return event
        return None

    def require_fit(self, prompt: int, sequences: int = 1, fields: InputNames = NATIVE) -> None:
        """Raises InputError for a prompt of so many tokens that no answer has room behind it."""
        limit = self.info.longest(sequences)
        if prompt == 0:
            raise InputError(fields.prompt, "no tokens", "give at least one token of prompt")
        if prompt >= limit:
            raise InputError(
                fields.prompt,
                f"{prompt} tokens",
                f"too long: prompt and answer together may have {limit} tokens"
                f"{self._why(limit, sequences)}; {fields.shorten}",
            )

    def require_room(self, inputs: GenerationInput, tokens: int) -> None:
        """Raises InputError where an answer of so many tokens has no room."""
        self._room(replace(inputs, max_new_tokens=tokens))

    def _room(self, inputs: GenerationInput, sequences: int = 1) -> int:
        """The tokens that the answer may have. Raises InputError with both lengths."""
        limit = self.info.longest(sequences)
        why = self._why(limit, sequences)
        prompt, least = len(inputs.prompt_ids), inputs.sampling.min_new_tokens
        fields = inputs.fields
        self.require_fit(prompt, sequences, fields)
        room = limit - prompt
        if inputs.max_new_tokens is None:
            if least > room:
                raise InputError(
                    fields.least,
                    str(least),
                    f"too many: the prompt has {prompt} tokens, and prompt and answer together "
                    f"may have {limit}{why}; use at most {room}",
                )
            return max(min(self._default_max_new_tokens, room), least)
        if inputs.max_new_tokens < least:
            raise InputError(
                fields.least,
                str(least),
                f"must not be above {fields.most} = {inputs.max_new_tokens}",
            )
        if inputs.max_new_tokens > room:
            raise InputError(
                fields.most,
                str(inputs.max_new_tokens),
                f"too long: the prompt has {prompt} tokens, and prompt and answer together may "
                f"have {limit}{why}; use at most {room}",
            )
        return inputs.max_new_tokens

    def _why(self, limit: int, sequences: int) -> str:
        """The reason why the limit is less than the model's, in words; "" where it is not."""
        if limit == self.info.max_model_len:
            return ""
        each = f" for each of the {sequences} members of an ensemble" if sequences > 1 else ""
        return f", as the KV cache holds no more{each} (ADAPTERMIX_KV_MEMORY)"


class _Follower:
    """Turns one request's events into updates; keeps the last pieces for the completion."""

    def __init__(self, prepared: PreparedRequest, tokenization: Tokenization) -> None:
        self._prepared = prepared
        self._released: list[AnswerPiece] = []  # have left
        self._last: list[AnswerPiece] = []  # settled, but the request ends with them
        self.answer = AnswerText(
            tokenization, prepared.stops, prepared.request.sampling.min_new_tokens
        )

    def push(self, event: TokenEvent) -> Sequence[AnswerPiece]:
        pieces = self.answer.push(event)
        if self.answer.num_tokens >= self._prepared.request.sampling.max_new_tokens:
            self._last = pieces
            return ()
        self._released += pieces
        return pieces

    def finish(self, final: FinalEvent | None) -> Update:
        if final is not None and final.reason not in _ENDS and not self.answer.is_stopped:
            raise failure_of(final)
        pieces = self._last + self.answer.flush()
        # flush may complete a stop string with text that was held back
        is_stopped = self.answer.is_stopped
        completion = Completion(
            text=self.answer.text,
            finish_reason="stop_sequence" if is_stopped else _end_of(final),
            pieces=(*self._released, *pieces),
            prompt_tokens=len(self._prepared.request.prompt_token_ids),
            cached_tokens=None if final is None else final.num_cached_tokens,
            stop_token_id=None if final is None else final.stop_token_id,
            plan=self._prepared.plan,
            gates=final.gates
            if final is not None and self._prepared.request.reports.gates
            else None,
        )
        return Update(pieces, self._prepared.plan, completion)


def _end_of(final: FinalEvent | None) -> EndReason:
    if final is None:
        raise AnswerFailedError("the engine ended the request without a final event")
    return _ENDS[final.reason]


def failure_of(final: FinalEvent) -> Exception:
    """The error that a client gets for a request that the engine ended."""
    message = final.error or f"the request ended with {final.reason.value}"
    match final.reason:
        case FinishReason.REFUSED:
            return RequestRefusedError(message)
        case FinishReason.ENGINE_DIED:
            return EngineDiedError(message)
        case FinishReason.ROUTER_AWAY:
            return RouterUnavailableError(message)
        case FinishReason.CANCELLED:
            return RequestCancelledError("the server is shutting down; send the request again")
        case _:
            return AnswerFailedError(message)
