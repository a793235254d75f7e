"""OpenAI's routes: both clients say what the server says, in OpenAI's shapes."""

from __future__ import annotations

from operator import methodcaller
from typing import Any

import pytest

from adaptermix import InvalidInputError, Mixture, SamplingParams
from tests.adaptermix.client.asking import Asker
from tests.server.live import Live

SAMPLING = SamplingParams(max_tokens=6, ignore_eos=True)
MIXTURE = Mixture(math=0.7, code=0.3)
WEIGHTS = [[0.7, 0.3]] * 6
MESSAGES = [{"role": "user", "content": "hello"}]


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
