"""The calls of OpenAI's API: chat, completions, models. Answers are shaped as OpenAI's are.

The schemas of their answers are imported by the calls: they are many, and who generates alone
doesn't wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptermix.client.calls import Call, Request, StreamCall, path_of, without_none
from adaptermix.client.generation import AnyMixture, Sampling, mixture_json
from adaptermix.client.reading import M, picked, shaped
from adaptermix.errors import InvalidInputError
from adaptermix.sampling import SamplingParams

if TYPE_CHECKING:
    from server.schemas.openai import (
        ChatChunk,
        ChatReply,
        CompletionReply,
        ModelCard,
    )

Messages = Sequence[Mapping[str, Any]]
Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
_UNSAID = ("truncate", "uncertainty", "gates")  # OpenAI's API has no word for them
_SAME = (
    *("max_tokens", "min_tokens", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("frequency_penalty", "presence_penalty", "seed", "ignore_eos"),
)


def chat(
    messages: Messages,
    sampling: Sampling = None,
    *,
    mixture: AnyMixture = None,
    model: str | None = None,
    routing: bool = True,
    priority: int | None = None,
    timeout: float | None = None,
    **more: Any,
) -> Call[ChatReply]:
    """The next turn of a conversation, such as `[{"role": "user", "content": "Hello"}]`.

    model: the base's name, or an adapter; left out, the client asks the server for its base, once.
    routing: report adapters and their weights with each choice.
    more: other fields of POST /v1/chat/completions, such as `n` and `user`.
    """
    from server.schemas.openai import ChatReply

    options = without_none(priority=priority, timeout=timeout, mixture=mixture_json(mixture))
    chat_body = {"messages": list(messages), **_chat(sampling), **options, "routing": routing}
    return Call(_request("/v1/chat/completions", model, chat_body | more), shaped(ChatReply))


def stream_chat(
    messages: Messages,
    sampling: Sampling = None,
    *,
    mixture: AnyMixture = None,
    model: str | None = None,
    routing: bool = True,
    priority: int | None = None,
    timeout: float | None = None,
    **more: Any,
) -> StreamCall[ChatChunk]:
    """The same in chunks, as they come."""
    from server.schemas.openai import ChatChunk

    call = chat(
        messages,
        sampling,
        mixture=mixture,
        model=model,
        routing=routing,
        priority=priority,
        timeout=timeout,
        **more,
        stream=True,
    )
    return _stream(call.request, ChatChunk)


def complete(
    prompt: Prompts,
    sampling: Sampling = None,
    *,
    mixture: AnyMixture = None,
    model: str | None = None,
    routing: bool = True,
    priority: int | None = None,
    timeout: float | None = None,
    **more: Any,
) -> Call[CompletionReply]:
    """Completions of one prompt or of several, as texts or as token ids. Otherwise as `chat`."""
    from server.schemas.openai import CompletionReply

    options = without_none(priority=priority, timeout=timeout, mixture=mixture_json(mixture))
    prompts = prompt if isinstance(prompt, str) else list(prompt)
    body = {"prompt": prompts, **_completion(sampling), **options, "routing": routing}
    return Call(_request("/v1/completions", model, body | more), shaped(CompletionReply))


def stream_complete(
    prompt: Prompts,
    sampling: Sampling = None,
    *,
    mixture: AnyMixture = None,
    model: str | None = None,
    routing: bool = True,
    priority: int | None = None,
    timeout: float | None = None,
    **more: Any,
) -> StreamCall[CompletionReply]:
    """The same in chunks, as they come: each choice's `index` says which prompt's it is."""
    from server.schemas.openai import CompletionReply

    call = complete(
        prompt,
        sampling,
        mixture=mixture,
        model=model,
        routing=routing,
        priority=priority,
        timeout=timeout,
        **more,
        stream=True,
    )
    return _stream(call.request, CompletionReply)


def models() -> Call[list[ModelCard]]:
    """The base model first, then the newest version of every adapter that fits it."""
    from server.schemas.openai import ModelList

    return Call(Request(method="GET", path="/v1/models"), picked(ModelList, lambda m: m.data))


def model(name: str) -> Call[ModelCard]:
    """The base model, or an adapter by any reference to it."""
    from server.schemas.openai import ModelCard

    return Call(Request(method="GET", path=path_of("v1", "models", name)), shaped(ModelCard))


def _request(path: str, model: str | None, body: dict[str, Any]) -> Request:
    named = body if model is None else {"model": model, **body}
    return Request(method="POST", path=path, json=named, needs_base="model" not in named)


def _stream(request: Request, shape: type[M]) -> StreamCall[M]:
    return StreamCall(request, picked(shape, lambda chunk: (chunk, False)), has_end_mark=True)


def _chat(sampling: Sampling) -> dict[str, Any]:
    return _fields(sampling, lambda top: {"logprobs": True, "top_logprobs": top})


def _completion(sampling: Sampling) -> dict[str, Any]:
    return _fields(sampling, lambda top: {"logprobs": top})


def _fields(sampling: Sampling, report: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """The fields of a route; greedy unless it says more. report: those for likely tokens."""
    if isinstance(sampling, Mapping):
        return dict(sampling)
    sampling = sampling or SamplingParams()
    for name in _UNSAID:
        if getattr(sampling, name) is not None:
            raise InvalidInputError(
                f"{name} = {getattr(sampling, name)!r}: chat and completions can't do that; "
                "use generate"
            )
    fields = without_none(**{name: getattr(sampling, name) for name in _SAME})
    fields["temperature"] = sampling.temperature or 0.0
    if sampling.stop is not None:
        fields["stop"] = sampling.body.stop
    top = sampling.top_logprobs
    return fields if top is None else fields | report(top)
