"""What a request has resolved is there for it until its end, or it is told that it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from adapters_store.errors import AdapterInUseError, AdapterNotFoundError
from router_engine.request import SamplingSpec
from server.generation.generation import PreparedRequest, Update
from server.generation.generation_input import GenerationInput
from server.generation.uses import Uses
from tests.server.live import Live

Folders = dict[str, Path]


async def prepared(server: Live, adapter: str) -> PreparedRequest:
    generation = server.container.services.generation
    ids = generation.tokenization.encode("hello")
    ask = GenerationInput(ids, "hello", SamplingSpec(), 4, adapter=adapter, ignore_eos=True)
    return await generation.prepare(ask)


async def texts(updates: AsyncGenerator[Update, None]) -> str:
    return "".join([piece.text async for update in updates for piece in update.pieces])


def test_an_adapter_that_a_request_waits_for_is_in_use(bare: Live, folders: Folders) -> None:
    """The engine has not begun: it was not asked to load the adapter yet."""
    bare.publish(folders["wide"], "awaited")
    expected = bare.answer(
        parameters={"adapter_id": "awaited", "max_new_tokens": 4, "ignore_eos_token": True}
    )
    bare.client.post("/admin/adapters/awaited/unload")
    services = bare.container.services

    async def delete_under_a_request() -> str:
        updates = services.generation.stream(await prepared(bare, "awaited"))
        first = asyncio.ensure_future(anext(updates))
        await asyncio.sleep(0)  # it is with the engine
        with pytest.raises(AdapterInUseError):
            await services.adapters.delete("awaited", force=False)
        gone = await services.adapters.delete("awaited", force=True)
        assert (gone.deleted, gone.freed_bytes) == (["awaited@1"], 0)
        begin = "".join(piece.text for piece in (await first).pieces)
        return begin + await texts(updates)

    assert bare.run(delete_under_a_request()) == expected["generated_text"]
    assert bare.generate(parameters={"adapter_id": "awaited"}).status_code == 404
    assert bare.run(services.adapters.collect()) > 0  # nobody needs it now


def test_what_was_deleted_before_the_engine_heard_of_it_is_not_found(
    bare: Live, folders: Folders
) -> None:
    bare.publish(folders["code"], "vanishing")

    async def delete_between() -> None:
        job = await prepared(bare, "vanishing")
        await bare.container.services.adapters.delete("vanishing", force=False)
        await texts(bare.container.services.generation.stream(job))

    with pytest.raises(AdapterNotFoundError, match="vanishing@1"):
        bare.run(delete_between())


def test_uses_are_counted() -> None:
    uses = Uses()
    with uses.hold(["a~one", "b"]):
        with uses.hold(["a", "a~two"]):
            assert uses.digests == {"a", "b"}
        assert uses.digests == {"a", "b"}
    assert uses.digests == frozenset()
