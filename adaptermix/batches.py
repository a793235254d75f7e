"""Arguments of a batch, as the bodies that POST /generate would be sent, found valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from adaptermix.client.generation import AnyMixture, Sampling, mixture_json, parameters_json
from adaptermix.errors import InvalidInputError
from adaptermix.invalid import explained
from adaptermix.local import Prompt
from adaptermix.mixture import Mixture
from adaptermix.sampling import SamplingParams
from router_engine.excerpt import excerpt
from server.schemas.base import Body
from server.schemas.generate import GenerateBody
from server.schemas.openai import ChatBody

Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""One prompt or several, as text or as token ids."""
Messages = Sequence[Mapping[str, Any]]
Conversations = Messages | Sequence[Messages]
Samplings = Sampling | Sequence[Sampling]
Mixtures = AnyMixture | Sequence[AnyMixture]

Shape = TypeVar("Shape", bound=Body)

_UNREAD = "?"  # stands for a text that is made of token ids or of a conversation, later


def text_prompts(
    prompts: Prompts,
    sampling: Samplings,
    mixture: Mixtures,
    *,
    priority: int | None,
    timeout: float | None,
) -> list[Prompt]:
    """Prompts of a batch, in its order. Raises InvalidInputError."""
    listed = _listed(prompts)
    texts = [prompt if isinstance(prompt, str) else _UNREAD for prompt in listed]
    bodies = _bodies(texts, sampling, mixture, priority=priority, timeout=timeout)
    return [
        Prompt(body, ids=None if isinstance(prompt, str) else prompt)
        for prompt, body in zip(listed, bodies, strict=True)
    ]


def chat_prompts(
    messages: Conversations,
    sampling: Samplings,
    mixture: Mixtures,
    *,
    priority: int | None,
    timeout: float | None,
) -> list[Prompt]:
    """Conversations of a batch, in its order. Raises InvalidInputError."""
    chats = [
        valid_body(ChatBody, f"conversation {index}", {"model": "base", "messages": conversation})
        for index, conversation in enumerate(_conversations(messages))
    ]
    texts = [_UNREAD] * len(chats)
    bodies = _bodies(texts, sampling, mixture, priority=priority, timeout=timeout)
    return [Prompt(body, chat=chat) for body, chat in zip(bodies, chats, strict=True)]


def valid_body(shape: type[Shape], place: str, body: Mapping[str, Any]) -> Shape:
    """A body by the server's own rules. Raises InvalidInputError, which begins with `place`."""
    try:
        return shape.model_validate(dict(body))
    except ValidationError as error:
        raise explained(place, error, lambda location: location) from error


def _bodies(
    texts: Sequence[str],
    sampling: Samplings,
    mixture: Mixtures,
    *,
    priority: int | None,
    timeout: float | None,
) -> list[GenerateBody]:
    samplings = _one_each("sampling", sampling, SamplingParams | Mapping | None, len(texts))
    mixtures = _one_each("mixture", mixture, Mixture | Mapping | None, len(texts))
    return [
        valid_body(
            GenerateBody,
            f"prompt {index}",
            {
                "inputs": text,
                "parameters": parameters_json(samplings[index]),
                "mixture": mixture_json(mixtures[index]),
                "priority": priority or 0,
                "timeout": timeout,
            },
        )
        for index, text in enumerate(texts)
    ]


def _listed(prompts: Any) -> list[str | list[int]]:
    """Every prompt, as text or as token ids. Raises InvalidInputError."""
    if isinstance(prompts, str):
        return [prompts]
    if ids := _token_ids(prompts):
        return [ids]
    if isinstance(prompts, Sequence) and not isinstance(prompts, bytes):
        listed = [each if isinstance(each, str) else _token_ids(each) for each in prompts]
        whole = [prompt for prompt in listed if prompt is not None]
        if len(whole) == len(prompts):
            return whole
    raise InvalidInputError(
        f"prompts = {excerpt(prompts)}: use a text, a list of texts, or lists of token ids"
    )


def _token_ids(prompt: Any) -> list[int] | None:
    """A prompt that is token ids; None for anything else."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str | bytes):
        return None
    ids = [token for token in prompt if isinstance(token, int) and not isinstance(token, bool)]
    return ids if len(ids) == len(prompt) else None


def _conversations(messages: Any) -> list[list[dict[str, Any]]]:
    """Every conversation. Raises InvalidInputError."""
    if isinstance(messages, Sequence):
        several = [messages] if _is_conversation(messages) else messages
        if all(_is_conversation(each) for each in several):
            return [[dict(message) for message in each] for each in several]
    raise InvalidInputError(
        f"messages = {excerpt(messages)}: use a list such as "
        "[{'role': 'user', 'content': 'Hello'}], or a list of such lists"
    )


def _is_conversation(messages: Any) -> bool:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        return False
    return bool(messages) and all(isinstance(message, Mapping) for message in messages)


def _one_each(name: str, value: Any, single: Any, count: int) -> Sequence[Any]:
    """The value for each prompt, of one for all or one for each. Raises InvalidInputError."""
    if isinstance(value, single):
        return [value] * count
    if isinstance(value, Sequence) and all(isinstance(each, single) for each in value):
        if len(value) != count:
            raise InvalidInputError(f"{name}: {len(value)} for {count} prompts; give one for each")
        return value
    raise InvalidInputError(
        f"{name} = {excerpt(value)}: use one for all prompts, or a list with one for each"
    )
