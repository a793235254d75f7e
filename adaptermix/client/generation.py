"""The calls that a prompt goes into: generate, stream, score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptermix.answers import Answer, Piece
from adaptermix.client.calls import Call, Request, StreamCall, without_none
from adaptermix.client.reading import picked, shaped
from adaptermix.mixture import Mixture
from adaptermix.sampling import SamplingParams
from server.schemas.generate import GenerateReply, StreamFrame
from server.schemas.score import ScoreReply

Sampling = SamplingParams | Mapping[str, Any] | None
"""How to draw. A mapping is the HTTP API's `parameters`, which the server alone checks."""
AnyMixture = Mixture | Mapping[str, Any] | None
"""Who acts; None is the base. A mapping is the HTTP API's `mixture`, as before."""


def generate(
    prompt: str,
    sampling: Sampling = None,
    *,
    mixture: AnyMixture = None,
    apply_chat_template: bool = False,
    priority: int | None = None,
    timeout: float | None = None,
) -> Call[Answer]:
    """A whole answer to one prompt.

    apply_chat_template: wrap the prompt as one user message in the model's chat template.
    priority: lower runs first, on a server whose policy is priority.
    timeout: seconds after which the server gives the request up (RequestTimeoutError).
    """
    parameters = parameters_json(sampling, apply_chat_template=apply_chat_template)
    body = _body(prompt, parameters, mixture, priority, timeout)
    return Call(
        Request(method="POST", path="/generate", json=body), picked(GenerateReply, answer_of)
    )


def stream(
    prompt: str,
    sampling: Sampling = None,
    *,
    mixture: AnyMixture = None,
    apply_chat_template: bool = False,
    priority: int | None = None,
    timeout: float | None = None,
) -> StreamCall[Piece]:
    """The pieces of an answer as they come; the last one has the whole. As `generate` otherwise."""
    parameters = parameters_json(sampling, apply_chat_template=apply_chat_template)
    return stream_body(_body(prompt, parameters, mixture, priority, timeout))


def stream_body(body: Mapping[str, Any]) -> StreamCall[Piece]:
    """The same of a body as POST /generate_stream takes it, which the server alone checks."""
    return StreamCall(
        Request(method="POST", path="/generate_stream", json=body),
        picked(StreamFrame, lambda frame: (piece_of(frame), frame.details is not None)),
    )


def score(
    prompt: str,
    completions: Sequence[str],
    *,
    mixture: AnyMixture = None,
    uncertainty: bool = False,
    gates: bool = False,
    priority: int | None = None,
    timeout: float | None = None,
) -> Call[ScoreReply]:
    """The log probabilities of completions of a prompt, token by token, in their order.

    uncertainty: report the entropy at each token. gates: statistics of gates inside layers.
    """
    body = without_none(
        inputs=prompt,
        completions=list(completions),
        mixture=mixture_json(mixture),
        uncertainty=uncertainty or None,
        gates=gates or None,
        priority=priority,
        timeout=timeout,
    )
    return Call(Request(method="POST", path="/score", json=body), shaped(ScoreReply))


def mixture_json(mixture: AnyMixture) -> Mapping[str, Any] | None:
    """The `mixture` of a body."""
    return mixture.to_json() if isinstance(mixture, Mixture) else mixture


def parameters_json(sampling: Sampling, *, apply_chat_template: bool = False) -> dict[str, Any]:
    """The `parameters` of a body."""
    if isinstance(sampling, SamplingParams):
        parameters = sampling.to_json()
    else:
        parameters = {"details": True, **(sampling or {})}
    return parameters | ({"apply_chat_template": True} if apply_chat_template else {})


def _body(
    prompt: str,
    parameters: Mapping[str, Any],
    mixture: AnyMixture,
    priority: int | None,
    timeout: float | None,
) -> dict[str, Any]:
    return without_none(
        inputs=prompt,
        parameters=parameters,
        mixture=mixture_json(mixture),
        priority=priority,
        timeout=timeout,
    )


def answer_of(reply: GenerateReply) -> Answer:
    """The answer that a body of POST /generate holds."""
    return Answer(reply.generated_text, reply.details)


def piece_of(frame: StreamFrame) -> Piece:
    """The piece that an event of a stream holds."""
    answer = None
    if frame.details is not None:
        answer = Answer(frame.generated_text or "", frame.details)
    weights = None if frame.routing is None else frame.routing.weights
    return Piece(frame.token.text, frame.token, weights, frame.top_tokens, answer)
