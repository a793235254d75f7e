"""/admin/adapters: publish, check, list, show, delete, texts, alias, load, pin, unload."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, File, Form, Path, Query, Response, UploadFile

from server.http.auth import documented_key
from server.http.body_reading import StrictRoute
from server.http.container import Container, ContainerDep
from server.http.forms import known_fields
from server.http.replies import PartedResponse, WrittenResponse, json_of, json_parts
from server.http.uploads import received, texts_of
from server.schemas.adapters import (
    ADAPTER_EXAMPLE,
    CHECK_EXAMPLE,
    RESIDENCY_EXAMPLE,
    TEXTS_EXAMPLE,
    AdapterList,
    AdapterReply,
    AliasBody,
    CheckReply,
    DeletedReply,
    DeleteQuery,
    PinBody,
    ResidencyReply,
    TextsReply,
    UnloadReply,
)
from server.schemas.errors import native_errors

router = APIRouter(
    route_class=StrictRoute,
    prefix="/admin/adapters",
    tags=["adapters"],
    dependencies=[Depends(documented_key)],
)

NameForm = Annotated[
    str, Form(description="The adapter's name: letters, digits, '.', '_', '-'.", examples=["math"])
]
FilesForm = Annotated[
    list[UploadFile],
    File(description="The files of a PEFT folder, or one .zip, .tar or .tar.gz of them."),
]
TextsForm = Annotated[
    UploadFile | str | None,
    File(description="Sample texts for routing by similarity, JSONL."),
]
RequiredTextsForm = Annotated[
    UploadFile | str,
    File(description='Sample texts, JSONL: one JSON string or {"text": "..."} a line.'),
]
TagsForm = Annotated[
    list[str] | None, Form(description="Tags, repeated or with commas.", examples=[["task"]])
]
Reference = Annotated[
    str, Path(description="name, name@version, name@alias or sha256:...", examples=["math@1"])
]
_UPLOAD = [Depends(known_fields(once=("name", "texts"), often=("files", "tags")))]
_NOT_FOUND = native_errors(401, 403, 404, 422, 503)
_WRITTEN = native_errors(401, 403, 404, 422, 503, 507)
_LOADED = native_errors(401, 403, 404, 409, 422, 424, 503, 507)
_BUSY = native_errors(401, 403, 404, 409, 422, 503, 507)


def _answers(
    example: Any, errors: dict[int | str, dict[str, Any]], status: int = 200
) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"example": example}}
    return {status: {"description": "Done", "content": content}, **errors}


@router.post(
    "",
    status_code=201,
    summary="Publish an adapter",
    responses=_answers(
        ADAPTER_EXAMPLE, native_errors(400, 401, 403, 409, 413, 415, 422, 503, 507), 201
    ),
    dependencies=_UPLOAD,
)
async def publish(
    container: ContainerDep,
    name: NameForm,
    files: FilesForm,
    texts: TextsForm = None,
    tags: TagsForm = None,
) -> AdapterReply:
    """Check and store an adapter as the next version of `name`; it can be used at once."""
    async with received(name, files, texts, tags or []) as upload:
        return await container.services.adapters.publish(upload)


@router.post(
    "/check",
    summary="Try an upload without storing it",
    responses=_answers(CHECK_EXAMPLE, native_errors(400, 401, 403, 413, 415, 422, 503, 507)),
    dependencies=_UPLOAD,
)
async def check(
    container: ContainerDep,
    name: NameForm,
    files: FilesForm,
    texts: TextsForm = None,
    tags: TagsForm = None,
) -> CheckReply:
    """Say whether the adapter would load, every problem, and what it would cost."""
    async with received(name, files, texts, tags or []) as upload:
        return await container.services.adapters.check(upload)


@router.get(
    "",
    summary="List adapters",
    response_model=AdapterList,
    responses=_answers({"adapters": [ADAPTER_EXAMPLE]}, native_errors(401, 403, 422, 503)),
)
async def list_all(
    container: ContainerDep,
    tag: Annotated[str | None, Query(description="Only those that carry this tag.")] = None,
) -> Response:
    """Every version of every adapter."""
    return await _listed(container, await container.services.adapters.listing(tag=tag))


@router.get(
    "/{name}",
    summary="Show an adapter",
    response_model=AdapterList,
    responses=_answers({"adapters": [ADAPTER_EXAMPLE]}, _NOT_FOUND),
)
async def show(container: ContainerDep, name: Reference) -> Response:
    """Every version of a name, or the one that the reference means."""
    return await _listed(container, await container.services.adapters.show(name))


async def _listed(container: Container, adapters: list[AdapterReply]) -> Response:
    reply = AdapterList(adapters=adapters)
    return WrittenResponse(await container.bodies.writing.run(partial(json_of, reply)))


@router.delete(
    "/{name}",
    summary="Delete an adapter",
    responses=_answers({"deleted": ["math@1"], "freed_bytes": 1874552}, _BUSY),
)
async def delete(
    container: ContainerDep,
    name: Reference,
    query: Annotated[DeleteQuery, Query()],
) -> DeletedReply:
    """Delete one version, or all versions of a bare name. Running requests keep what is loaded."""
    return await container.services.adapters.delete(name, force=query.force)


@router.get(
    "/{name}/texts",
    summary="Show an adapter's sample texts",
    response_model=TextsReply,
    responses=_answers(TEXTS_EXAMPLE, _NOT_FOUND),
)
async def texts(container: ContainerDep, name: Reference) -> Response:
    """The texts in force: those set last, else those it was published with."""
    reply = await container.services.adapters.texts(name)
    return PartedResponse(await container.bodies.writing.run(partial(json_parts, reply)))


@router.put(
    "/{name}/texts",
    summary="Set an adapter's sample texts",
    responses=_answers(ADAPTER_EXAMPLE, native_errors(400, 401, 403, 404, 413, 415, 422, 503, 507)),
    dependencies=[Depends(known_fields(once=("texts",)))],
)
async def set_texts(
    container: ContainerDep, name: Reference, texts: RequiredTextsForm
) -> AdapterReply:
    """Replace the texts that routers compare prompts with; its digest and its weights stay.

    They hold for every version of the same digest, from the next request on. An empty file takes
    the texts away.
    """
    return await container.services.adapters.set_texts(name, await texts_of(texts))


@router.put(
    "/{name}/aliases/{alias}",
    summary="Point an alias at a version",
    responses=_answers(ADAPTER_EXAMPLE, _WRITTEN),
)
async def set_alias(
    container: ContainerDep,
    name: Annotated[str, Path(examples=["math"])],
    alias: Annotated[str, Path(examples=["stable"])],
    body: Annotated[AliasBody, Body(examples=[{"version": 2}])],
) -> AdapterReply:
    """Move the alias, atomically. Requests that run already stay on the version they resolved."""
    return await container.services.adapters.set_alias(name, alias, body.version)


@router.delete(
    "/{name}/aliases/{alias}",
    summary="Remove an alias",
    responses=_answers({"deleted": ["math@stable"], "freed_bytes": 0}, _WRITTEN),
)
async def delete_alias(
    container: ContainerDep,
    name: Annotated[str, Path(examples=["math"])],
    alias: Annotated[str, Path(examples=["stable"])],
) -> DeletedReply:
    """Remove the alias; the version stays."""
    await container.services.adapters.delete_alias(name, alias)
    return DeletedReply(deleted=[f"{name}@{alias}"])


@router.post(
    "/{name}/load",
    summary="Bring an adapter to the device",
    responses=_answers(RESIDENCY_EXAMPLE, _LOADED),
)
async def load(container: ContainerDep, name: Reference) -> ResidencyReply:
    """Load it now, so that the first request does not wait for it."""
    return await container.services.adapters.load(name)


@router.post(
    "/{name}/pin",
    summary="Keep an adapter on the device",
    responses=_answers(RESIDENCY_EXAMPLE | {"pinned": True}, _LOADED),
)
async def pin(
    container: ContainerDep,
    name: Reference,
    body: Annotated[PinBody | None, Body(examples=[{"pinned": True}])] = None,
) -> ResidencyReply:
    """Load it and keep it there, or with `pinned` false let it go again."""
    pinned = body is None or body.pinned
    return await container.services.adapters.pin(name, pinned=pinned)


@router.post(
    "/{name}/unload",
    summary="Drop an adapter from device and host",
    responses=_answers({"name": "math@1", "freed_bytes": 1843200}, _BUSY),
)
async def unload(container: ContainerDep, name: Reference) -> UnloadReply:
    """Free its memory. It stays in the store and is loaded again when it is asked for."""
    return await container.services.adapters.unload(name)
