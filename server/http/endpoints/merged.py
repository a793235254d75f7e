"""/admin/merged: fold a fixed mixture into the base weights, and take it out again."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends

from server.http.auth import documented_key
from server.http.body_reading import StrictRoute
from server.http.container import ContainerDep
from server.schemas.adapters import MERGED_EXAMPLE, MergedReply
from server.schemas.errors import native_errors
from server.schemas.mixture import FIXED_EXAMPLE, FixedMixture

router = APIRouter(
    route_class=StrictRoute,
    prefix="/admin/merged",
    tags=["merged"],
    dependencies=[Depends(documented_key)],
)

_UNMERGED: dict[str, Any] = {
    "mode": "unmerged",
    "digest": None,
    "seconds": 0.3,
    "adapters": [],
    "weights": [],
}


def _answers(example: Any, *errors: int) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"example": example}}
    return {200: {"description": "Done", "content": content}, **native_errors(*errors)}


@router.put(
    "",
    summary="Merge a mixture into the base",
    responses=_answers(MERGED_EXAMPLE, 401, 403, 404, 409, 422, 424, 503),
)
async def merge(
    container: ContainerDep, body: Annotated[FixedMixture, Body(examples=[FIXED_EXAMPLE])]
) -> MergedReply:
    """Fold the mixture in between two steps. Other requests go on, corrected at low rank.

    Refused where their answers would change. Adapters at weight 0 are not merged.
    """
    return await container.services.adapters.merge(body)


@router.get("", summary="Show what is merged", responses=_answers(MERGED_EXAMPLE, 401, 403, 503))
async def merged(container: ContainerDep) -> MergedReply:
    """Which mixture the base weights hold."""
    return await container.services.adapters.merged()


@router.delete("", summary="Restore the base", responses=_answers(_UNMERGED, 401, 403, 503))
async def restore(container: ContainerDep) -> MergedReply:
    """Put the kept originals back: the base is bit for bit what it was."""
    return await container.services.adapters.restore()
