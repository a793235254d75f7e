"""generate, stream, score and OpenAI's routes: both clients say what the server says."""

from __future__ import annotations

import asyncio
from operator import methodcaller
from typing import Any

import pytest

from adaptermix import AsyncClient, InvalidInputError, Mixture, SamplingParams
from adaptermix.answers import Answer, Piece
from router_engine.calls import GetStats
from tests.adaptermix.client.asking import Asker
from tests.server.live import Live
from tests.support.waiting import HANG_SECONDS, wait_for

SAMPLING = SamplingParams(max_tokens=6, ignore_eos=True)
LONG = SamplingParams(max_tokens=900, ignore_eos=True)
NATIVE = {"max_new_tokens": 6, "ignore_eos_token": True, "details": True}
MIXTURE = Mixture(math=0.7, code=0.3)
WEIGHTS = [[0.7, 0.3]] * 6
MESSAGES = [{"role": "user", "content": "hello"}]


def test_an_answer_under_a_mixture(served: Live, ask: Asker) -> None:
    answer: Answer = ask(lambda client: client.generate("hello", SAMPLING, mixture=MIXTURE))
    said = served.answer("hello", parameters=NATIVE, mixture=MIXTURE.to_json())
    assert answer.text == said["generated_text"]
    assert (answer.adapters, answer.weights) == (["math@1", "code@1"], WEIGHTS)
    assert [token.id for token in answer.tokens] == [one["id"] for one in said["details"]["tokens"]]
    assert answer.details is not None
    assert answer.details.finish_reason == "length"


def test_an_answer_of_the_base(served: Live, ask: Asker) -> None:
    said = served.answer("hello", parameters=NATIVE)
    for mixture in (None, Mixture.base()):
        answer = ask(methodcaller("generate", "hello", SAMPLING, mixture=mixture))
        assert (answer.text, answer.adapters) == (said["generated_text"], [])
        assert answer.weights == []


def test_a_prompt_in_the_chat_template(served: Live, ask: Asker) -> None:
    answer = ask(lambda client: client.generate("hello", SAMPLING, apply_chat_template=True))
    said = served.answer("hello", parameters=NATIVE | {"apply_chat_template": True})
    assert answer.text == said["generated_text"]


def test_the_http_api_s_own_fields(served: Live, ask: Asker) -> None:
    spec = {"adapters": [{"name": "code", "weight": 2.0}]}
    parameters = NATIVE | {"details": False}
    answer: Answer = ask(lambda client: client.generate("hello", parameters, mixture=spec))
    said = served.answer("hello", parameters=parameters, mixture=spec)
    assert (answer.text, answer.details, answer.tokens) == (said["generated_text"], None, [])


def test_pieces_with_their_weights_and_the_whole_at_the_end(served: Live, ask: Asker) -> None:
    pieces: list[Piece] = ask.pieces(
        lambda client: client.stream("hello", SAMPLING, mixture=MIXTURE)
    )
    said = served.answer("hello", parameters=NATIVE, mixture=MIXTURE.to_json())
    assert "".join(piece.text for piece in pieces) == said["generated_text"]
    assert [piece.weights for piece in pieces] == WEIGHTS
    assert [piece.token.id for piece in pieces] == [
        token["id"] for token in said["details"]["tokens"]
    ]
    assert all(piece.answer is None for piece in pieces[:-1])
    whole = pieces[-1].answer
    assert whole is not None
    assert (whole.text, whole.weights) == (said["generated_text"], WEIGHTS)


def test_a_router_s_weights_at_each_piece(ask: Asker) -> None:
    mixture = Mixture.routed("uniform", candidates=["math", "code"], level="token", every=2)
    pieces = ask.pieces(lambda client: client.stream("hello", SAMPLING, mixture=mixture))
    assert [piece.weights for piece in pieces] == [[0.5, 0.5]] * 6


def test_pieces_of_the_base_have_no_weights(ask: Asker) -> None:
    top = SamplingParams(max_tokens=2, ignore_eos=True, top_logprobs=3)
    pieces = ask.pieces(lambda client: client.stream("hello", top))
    assert [piece.weights for piece in pieces] == [None, None]
    assert [len(piece.top_tokens) for piece in pieces] == [3, 3]


def is_idle(live: Live) -> bool:
    """Whether nothing is left of any request."""
    stats = live.run(live.container.services.engine.call(GetStats()))
    return not (stats.running or stats.waiting or live.container.admission.live)


def cancelled(live: Live) -> float:
    """Requests that were cancelled, as /metrics counts them."""
    rows = live.client.get("/metrics").text.splitlines()
    ended = [row for row in rows if row.startswith("adaptermix_requests_total{")]
    return sum(float(row.rsplit(" ", 1)[1]) for row in ended if '"cancelled"' in row)


