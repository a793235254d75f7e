"""What every `EngineClient` does, run on each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace

import pytest

from adapters_store.types import ResolvedMixture
from router_engine.calls import GetMerged, GetResidency, GetStats, LoadAdapter, Merge, Pin, Unload
from router_engine.client.base import EngineClient
from router_engine.errors import AdapterBusyError, EngineError, MixtureError
from router_engine.events import FinalEvent, FinishReason, TokenEvent
from router_engine.info import Residency
from router_engine.processes.supervisor import RunState
from router_engine.request import EngineRequest, Reports, SamplingSpec, TokenRouting
from tests.router_engine.client.support import PROMPT, answer_to
from tests.support.harness import request

pytestmark = pytest.mark.anyio

LONG = SamplingSpec(max_new_tokens=900)


async def test_a_request_gets_its_tokens_and_one_final_event(client: EngineClient) -> None:
    answer = await answer_to(client, request("one", PROMPT, max_new_tokens=5))
    assert len(answer.ids) == 5
    assert answer.end.reason is FinishReason.LENGTH
    assert answer.end.num_prompt_tokens == len(PROMPT)
    assert answer.end.num_generated_tokens == 5
    assert client.state is RunState.READY


async def test_info_describes_what_runs(client: EngineClient) -> None:
    info = await client.info()
    assert info.base.linears["lm_head"].out_features == info.vocab_size
    assert info.max_model_len > 0
    assert "given" in info.token_routers
    assert "arrow" in info.layer_routers


async def test_many_mixtures_at_once_answer_as_each_alone(
    client: EngineClient, digests: Mapping[str, str]
) -> None:
    mixtures = [
        {},
        {digests["math"]: 1.0},
        {digests["code"]: -0.5},
        {digests["math"]: 0.7, digests["code"]: 0.3},
    ]
    alone = [
        await answer_to(client, request(f"alone-{index}", PROMPT, mixture))
        for index, mixture in enumerate(mixtures)
    ]
    together = await asyncio.gather(
        *(
            answer_to(client, request(f"many-{index}", PROMPT, mixtures[index % 4]))
            for index in range(16)
        )
    )
    assert len({tuple(answer.ids) for answer in alone}) == 4, "each mixture must change the text"
    for index, answer in enumerate(together):
        assert answer.ids == alone[index % 4].ids


async def test_routed_weights_come_back_with_each_token(
    client: EngineClient, digests: Mapping[str, str]
) -> None:
    rows = [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    routed = EngineRequest(
        "routed",
        PROMPT,
        SamplingSpec(max_new_tokens=3),
        adapters=(digests["math"], digests["code"]),
        routing=TokenRouting("given", {"weights": rows}),
        reports=Reports(weights=True),
    )
    answer = await answer_to(client, routed)
    assert [list(token.weights) for token in answer.tokens] == rows


async def test_closing_the_generator_cancels_the_request(client: EngineClient) -> None:
    async with aclosing(client.submit(EngineRequest("closed", PROMPT, LONG))) as events:
        first = await anext(events)
        assert isinstance(first, TokenEvent)
        assert (await client.call(GetStats())).running == 1
    assert (await client.call(GetStats())).running == 0


async def test_cancelling_the_reading_task_cancels_the_request(client: EngineClient) -> None:
    started = asyncio.Event()

    async def read() -> None:
        async with aclosing(client.submit(EngineRequest("task", PROMPT, LONG))) as events:
            async for _ in events:
                started.set()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await client.call(GetStats())).running == 0


async def test_cancel_ends_the_stream_with_its_final_event(client: EngineClient) -> None:
    finals = []
    async with aclosing(client.submit(EngineRequest("stopped", PROMPT, LONG))) as events:
        async for event in events:
            await client.cancel("stopped")
            if isinstance(event, FinalEvent):
                finals.append(event.reason)
    assert finals == [FinishReason.CANCELLED]


async def test_cancel_ignores_unknown_ids(client: EngineClient) -> None:
    await client.cancel("never-seen")
    assert client.state is RunState.READY


async def test_whatever_readers_do_nothing_is_left_over(client: EngineClient) -> None:
    async def finish(request_id: str) -> None:
        ask = request(request_id, PROMPT, max_new_tokens=20)
        assert (await answer_to(client, ask)).end.reason is FinishReason.LENGTH

    async def leave(request_id: str) -> None:
        async with aclosing(client.submit(EngineRequest(request_id, PROMPT, LONG))) as events:
            await anext(events)

    async def cancel(request_id: str) -> None:
        reading = asyncio.create_task(answer_to(client, EngineRequest(request_id, PROMPT, LONG)))
        while not reading.done():
            await client.cancel(request_id)
            await client.call(GetMerged())
        assert (await reading).end.reason is FinishReason.CANCELLED

    ways = (finish, leave, cancel)
    await asyncio.gather(*(ways[index % 3](f"any-{index}") for index in range(30)))
    stats = await client.call(GetStats())
    assert (stats.running, stats.waiting, stats.blocks_owned) == (0, 0, 0)


async def test_nothing_is_sent_before_the_first_event_is_asked_for(client: EngineClient) -> None:
    events = client.submit(EngineRequest("lazy", PROMPT, LONG))
    stats = await client.call(GetStats())
    assert (stats.running, stats.waiting) == (0, 0)
    await events.aclose()


async def test_a_slow_reader_finds_every_event(client: EngineClient) -> None:
    async with aclosing(client.submit(request("slow", PROMPT, max_new_tokens=6))) as events:
        first = await anext(events)
        while (await client.call(GetStats())).running:
            pass
        rest = [event async for event in events]
    assert isinstance(first, TokenEvent)
    assert [type(event) for event in rest] == [TokenEvent] * 5 + [FinalEvent]


async def test_a_prompt_that_is_too_long_is_refused(client: EngineClient) -> None:
    limit = (await client.info()).max_model_len
    answer = await answer_to(client, request("long", [5] * (limit + 1)))
    assert answer.tokens == []
    assert answer.end.reason is FinishReason.REFUSED
    assert str(limit) in str(answer.end.error)


async def test_a_live_id_is_refused_and_a_finished_one_may_be_used_again(
    client: EngineClient,
) -> None:
    async with aclosing(client.submit(EngineRequest("twice", PROMPT, LONG))) as events:
        await anext(events)
        second = await answer_to(client, request("twice", PROMPT))
        assert second.end.reason is FinishReason.REFUSED
        assert "twice" in str(second.end.error)
        assert isinstance(await anext(events), TokenEvent)
        await client.cancel("twice")
        assert [event async for event in events][-1].request_id == "twice"
    third = await answer_to(client, request("twice", PROMPT, max_new_tokens=2))
    assert third.end.reason is FinishReason.LENGTH


async def test_a_missing_adapter_fails_its_request_alone(client: EngineClient) -> None:
    lost, fine = await asyncio.gather(
        answer_to(client, request("lost", PROMPT, {"sha256:" + "0" * 64: 1.0})),
        answer_to(client, request("fine", PROMPT)),
    )
    assert lost.end.reason is FinishReason.FAILED
    assert "0" * 64 in str(lost.end.error)
    assert fine.end.reason is FinishReason.LENGTH


async def test_load_pin_and_unload(client: EngineClient, digests: Mapping[str, str]) -> None:
    digest = digests["math"]
    loaded = await client.call(LoadAdapter(digest))
    assert loaded.residency is Residency.DEVICE
    assert loaded.rank_rows > 0
    assert (await client.call(Pin(digest, pinned=True))).pinned
    with pytest.raises(AdapterBusyError, match="pinned"):
        await client.call(Unload(digest))
    assert not (await client.call(Pin(digest, pinned=False))).pinned
    assert digest in [adapter.digest for adapter in await client.call(GetResidency())]
    assert await client.call(Unload(digest)) > 0
    assert digest not in [adapter.digest for adapter in await client.call(GetResidency())]


async def test_loading_what_does_not_exist_raises(client: EngineClient) -> None:
    missing = "sha256:" + "0" * 64
    with pytest.raises(EngineError, match=missing):
        await client.call(LoadAdapter(missing))


async def test_a_merged_mixture_changes_no_answer(
    client: EngineClient, digests: Mapping[str, str]
) -> None:
    mixture = {digests["math"]: 0.8}
    asks = [request("base", PROMPT), request("math", PROMPT, mixture)]
    before = [(await answer_to(client, ask)).ids for ask in asks]
    state = await client.call(Merge(ResolvedMixture(tuple(mixture), tuple(mixture.values()))))
    try:
        assert state.mode == "merged"
        assert await client.call(GetMerged()) == state
        asks = [replace(ask, request_id=f"merged-{ask.request_id}") for ask in asks]
        during = [(await answer_to(client, ask)).ids for ask in asks]
    finally:
        restored = await client.call(Merge(None))
    assert during == before
    assert before[0] != before[1], "the mixture must change the text"
    assert restored.mode == "unmerged"


async def test_a_mixture_that_cannot_be_computed_is_not_merged(
    client: EngineClient, digests: Mapping[str, str]
) -> None:
    unequal = ResolvedMixture(tuple(digests.values()), (0.5, 0.5), "linear")
    with pytest.raises(MixtureError, match="rank"):
        await client.call(Merge(unequal))
    assert (await client.call(GetMerged())).mode == "unmerged"


async def test_stats_count_what_ran(client: EngineClient) -> None:
    before = await client.call(GetStats())
    await answer_to(client, request("counted", PROMPT, max_new_tokens=4))
    after = await client.call(GetStats())
    assert after.generated_tokens - before.generated_tokens == 4
    assert after.steps > before.steps
