"""Bodies of the /v1 routes: OpenAI's, with `mixture` and the sampling fields of vLLM beside."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.base import Body, Many, Reply, Timeout
from server.schemas.generate import MAX_TOP, Routing, StopString
from server.schemas.mixture import FIXED_EXAMPLE, ROUTER_EXAMPLE, MixtureChoice

MAX_CHOICES = 16
MAX_MESSAGES = 4096  # of a conversation
MAX_PARTS = 4096  # of all its messages together
MAX_PROMPTS = 4096  # of one request, as token ids

_IDLE: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "logit_bias": (None, {}),
    "metadata": (None, {}),
    "moderation": (None,),
    "prediction": (None,),
    "prompt_cache_key": (None,),
    "prompt_cache_options": (None,),
    "prompt_cache_retention": (None,),
    "safety_identifier": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
}


class StreamOptions(Body):
    include_usage: bool = Field(default=False, description="A last chunk with the usage.")


class CommonBody(Body):
    """What completions and chat completions share."""

    model: str = Field(
        min_length=1,
        description="The base model's name, or an adapter (name, name@version, name@alias).",
        examples=["math"],
    )
    mixture: MixtureChoice | None = Field(
        default=None, description="Needs the base model's name in `model`."
    )
    max_tokens: int | None = Field(default=None, ge=1, description="Longest answer in tokens.")
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="0 is greedy; default 1."
    )
    top_p: float | None = Field(default=None, gt=0, le=1, description="Nucleus sampling.")
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES, description="Answers a prompt.")
    stop: StopString | Annotated[Many[StopString], Field(max_length=16)] | None = Field(
        default=None, description="The answer ends before any of these."
    )
    stream: bool | None = Field(default=None, description="Answer as server-sent events.")
    stream_options: StreamOptions | None = None
    seed: int | None = Field(
        default=None, ge=0, lt=2**53, description="Choice i draws with seed + i."
    )
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    user: str | None = Field(
        default=None,
        max_length=512,
        description="Whom the request is for; written to the log.",
    )
    top_k: int | None = Field(
        default=None, ge=0, description="Draw from the k likeliest; 0 is off."
    )
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    min_tokens: int | None = Field(
        default=None, ge=0, description="The answer does not end before this."
    )
    ignore_eos: bool = Field(default=False, description="Go on past the end-of-text token.")
    priority: int = Field(default=0, ge=-100, le=100, description="Lower runs first.")
    timeout: Timeout = None
    routing: bool = Field(
        default=False,
        description="Report the adapters and their weights at each token with the answer.",
    )

    @model_validator(mode="after")
    def _options_that_apply(self) -> CommonBody:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("contradiction", "stream_options belongs to stream true")
        return self


class CompletionBody(CommonBody):
    """POST /v1/completions."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = _IDLE

    prompt: str | Many[int] | Many[str] | Many[Many[int]] = Field(
        description="One prompt or several, as text or token ids."
    )
    echo: bool = Field(default=False, description="Put the prompt before the answer.")
    logprobs: int | None = Field(
        default=None, ge=0, le=MAX_TOP, description="Report this many likeliest tokens beside each."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_many_prompts(cls, data: Any) -> Any:
        prompt = data.get("prompt") if isinstance(data, dict) else None
        # A library validates lists of lists in one call, which keeps all threads from their turn.
        if isinstance(prompt, list) and len(prompt) > MAX_PROMPTS and isinstance(prompt[0], list):
            raise PydanticCustomError(
                "too_many_prompts",
                "prompt: {count} prompts of token ids; one request may have {most}",
                {"count": len(prompt), "most": MAX_PROMPTS},
            )
        return data

    @model_validator(mode="after")
    def _echo_without_logprobs(self) -> CompletionBody:
        if self.echo and self.logprobs is not None:
            raise PydanticCustomError(
                "contradiction", "echo with logprobs needs logprobs of the prompt: drop one of them"
            )
        return self


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[Many[TextPart], Field(max_length=MAX_PARTS)]
    name: str | None = Field(
        default=None,
        max_length=64,
        description="Who speaks; refused where the model's chat template does not read it.",
    )

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        message = {"role": self.role, "content": text}
        return message if self.name is None else message | {"name": self.name}


class ChatBody(CommonBody):
    """POST /v1/chat/completions."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = _IDLE | {
        "audio": (None,),
        "function_call": (None, "none"),
        "functions": (None, []),
        "modalities": (None, ["text"]),
        "parallel_tool_calls": (None, False, True),
        "reasoning_effort": (None,),
        "response_format": (None, {"type": "text"}),
        "tool_choice": (None, "none"),
        "tools": (None, []),
        "verbosity": (None,),
        "web_search_options": (None,),
    }

    messages: Many[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(
        default=None, ge=1, description="The same as max_tokens."
    )
    logprobs: bool | None = Field(default=None, description="Report the logprob of every token.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=MAX_TOP, description="Likeliest tokens beside each; needs logprobs."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_many_parts(cls, data: Any) -> Any:
        messages = data.get("messages") if isinstance(data, dict) else None
        if isinstance(messages, list):
            contents = [message.get("content") for message in messages if isinstance(message, dict)]
            parts = sum(len(content) for content in contents if isinstance(content, list))
            if parts > MAX_PARTS:
                raise PydanticCustomError(
                    "too_many_parts",
                    "messages: {parts} parts of content; all together may have {most}",
                    {"parts": parts, "most": MAX_PARTS},
                )
        return data

    @model_validator(mode="after")
    def _one_of_each(self) -> ChatBody:
        if self.top_logprobs and not self.logprobs:
            raise PydanticCustomError("contradiction", "top_logprobs needs logprobs true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise PydanticCustomError(
                "contradiction", "give max_tokens or max_completion_tokens, not both"
            )
        return self


class Usage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(Reply):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    routing: Routing | None = Field(default=None, exclude_if=lambda value: value is None)


class CompletionReply(Reply):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TopLogprob(Reply):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    content: list[ChatLogprob]


class AssistantMessage(Reply):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(Reply):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]
    routing: Routing | None = Field(default=None, exclude_if=lambda value: value is None)


class ChatReply(Reply):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(Reply):
    role: Literal["assistant"] | None = Field(default=None, exclude_if=lambda value: value is None)
    content: str | None = Field(default=None, exclude_if=lambda value: value is None)


class ChatChunkChoice(Reply):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    routing: Routing | None = Field(default=None, exclude_if=lambda value: value is None)


class ChatChunk(Reply):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = Field(default=None, exclude_if=lambda value: value is None)


class ModelCard(Reply):
    """The base model, or an adapter (then `parent` names the base)."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "adaptermix"
    root: str
    parent: str | None = None
    max_model_len: int | None = None


class ModelList(Reply):
    object: Literal["list"] = "list"
    data: list[ModelCard]


COMPLETION_EXAMPLES: dict[str, Any] = {
    "adapter": {
        "summary": "One adapter",
        "value": {"model": "math", "prompt": "Question: 7 times 6?\n\nAnswer:", "max_tokens": 32},
    },
    "mixture": {
        "summary": "A mixture",
        "value": {
            "model": "smollm2-135m-instruct",
            "prompt": "Question: 7 times 6?\n\nAnswer:",
            "mixture": FIXED_EXAMPLE,
        },
    },
}
CHAT_EXAMPLES: dict[str, Any] = {
    "base": {
        "summary": "The base model",
        "value": {
            "model": "smollm2-135m-instruct",
            "messages": [{"role": "user", "content": "What is 7 times 6?"}],
        },
    },
    "router": {
        "summary": "Weights renewed while the answer grows",
        "value": {
            "model": "smollm2-135m-instruct",
            "messages": [{"role": "user", "content": "What is 7 times 6?"}],
            "mixture": ROUTER_EXAMPLE,
            "routing": True,
        },
    },
}
