"""The layer router `arrow`: each token goes to the adapters that amplify it most, layer by layer.

Source: Ostapenko et al., "Towards Modular LLMs by Building and Reusing a Library of LoRAs" (2024).
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from router_engine.routers.base import LayerRoutingParams
from router_engine.routers.registry import RouterSpec


class ArrowParams(BaseModel):
    """Parameters of the router `arrow`; the defaults are PEFT's. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    top_k: int = Field(
        default=3,
        ge=1,
        le=1 << 20,
        description="At most so many weights above 0, at each layer for each token.",
    )
    temperature: float = Field(
        default=1.0,
        ge=1e-6,
        le=1e6,
        description="w = softmax(|x . v| / temperature) over the top_k best: smaller is sharper.",
    )


def _gate(params: ArrowParams) -> LayerRoutingParams:
    return LayerRoutingParams("arrow", params.top_k, params.temperature)


SPEC = RouterSpec(
    name="arrow",
    summary="Per layer and token, from the singular vectors of each adapter; needs no data.",
    params=ArrowParams,
    layer=_gate,
)
