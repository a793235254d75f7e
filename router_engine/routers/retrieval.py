"""The request router `retrieval`: weights from the sample texts nearest to the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from router_engine.routers.base import RequestRouter
from router_engine.routers.encoder.encoder_messages import Retrieved
from router_engine.routers.encoder.examples import MAX_SETS
from router_engine.routers.errors import RouterInputError, RouterUnavailableError
from router_engine.routers.knn import RetrievalParams
from router_engine.routers.registry import RequestServices, RouterSpec

_ATTEMPTS = 3  # while others make the worker drop what was just put there


class ExampleRouting(Protocol):
    """What the router needs of `EncoderClient`."""

    async def retrieve(
        self, text: str, candidates: Sequence[str], params: Mapping[str, Any]
    ) -> Retrieved: ...


class ExampleSource(Protocol):
    """What the router needs of `CentroidService`."""

    def texts_of(self, digests: Sequence[str]) -> tuple[str, ...]: ...

    async def put_examples(self, digests: Sequence[str]) -> None: ...


class RetrievalRequestRouter:
    """`RequestRouter` over the encoder worker, which says what examples it lacks."""

    def __init__(self, encoder: ExampleRouting, examples: ExampleSource) -> None:
        self._encoder = encoder
        self._examples = examples

    async def route(
        self, prompt_text: str, candidates: Sequence[str], params: Mapping[str, Any]
    ) -> tuple[float, ...]:
        """Raises RouterInputError for wrong parameters, else RouterError when there are none."""
        RetrievalParams.parse(params)
        if len(candidates) > MAX_SETS:
            raise RouterInputError(
                f"candidates: {len(candidates)} are too many for router 'retrieval', which takes "
                f"{MAX_SETS} at most"
            )
        for _ in range(_ATTEMPTS):
            keys = self._examples.texts_of(candidates)
            reply = await self._encoder.retrieve(prompt_text, keys, params)
            if not reply.lacking:
                return reply.weights
            lacking = set(reply.lacking)
            pairs = zip(candidates, keys, strict=True)
            await self._examples.put_examples([digest for digest, key in pairs if key in lacking])
        raise RouterUnavailableError(
            "the encoder worker has no room for the examples of so many adapters at a time"
        )


def _for_requests(services: RequestServices) -> RequestRouter:
    if services.encoder is None or services.centroids is None:
        raise RouterUnavailableError(
            "router 'retrieval' needs a sentence encoder, and this server runs none"
        )
    return RetrievalRequestRouter(services.encoder, services.centroids)


SPEC = RouterSpec(
    name="retrieval",
    summary="The adapters of the sample texts that are nearest to the prompt.",
    params=RetrievalParams,
    request=_for_requests,
    needs_encoder=True,
)