@pytest.mark.parametrize("name", ["stream", "stream_chat", "stream_complete"])
def test_a_stream_that_is_closed_early_cancels_the_request(
    served: Live, ask: Asker, name: str
) -> None:
    prompt = MESSAGES if name == "stream_chat" else "hello"
    before = cancelled(served)
    assert len(ask.pieces(lambda client: getattr(client, name)(prompt, LONG), most=2)) == 2
    wait_for(lambda: is_idle(served))
    assert cancelled(served) == before + 1


def test_a_stream_that_nobody_reads_is_not_asked_for(served: Live, ask: Asker) -> None:
    before = cancelled(served)
    assert ask.pieces(lambda client: client.stream("hello", LONG), most=0) == []
    assert (is_idle(served), cancelled(served)) == (True, before)


def test_scores(served: Live, ask: Asker) -> None:
    reply = ask(lambda client: client.score("hello", [" a", " b"], mixture=MIXTURE))
    body = {"inputs": "hello", "completions": [" a", " b"], "mixture": MIXTURE.to_json()}
    said = served.client.post("/score", json=body).json()
    assert [score.logprob for score in reply.scores] == [one["logprob"] for one in said["scores"]]
    assert reply.scores[0].routing.weights == [[0.7, 0.3]] * len(reply.scores[0].tokens)


def test_chat_asks_for_the_base_s_name_itself(served: Live, ask: Asker) -> None:
    reply = ask(lambda client: client.chat(MESSAGES, SAMPLING, mixture=MIXTURE))
    body = {
        "model": "tiny-random",
        "messages": MESSAGES,
        "max_tokens": 6,
        "ignore_eos": True,
        "temperature": 0,
        "mixture": MIXTURE.to_json(),
    }
    said = served.client.post("/v1/chat/completions", json=body).json()
    assert reply.choices[0].message.content == said["choices"][0]["message"]["content"]
    assert reply.choices[0].routing.weights == WEIGHTS
    assert reply.usage.completion_tokens == 6
    assert reply.model == "tiny-random"


def test_chat_with_an_adapter_and_more_of_openai_s_fields(ask: Asker) -> None:
    top = SamplingParams(max_tokens=2, ignore_eos=True, top_logprobs=2, stop="zzz")
    reply = ask(lambda client: client.chat(MESSAGES, top, model="math", routing=False, n=2))
    assert [choice.routing for choice in reply.choices] == [None, None]
    assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 2


def test_chat_in_chunks(ask: Asker) -> None:
    whole = ask(lambda client: client.chat(MESSAGES, SAMPLING, mixture=MIXTURE))
    chunks = ask.pieces(lambda client: client.stream_chat(MESSAGES, SAMPLING, mixture=MIXTURE))
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content


def test_completions_of_several_prompts(ask: Asker) -> None:
    reply = ask(lambda client: client.complete(["hello", "there"], SAMPLING))
    alone = [ask(methodcaller("complete", prompt, SAMPLING)) for prompt in ("hello", "there")]
    texts = [choice.text for choice in reply.choices]
    assert texts == [one.choices[0].text for one in alone]
    chunks = ask.pieces(lambda client: client.stream_complete(["hello", "there"], SAMPLING))
    for index, text in enumerate(texts):
        parts = [c.text for chunk in chunks for c in chunk.choices if c.index == index]
        assert "".join(parts) == text


def test_a_mapping_goes_as_it_is(ask: Asker) -> None:
    fields = {"max_tokens": 2, "ignore_eos": True, "temperature": 0}
    chat = ask(lambda client: client.chat(MESSAGES, fields))
    assert chat.usage.completion_tokens == 2
    assert ask(lambda client: client.complete("hello", fields)).usage.completion_tokens == 2


@pytest.mark.parametrize("name", ["truncate", "uncertainty", "gates"])
def test_what_openai_s_api_cannot_say_is_refused(ask: Asker, name: str) -> None:
    options: dict[str, Any] = {name: 1 if name == "truncate" else True}
    with pytest.raises(InvalidInputError, match=name):
        ask(lambda client: client.chat(MESSAGES, SamplingParams(**options)))


def test_many_at_once(served: Live) -> None:
    prompts = [f"hello {number}" for number in range(8)]

    async def main() -> list[Answer]:
        async with AsyncClient(served.url, timeout=HANG_SECONDS) as client:
            return await asyncio.gather(*(client.generate(one, SAMPLING) for one in prompts))

    said = [served.answer(one, parameters=NATIVE)["generated_text"] for one in prompts]
    assert [answer.text for answer in asyncio.run(main())] == said
