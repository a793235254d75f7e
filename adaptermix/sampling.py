"""`SamplingParams`: how an answer is drawn. The server's own rules check it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, final

from pydantic import ValidationError

from adaptermix.invalid import explained
from server.schemas.generate import Parameters

# Fields whose names differ: vLLM's here, those of LoRAX and TGI over HTTP.
_NATIVE_NAMES = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "ignore_eos": "ignore_eos_token",
    "top_logprobs": "top_n_tokens",
}
_NAMES = {native: name for name, native in _NATIVE_NAMES.items()}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to draw an answer and what to report of it; named as in vLLM.

    Left at None, a field is as the server has it. Unlike vLLM's, the default is greedy. Raises
    InvalidInputError for what no server takes.
    """

    max_tokens: int | None = None  # longest answer
    min_tokens: int | None = None  # nothing ends the answer before these
    temperature: float | None = None  # None or 0: greedy
    top_p: float | None = None
    top_k: int | None = None  # 0 is off
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None  # None: drawn at random, and reported
    stop: str | Sequence[str] | None = None  # the answer ends before any of these
    ignore_eos: bool | None = None  # go on past the end-of-text token
    truncate: int | None = None  # keep only so many tokens of the prompt, the latest
    top_logprobs: int | None = None  # likeliest tokens to report beside each
    uncertainty: bool | None = None  # the entropy at each token
    gates: bool | None = None  # statistics of gates inside layers

    def __post_init__(self) -> None:
        self._validated()

    @property
    def body(self) -> Parameters:
        """As the HTTP API has it: the `parameters` of POST /generate, with `details` asked for."""
        return self._validated()

    def to_json(self) -> dict[str, Any]:
        """The `parameters` of POST /generate, with nothing in it that was left out here."""
        return self.body.model_dump(mode="json", exclude_unset=True)

    def _validated(self) -> Parameters:
        values: dict[str, Any] = {"details": True}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                values[_NATIVE_NAMES.get(field.name, field.name)] = value
        if isinstance(self.stop, str):
            values["stop"] = [self.stop]
        elif isinstance(self.stop, Sequence):
            values["stop"] = list(self.stop)
        try:
            return Parameters.model_validate(values)
        except ValidationError as error:
            raise explained("SamplingParams", error, _argument) from error


def _argument(location: Sequence[Any]) -> Sequence[Any]:
    return [_NAMES.get(part, part) for part in location]
