"""The request router `similarity`: weights from the prompt, kept for the whole generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from router_engine.routers.scoring import SimilarityParams


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
