"""The entry of `similarity` in the registry, for requests and for tokens."""

from __future__ import annotations

from router_engine.routers.base import RequestRouter, TokenRouter
from router_engine.routers.errors import RouterUnavailableError
from router_engine.routers.registry import RequestServices, RouterSpec, TokenServices
from router_engine.routers.request.similarity import SimilarityRequestRouter
from router_engine.routers.scoring import SimilarityParams
from router_engine.routers.token.similarity import SimilarityTokenRouter

_NO_ENCODER = "router 'similarity' needs a sentence encoder, and this server runs none"


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
