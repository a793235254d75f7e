"""The router `similarity`: weights from the nearness of a text to the adapters' centroids.

For a request they come of the prompt and stay for the whole generation; for tokens they follow
the text, as `encoder.sessions` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from router_engine.routers.base import RequestRouter, TokenRouter
from router_engine.routers.encoder.sessions import SimilarityTokenRouter
from router_engine.routers.errors import RouterUnavailableError
from router_engine.routers.registry import RequestServices, RouterSpec, TokenServices
from router_engine.routers.scoring import SimilarityParams

_NO_ENCODER = "router 'similarity' needs a sentence encoder, and this server runs none"


class TextRouting(Protocol):
    """What the router needs of `EncoderClient`."""

    async def route(
        self, text: str, candidates: Sequence[str], params: Mapping[str, Any]
    ) -> tuple[float, ...]: ...


class SimilarityRequestRouter:
    """`RequestRouter` over the encoder worker. The candidates' centroids must be there already."""

    def __init__(self, encoder: TextRouting) -> None:
        self._encoder = encoder

    async def route(
        self, prompt_text: str, candidates: Sequence[str], params: Mapping[str, Any]
    ) -> tuple[float, ...]:
        """Raises RouterInputError for wrong parameters, else RouterError when there are none."""
        SimilarityParams.parse(params)
        return await self._encoder.route(prompt_text, candidates, params)


def _for_requests(services: RequestServices) -> RequestRouter:
    if services.encoder is None:
        raise RouterUnavailableError(_NO_ENCODER)
    return SimilarityRequestRouter(services.encoder)


def _for_tokens(services: TokenServices) -> TokenRouter:
    if services.encoder_endpoint is None:
        raise RouterUnavailableError(_NO_ENCODER)
    return SimilarityTokenRouter(services.encoder_endpoint, wake=services.wake)


SPEC = RouterSpec(
    name="similarity",
    summary="Cosine between the text's embedding and each adapter's centroid, then softmax.",
    params=SimilarityParams,
    request=_for_requests,
    token=_for_tokens,
    needs_encoder=True,
)
