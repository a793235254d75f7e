"""Answers to a prompt: a whole one, or its pieces."""

from __future__ import annotations

from dataclasses import dataclass

from server.schemas.generate import Alternative, Details, Token


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `details` has everything that the server says of it."""

    text: str
    details: Details | None  # None where it was asked for without

    @property
    def adapters(self) -> list[str]:
        """The labels (name@version) of the adapters that acted; none under the base."""
        routing = self.details and self.details.routing
        return routing.adapters if routing else []

    @property
    def weights(self) -> list[list[float]]:
        """weights[i][j]: of adapters[j] in the pass that yielded token i.

        Empty under the base, and at level layer, where every layer has weights of its own.
        """
        routing = self.details and self.details.routing
        return routing.weights if routing else []

    @property
    def token_ids(self) -> list[int]:
        """Of `tokens`."""
        return [token.id for token in self.tokens]

    @property
    def finish_reason(self) -> str | None:
        """length, eos_token or stop_sequence; None without details."""
        return None if self.details is None else self.details.finish_reason

    @property
    def prompt_tokens(self) -> int | None:
        """How many the prompt had; None without details."""
        return None if self.details is None else self.details.prompt_tokens

    @property
    def tokens(self) -> list[Token]:
        """The tokens of the text; empty where it was streamed: its pieces are they."""
        return (self.details and self.details.tokens) or []


@dataclass(frozen=True, slots=True)
class Piece:
    """One token of an answer that is streamed."""

    text: str  # empty for the end-of-text token that may come last
    token: Token
    weights: list[float] | None  # of the answer's adapters at this token; None where there are none
    top_tokens: list[Alternative] | None  # the likeliest, where asked for
    answer: Answer | None  # the whole, with the last piece alone
