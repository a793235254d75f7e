"""Bodies of /score: how likely given completions are."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from server.schemas.base import Body, Many, Reply, Timeout
from server.schemas.generate import PROMPT, ROUTING_EXAMPLE, AdapterGates, Routing, Uncertainty
from server.schemas.mixture import ROUTER_EXAMPLE, MixtureChoice

MAX_COMPLETIONS = 64

Completion = Annotated[str, Field(min_length=1)]


def _is_none(value: Any) -> bool:
    return value is None


class ScoreBody(Body):
    """A prompt and completions of it.

    Each completion is fed to the model token by token, as if it were being generated. So a router
    sees of it, at each token, only the text before; a request router sees `inputs` alone.
    """

    inputs: str = Field(min_length=1, description="The prompt: where routing may begin.")
    completions: Many[Completion] = Field(
        min_length=1,
        max_length=MAX_COMPLETIONS,
        description="Tokenized apart from the prompt; no end-of-text token is added.",
    )
    mixture: MixtureChoice | None = Field(default=None, description="Left out: the base model.")
    adapter: str | None = Field(
        default=None, min_length=1, description="One adapter at weight 1. Not with `mixture`."
    )
    uncertainty: bool = Field(
        default=False,
        description="The entropy of each token's distribution. Under an ensemble it is always "
        "there, with the mutual information.",
    )
    gates: bool = Field(
        default=False,
        description="Statistics of the gates inside layers with each completion. The prefix cache "
        "does not serve such a request: the prompt is read for each completion.",
    )
    priority: int = Field(
        default=0,
        ge=-100,
        le=100,
        description="Lower runs first, under ADAPTERMIX_POLICY=priority.",
    )
    timeout: Timeout = None

    @model_validator(mode="after")
    def _one_choice_of_adapter(self) -> ScoreBody:
        if self.adapter and self.mixture is not None:
            raise PydanticCustomError("contradiction", "give either adapter or mixture, not both")
        return self


class ScoredToken(Reply):
    """logprob: log probability in nats, given all that stands before."""

    id: int
    text: str
    logprob: float
    uncertainty: Uncertainty | None = Field(default=None, exclude_if=_is_none)


class Score(Reply):
    """One completion. logprob: the sum over its tokens, in nats."""

    logprob: float
    tokens: list[ScoredToken]
    routing: Routing | None = Field(default=None, exclude_if=_is_none)
    gates: list[AdapterGates] | None = Field(default=None, exclude_if=_is_none)


class ScoreReply(Reply):
    """Scores in the order of the completions."""

    prompt_tokens: int
    scores: list[Score]


SCORE_EXAMPLES = {
    "base": {"summary": "The base model", "value": {"inputs": PROMPT, "completions": [" 42"]}},
    "options": {
        "summary": "Options of a question, with weights for each token",
        "value": {
            "inputs": "Question: Which is a metal?\nChoices: A. iron\nB. wood\n\nAnswer:",
            "completions": [" A", " B"],
            "mixture": ROUTER_EXAMPLE,
        },
    },
}
SCORE_REPLY_EXAMPLE = {
    "prompt_tokens": 12,
    "scores": [
        {
            "logprob": -0.31,
            "tokens": [{"id": 5062, "text": " 42", "logprob": -0.31}],
            "routing": ROUTING_EXAMPLE,
        }
    ],
}
