"""generate, stream, score: both clients say what the server says."""

from __future__ import annotations

import asyncio
from operator import methodcaller

import pytest

from adaptermix import AsyncClient, Mixture, SamplingParams
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


def test_many_at_once(served: Live) -> None:
    prompts = [f"hello {number}" for number in range(8)]

    async def main() -> list[Answer]:
        async with AsyncClient(served.url, timeout=HANG_SECONDS) as client:
            return await asyncio.gather(*(client.generate(one, SAMPLING) for one in prompts))

    said = [served.answer(one, parameters=NATIVE)["generated_text"] for one in prompts]
    assert [answer.text for answer in asyncio.run(main())] == said
