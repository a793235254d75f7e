"""OpenAI's bodies, to and from ours: questions in, choices and chunks out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from router_engine.events import TokenEvent
from router_engine.request import SamplingSpec
from server.errors import InputError
from server.generation.answer_text import AnswerPiece
from server.generation.generation import Completion, fresh_seed, text_size
from server.generation.generation_input import GenerationInput, InputNames
from server.generation.tokenization import Tokenization
from server.http.rendering import routing_of
from server.schemas.generate import Routing
from server.schemas.openai import (
    ChatBody,
    ChatLogprob,
    ChatLogprobs,
    CommonBody,
    CompletionBody,
    CompletionLogprobs,
    TopLogprob,
    Usage,
)

_ID_SIZE = 4  # characters that take as long to read as a token id


def sampling_of(body: CommonBody, top_n_tokens: int) -> SamplingSpec:
    """Sampling as OpenAI means it: temperature 1 where none is given."""
    options = body.model_dump(
        include={
            *("top_p", "top_k", "min_p"),
            *("repetition_penalty", "frequency_penalty", "presence_penalty"),
        },
        exclude_none=True,
    )
    return SamplingSpec(
        **options,
        temperature=1.0 if body.temperature is None else body.temperature,
        min_new_tokens=body.min_tokens or 0,
        seed=fresh_seed() if body.seed is None else body.seed,
        top_n_tokens=top_n_tokens,
    )


def inputs_of_answers(
    body: CommonBody,
    prompts: Sequence[tuple[tuple[int, ...], str]],
    sampling: SamplingSpec,
    adapter: str | None,
) -> list[GenerationInput]:
    """The inputs of each answer: `n` for each prompt (token ids, text), seeds counting up."""
    stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    limit = body.max_tokens
    fields = InputNames("prompt", "max_tokens", "min_tokens", "shorten it")
    if isinstance(body, ChatBody):
        fields = replace(fields, prompt="messages")
        if body.max_completion_tokens:
            limit, fields = (
                body.max_completion_tokens,
                replace(fields, most="max_completion_tokens"),
            )
    return [
        GenerationInput(
            prompt_ids=ids,
            text=text,
            sampling=replace(sampling, seed=sampling.seed + choice),
            max_new_tokens=limit,
            mixture=body.mixture,
            adapter=adapter,
            stops=stops,
            ignore_eos=body.ignore_eos,
            priority=body.priority,
            endpoint="chat" if isinstance(body, ChatBody) else "completions",
            fields=fields,
        )
        for ids, text in prompts
        for choice in range(body.n or 1)
    ]


def size_of(prompt: str | Sequence[object]) -> int:
    """The work of reading prompts, as `text_size` says."""
    if isinstance(prompt, str):
        return text_size([prompt])
    if prompt and isinstance(prompt[0], int):
        return _ID_SIZE * len(prompt)
    lists = [item for item in prompt if isinstance(item, list)]
    texts = [item for item in prompt if isinstance(item, str)]
    return text_size(texts) + text_size(lists) + (_ID_SIZE - 1) * sum(map(len, lists))


def prompts_of(body: CompletionBody, tokenization: Tokenization) -> Sequence[str | Sequence[int]]:
    """Every prompt, as text or as token ids.

    Raises InputError where there is none, or one of too many ids.
    """
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InputError("prompt", "[]", "give at least one prompt")
    prompts = [prompt] if isinstance(prompt[0], int) else prompt
    for item in prompts:
        if not isinstance(item, str):
            tokenization.require_room(len(item), "prompt")
    return prompts


def reads_text(body: CompletionBody) -> bool:
    """Whether something reads a prompt's text: an echo, or a router."""
    return bool(body.echo) or (body.mixture is not None and body.mixture.reads_text)


def read_prompt(
    prompt: str | Sequence[int], tokenization: Tokenization, *, with_text: bool
) -> tuple[tuple[int, ...], str]:
    """A prompt as token ids and, of ids where it is wanted, text.

    Raises InputError for one that is too long, and for ids outside the vocabulary.
    """
    if isinstance(prompt, str):
        ids = tokenization.encode(prompt, field="prompt")
        tokenization.require_room(len(ids), "prompt")
        return ids, prompt
    ids = tokenization.check_ids(prompt, "prompt")
    return ids, tokenization.decode(ids) if with_text else ""


def size_of_chat(body: ChatBody) -> int:
    """As `size_of`, of a conversation."""
    contents = [message.content for message in body.messages]
    parts = [part.text for content in contents if isinstance(content, list) for part in content]
    texts = [content if isinstance(content, str) else "" for content in contents]
    names = [message.name for message in body.messages if message.name is not None]
    return text_size(texts) + text_size(parts) + text_size(names)


def chat_of(body: ChatBody, tokenization: Tokenization) -> tuple[tuple[int, ...], str]:
    """A conversation as token ids, and the text that routers read."""
    messages = [message.plain() for message in body.messages]
    return tokenization.chat(messages), "\n".join(message["content"] for message in messages)


def finish_of(completion: Completion) -> Literal["stop", "length"]:
    """OpenAI's word for how an answer ended."""
    return "length" if completion.finish_reason == "length" else "stop"


def usage_of(completions: Sequence[Completion], choices_per_prompt: int) -> Usage:
    """Tokens of all answers; a prompt counts once however many answers it gets."""
    prompt = sum(completion.prompt_tokens for completion in completions[::choices_per_prompt])
    generated = sum(len(completion.pieces) for completion in completions)
    return Usage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)


def asked_routing(body: CommonBody, completion: Completion) -> Routing | None:
    """The weights at each token, where they were asked for and there are any."""
    return routing_of(completion) if body.routing else None


class LogprobWriter:
    """Writes logprobs in OpenAI's two shapes."""

    def __init__(self, tokenization: Tokenization) -> None:
        self._tokenization = tokenization

    def completion(self, pieces: Sequence[AnswerPiece], offset: int) -> CompletionLogprobs:
        """The shape of /v1/completions; `offset` is where the first piece's text begins."""
        offsets = []
        for piece in pieces:
            offsets.append(offset)
            offset += len(piece.text)
        return CompletionLogprobs(
            tokens=[self._text(piece.event.token_id) for piece in pieces],
            token_logprobs=[piece.event.logprob for piece in pieces],
            top_logprobs=[self._by_text(piece.event) for piece in pieces],
            text_offset=offsets,
        )

    def chat(self, pieces: Sequence[AnswerPiece], top: int) -> ChatLogprobs:
        """The shape of /v1/chat/completions."""
        return ChatLogprobs(content=[self._entry(piece.event, top) for piece in pieces])

    def _entry(self, event: TokenEvent, top: int) -> ChatLogprob:
        drawn = self._top(event.token_id, event.logprob)
        others = [self._top(token_id, logprob) for token_id, logprob in event.top_tokens[:top]]
        return ChatLogprob(
            token=drawn.token, logprob=drawn.logprob, bytes=drawn.bytes, top_logprobs=others
        )

    def _top(self, token_id: int, logprob: float) -> TopLogprob:
        text = self._text(token_id)
        return TopLogprob(token=text, logprob=logprob, bytes=list(text.encode()))

    def _by_text(self, event: TokenEvent) -> dict[str, float]:
        """Of tokens that are spelled alike the likeliest stands."""
        likeliest = reversed(event.top_tokens)
        return {self._text(token_id): logprob for token_id, logprob in likeliest}

    def _text(self, token_id: int) -> str:
        return self._tokenization.text_of(token_id)
