"""Answers in OpenAI's shapes, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Protocol

from pydantic import BaseModel

from server.generation.answer_text import AnswerPiece
from server.generation.generation import Completion, Update
from server.generation.tokenization import Tokenization
from server.http.openai.wire import LogprobWriter, asked_routing, finish_of, usage_of
from server.schemas.openai import (
    AssistantMessage,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatReply,
    CompletionBody,
    CompletionChoice,
    CompletionLogprobs,
    CompletionReply,
    Usage,
)


class Writer(Protocol):
    """Writes one reply of several choices."""

    def reply(self, completions: Sequence[Completion]) -> BaseModel:
        """The whole reply."""
        ...

    def opening(self, count: int) -> Sequence[BaseModel]:
        """Chunks before any token."""
        ...

    def chunks(self, index: int, update: Update) -> Sequence[BaseModel]:
        """Chunks for new tokens of choice `index`, and for its end."""
        ...

    def usage(self, completions: Sequence[Completion]) -> BaseModel:
        """The chunk that carries only the usage."""
        ...


class CompletionWriter:
    """Writes /v1/completions."""

    def __init__(
        self, body: CompletionBody, prompts: Sequence[str], tokenization: Tokenization
    ) -> None:
        self._body = body
        self._logprobs = LogprobWriter(tokenization)
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        choices = body.n or 1
        self._echoes = [text if body.echo else "" for text in prompts for _ in range(choices)]
        self._offsets = [0] * len(self._echoes)

    def reply(self, completions: Sequence[Completion]) -> CompletionReply:
        """See `Writer`."""
        choices = [
            CompletionChoice(
                index=index,
                text=self._echoes[index] + completion.text,
                logprobs=self._logprobs_of(completion.pieces, 0),
                finish_reason=finish_of(completion),
                routing=asked_routing(self._body, completion),
            )
            for index, completion in enumerate(completions)
        ]
        return self._chunk(choices, usage_of(completions, self._body.n or 1))

    def opening(self, count: int) -> Sequence[CompletionReply]:
        """The prompts, where they are to be echoed."""
        return [
            self._chunk([CompletionChoice(index=index, text=self._echoes[index])])
            for index in range(count)
            if self._echoes[index]
        ]

    def chunks(self, index: int, update: Update) -> Sequence[CompletionReply]:
        """See `Writer`."""
        text = "".join(piece.text for piece in update.pieces)
        logprobs = self._logprobs_of(update.pieces, self._offsets[index])
        self._offsets[index] += len(text)
        completion = update.completion
        choice = CompletionChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=finish_of(completion) if completion else None,
            routing=asked_routing(self._body, completion) if completion else None,
        )
        return [self._chunk([choice])]

    def usage(self, completions: Sequence[Completion]) -> CompletionReply:
        """See `Writer`."""
        return self._chunk([], usage_of(completions, self._body.n or 1))

    def _logprobs_of(self, pieces: Sequence[AnswerPiece], offset: int) -> CompletionLogprobs | None:
        if self._body.logprobs is None:
            return None
        return self._logprobs.completion(pieces, offset)

    def _chunk(
        self, choices: list[CompletionChoice], usage: Usage | None = None
    ) -> CompletionReply:
        return CompletionReply(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=choices,
            usage=usage,
        )


class ChatWriter:
    """Writes /v1/chat/completions."""

    def __init__(self, body: ChatBody, tokenization: Tokenization) -> None:
        self._body = body
        self._logprobs = LogprobWriter(tokenization)
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def reply(self, completions: Sequence[Completion]) -> ChatReply:
        """See `Writer`."""
        return ChatReply(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=[
                ChatChoice(
                    index=index,
                    message=AssistantMessage(content=completion.text),
                    logprobs=self._logprobs_of(completion.pieces),
                    finish_reason=finish_of(completion),
                    routing=asked_routing(self._body, completion),
                )
                for index, completion in enumerate(completions)
            ],
            usage=usage_of(completions, self._body.n or 1),
        )

    def opening(self, count: int) -> Sequence[ChatChunk]:
        """One chunk a choice that names the role."""
        delta = ChatDelta(role="assistant", content="")
        return [self._chunk([ChatChunkChoice(index=i, delta=delta)]) for i in range(count)]

    def chunks(self, index: int, update: Update) -> Sequence[ChatChunk]:
        """The new text, and at the end a chunk with the finish reason."""
        chunks = []
        if update.pieces:
            text = "".join(piece.text for piece in update.pieces)
            logprobs = self._logprobs_of(update.pieces)
            choice = ChatChunkChoice(index=index, delta=ChatDelta(content=text), logprobs=logprobs)
            chunks.append(self._chunk([choice]))
        if update.completion is not None:
            end = ChatChunkChoice(
                index=index,
                delta=ChatDelta(),
                finish_reason=finish_of(update.completion),
                routing=asked_routing(self._body, update.completion),
            )
            chunks.append(self._chunk([end]))
        return chunks

    def usage(self, completions: Sequence[Completion]) -> ChatChunk:
        """See `Writer`."""
        return self._chunk([], usage_of(completions, self._body.n or 1))

    def _logprobs_of(self, pieces: Sequence[AnswerPiece]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        return self._logprobs.chat(pieces, self._body.top_logprobs or 0)

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=choices,
            usage=usage,
        )
