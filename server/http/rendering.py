"""Answers in the shape of LoRAX and TGI."""

from __future__ import annotations

from statistics import fmean

from router_engine.events import TokenEvent
from server.generation.answer_text import AnswerPiece
from server.generation.generation import Completion, Update
from server.generation.mixtures import PlannedMixture
from server.generation.tokenization import Tokenization
from server.generation.weight_statistics import entropy, strongest, switches
from server.schemas.generate import (
    AdapterGates,
    Alternative,
    Details,
    GenerateReply,
    Parameters,
    Routing,
    StreamFrame,
    Token,
    TokenWeights,
    Uncertainty,
)


def routing_of(completion: Completion) -> Routing | None:
    """The weights at each token and what they amount to; None for the base alone."""
    plan = completion.plan
    if not plan.labels:
        return None
    rows = [row for row in completion.weights() if row]
    return Routing(
        adapters=list(plan.labels),
        weights=rows,
        router=plan.router,
        level=plan.level,
        entropy=fmean(map(entropy, rows)) if rows else None,
        switches=switches([strongest(row) for row in rows]) if rows else None,
        fallback=sum(not any(row) for row in rows) if rows else None,
    )


def gates_of(completion: Completion) -> list[AdapterGates] | None:
    """The gates of each adapter with gating networks; None where nobody asked."""
    if completion.gates is None:
        return None
    plan = completion.plan
    statistics = {adapter.adapter: adapter for adapter in completion.gates}
    return [
        AdapterGates(
            adapter=label,
            experts=list(manifest.gate_labels),
            mean=[list(row) for row in statistics[digest].mean],
            std=[list(row) for row in statistics[digest].std],
            spread=statistics[digest].spread,
            closed=statistics[digest].closed,
            tokens=statistics[digest].tokens,
        )
        for label, digest, manifest in zip(plan.labels, plan.digests, plan.manifests, strict=True)
        if digest in statistics
    ]


def uncertainty_of(event: TokenEvent) -> Uncertainty | None:
    """The uncertainty of a token, where the engine computed it."""
    nats = event.uncertainty
    if nats is None:
        return None
    return Uncertainty(entropy=nats.entropy, mutual_information=nats.mutual_information)


class Renderer:
    """Writes one answer; knows which parts of it were asked for."""

    def __init__(
        self,
        tokenization: Tokenization,
        parameters: Parameters,
        plan: PlannedMixture,
        seed: int | None,
        prompt: str,
    ) -> None:
        self._tokenization = tokenization
        self._parameters = parameters
        self._plan = plan
        self._seed = seed
        self._prefix = prompt if parameters.return_full_text else ""

    def reply(self, completion: Completion) -> GenerateReply:
        """The whole answer."""
        details = self._details(completion) if self._parameters.details else None
        return GenerateReply(generated_text=self._prefix + completion.text, details=details)

    def frames(self, update: Update) -> list[StreamFrame]:
        """One frame a token. The last carries the whole text and the details.

        An answer that ended at an end-of-text token gets a frame for it, with no text.
        """
        frames = [self._frame(piece) for piece in update.pieces]
        completion = update.completion
        if completion is None:
            return frames
        if completion.stop_token_id is not None or not frames:
            frames.append(StreamFrame(token=self._closing_token(completion)))
        end = {
            "generated_text": self._prefix + completion.text,
            "details": self._details(completion, streamed=True),
        }
        frames[-1] = frames[-1].model_copy(update=end)
        return frames

    def _frame(self, piece: AnswerPiece) -> StreamFrame:
        top = self._alternatives(piece.event) if self._parameters.top_n_tokens else None
        weights = self._plan.weights_at(piece.event) if self._parameters.details else ()
        routing = TokenWeights(weights=list(weights)) if weights else None
        return StreamFrame(token=self._token(piece), top_tokens=top, routing=routing)

    def _token(self, piece: AnswerPiece) -> Token:
        event = piece.event
        alternatives = self._alternatives(event) if self._parameters.return_k_alternatives else None
        return Token(
            id=event.token_id,
            text=piece.text,
            logprob=event.logprob,
            special=self._tokenization.is_special(event.token_id),
            alternative_tokens=alternatives,
            uncertainty=uncertainty_of(event) if self._parameters.details else None,
        )

    def _closing_token(self, completion: Completion) -> Token:
        token_id = completion.stop_token_id
        if token_id is None:
            token_id = completion.pieces[-1].event.token_id
        return Token(id=token_id, text="", logprob=None, special=True)

    def _alternatives(self, event: TokenEvent) -> list[Alternative]:
        return [
            Alternative(id=token_id, text=self._tokenization.text_of(token_id), logprob=logprob)
            for token_id, logprob in event.top_tokens
        ]

    def _details(self, completion: Completion, *, streamed: bool = False) -> Details:
        with_details, parameters = self._parameters.details, self._parameters
        tokens = top_tokens = None
        if with_details and not streamed:
            tokens = [self._token(piece) for piece in completion.pieces]
            if parameters.top_n_tokens:
                top_tokens = [self._alternatives(piece.event) for piece in completion.pieces]
        return Details(
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            generated_tokens=len(completion.pieces),
            cached_tokens=completion.cached_tokens,
            seed=self._seed,
            tokens=tokens,
            top_tokens=top_tokens,
            routing=routing_of(completion) if with_details else None,
            gates=gates_of(completion),
        )
