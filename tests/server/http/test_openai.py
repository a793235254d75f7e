"""The /v1 routes, through the `openai` client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from router_engine.model.tiny_tokenizer import tiny_tokenizer
from server.errors import InputError
from server.generation.tokenization import Tokenization
from server.http.openai.wire import size_of_chat
from server.schemas.openai import ChatBody
from tests.server.live import Live

ROUTED: dict[str, Any] = {
    "router": {"name": "similarity", "level": "token", "candidates": ["math", "code"]}
}


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client: openai.OpenAI, **given: Any) -> Any:
    body: dict[str, Any] = {
        "model": "tiny-random",
        "prompt": "hello",
        "max_tokens": 6,
        "temperature": 0,
    }
    return client.completions.create(**body | given)


def chat(client: openai.OpenAI, **given: Any) -> Any:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    body: dict[str, Any] = {
        "model": "tiny-random",
        "messages": messages,
        "max_tokens": 6,
        "temperature": 0,
    }
    return client.chat.completions.create(**body | given)


def test_completions(client: openai.OpenAI, live: Live) -> None:
    reply = complete(client)
    native = live.answer(parameters={"max_new_tokens": 6})
    assert reply.choices[0].text == native["generated_text"]
    assert reply.choices[0].finish_reason in ("length", "stop")
    assert reply.usage.prompt_tokens == 5
    assert reply.usage.total_tokens == 5 + reply.usage.completion_tokens


@pytest.mark.parametrize(
    "prompt",
    [[[5, 5]] * 49_000, [[]] * 4097, [[5]] * 49_000 + [["a"]], [[5]] * 4096 + [1]],
    ids=["lists", "empty lists", "a bad end", "a number at the end"],
)
def test_too_many_prompts_are_refused_by_their_number(live: Live, prompt: list[object]) -> None:
    body = {"model": live.container.services.base_name, "prompt": prompt, "max_tokens": 1}
    answer = live.client.post("/v1/completions", json=body)
    assert answer.status_code == 422
    told = answer.json()["error"]["message"]
    assert f"prompt: {len(prompt)} prompts of token ids" in told
    assert "4096" in told


def test_a_long_prompt_of_ids_is_one_prompt(live: Live) -> None:
    body = {"model": live.container.services.base_name, "prompt": [5] * 5000, "max_tokens": 1}
    answer = live.client.post("/v1/completions", json=body)
    assert "5000 tokens" in answer.json()["error"]["message"]


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_a_name_that_the_template_does_not_read_is_refused(live: Live, role: str) -> None:
    messages = [{"role": role, "content": "a", "name": "Ann"}, {"role": "user", "content": "b"}]
    body = {"model": live.container.services.base_name, "messages": messages, "max_tokens": 1}
    answer = live.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 422
    told = answer.json()["error"]
    assert told["param"] == "messages.name"
    assert role in told["message"]
    del messages[0]["name"]
    assert live.client.post("/v1/chat/completions", json=body).status_code == 200


def test_a_name_that_the_template_reads_is_applied() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}"
        "{% if m['role'] == 'user' and m['name'] %} {{ m['name'] }}{% endif %}"
        ": {{ m['content'] }}\n{% endfor %}"
    )
    tokenization = Tokenization(tokenizer, (0,))
    ann = {"role": "user", "content": "a", "name": "Ann"}
    assert tokenization.decode(tokenization.chat([ann])) == "user Ann: a\n"
    for role in ("assistant", "system"):
        with pytest.raises(InputError, match=f"{role}.*does not read it"):
            tokenization.chat([ann, ann | {"role": role}])


def test_a_name_is_bounded_and_counted(live: Live) -> None:
    messages = [{"role": "user", "content": "a", "name": "n" * 65}]
    body = {"model": live.container.services.base_name, "messages": messages}
    answer = live.client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, "64" in answer.text) == (422, True)
    messages[0]["name"] = "n" * 64
    named = ChatBody.model_validate(body)
    del messages[0]["name"]
    assert size_of_chat(named) >= size_of_chat(ChatBody.model_validate(body)) + 64


def test_model_names_an_adapter(client: openai.OpenAI, live: Live) -> None:
    native = live.answer(parameters={"max_new_tokens": 6, "adapter_id": "math"})
    for model in ("math", "math@1"):
        assert complete(client, model=model).choices[0].text == native["generated_text"]


def test_mixture_is_an_extra_field(client: openai.OpenAI, live: Live) -> None:
    mixture = {"adapters": [{"name": "math", "weight": 0.5}, {"name": "wide", "weight": -0.5}]}
    native = live.answer(parameters={"max_new_tokens": 6}, mixture=mixture)
    reply = complete(client, extra_body={"mixture": mixture, "routing": True})
    assert reply.choices[0].text == native["generated_text"]
    assert reply.choices[0].routing["adapters"] == ["math@1", "wide@1"]
    assert reply.choices[0].routing["weights"][0] == [0.5, -0.5]


def test_a_stream_equals_the_whole(client: openai.OpenAI) -> None:
    asked = {"temperature": 1, "seed": 4, "extra_body": {"ignore_eos": True}}
    whole = complete(client, **asked)
    chunks = list(complete(client, **asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == "length"


def test_chat_streams_with_a_role_and_a_finish(client: openai.OpenAI) -> None:
    asked = {"temperature": 1, "seed": 4, "extra_body": {"ignore_eos": True, "mixture": ROUTED}}
    whole = chat(client, **asked)
    chunks = list(chat(client, **asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 6


def test_several_choices_draw_with_seeds_that_count_up(client: openai.OpenAI) -> None:
    asked = {"temperature": 1, "extra_body": {"ignore_eos": True}}
    several = complete(client, n=3, seed=7, **asked)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    second = complete(client, seed=8, **asked)
    assert several.choices[1].text == second.choices[0].text
    assert several.usage.completion_tokens == 18
    assert several.usage.prompt_tokens == 5


def test_prompts_as_lists_of_texts_and_of_ids(client: openai.OpenAI) -> None:
    one = complete(client).choices[0].text
    both = complete(client, prompt=["hello", "hello"])
    assert [choice.text for choice in both.choices] == [one, one]
    assert both.usage.prompt_tokens == 10
    ids = [74, 71, 78, 78, 81]
    assert complete(client, prompt=ids).choices[0].text == one
    assert complete(client, prompt=[ids]).choices[0].text == one


def test_echo_and_stop(client: openai.OpenAI) -> None:
    text = complete(client, max_tokens=20, extra_body={"ignore_eos": True}).choices[0].text
    echoed = complete(client, max_tokens=20, echo=True, extra_body={"ignore_eos": True})
    assert echoed.choices[0].text == "hello" + text
    stopped = complete(client, max_tokens=20, stop=text[4:6], extra_body={"ignore_eos": True})
    assert stopped.choices[0].text == text[: text.index(text[4:6])]
    assert stopped.choices[0].finish_reason == "stop"


def test_logprobs_in_both_shapes(client: openai.OpenAI) -> None:
    reply = complete(client, logprobs=2, extra_body={"ignore_eos": True})
    logprobs = reply.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 6
    assert logprobs.text_offset[0] == 0
    assert all(1 <= len(top) <= 2 for top in logprobs.top_logprobs)
    content = chat(client, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(content[0].top_logprobs) == 3
    assert content[0].top_logprobs[0].logprob == pytest.approx(content[0].logprob)


def test_content_parts_are_joined(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    one = chat(client, messages=[{"role": "user", "content": "hi"}])
    assert chat(client, messages=[{"role": "user", "content": parts}]).choices == one.choices


def test_models_are_the_base_and_the_adapters(client: openai.OpenAI) -> None:
    cards = {card.id: card for card in client.models.list()}
    assert cards["tiny-random"].to_dict()["parent"] is None
    assert cards["math"].to_dict()["parent"] == "tiny-random"
    assert str(client.models.retrieve("math@1").to_dict()["root"]).startswith("sha256:")
    assert client.models.retrieve("tiny-random").id == "tiny-random"


def test_defaults_that_ask_for_nothing_are_taken(client: openai.OpenAI) -> None:
    assert complete(client, best_of=1, logit_bias={}, user="me").choices
    assert chat(client, tools=[], response_format={"type": "text"}).choices


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "tools": {"tools": [{"type": "function", "function": {"name": "f"}}]},
    "response_format": {"response_format": {"type": "json_object"}},
    "logit_bias": {"logit_bias": {"5": 1}},
}


@pytest.mark.parametrize(("field", "given"), UNSUPPORTED.items())
def test_what_is_not_supported_is_refused_by_name(
    client: openai.OpenAI, field: str, given: dict[str, Any]
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        chat(client, **given)
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["param"] == field
    assert "not supported" in body["message"]


def test_errors_have_openai_s_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        complete(client, model="maht")
    assert "math" in str(caught.value)
    with pytest.raises(openai.UnprocessableEntityError, match="must be the base"):
        complete(client, model="math", extra_body={"mixture": ROUTED})
    with pytest.raises(openai.UnprocessableEntityError, match="n_tokens"):
        complete(client, extra_body={"n_tokens": 3})
    with pytest.raises(openai.UnprocessableEntityError, match="0 to 258"):
        complete(client, prompt=[1, 999])
    with pytest.raises(openai.UnprocessableEntityError, match="logprobs"):
        complete(client, echo=True, logprobs=1)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("completions", {"prompt": ""}, "prompt"),
        ("completions", {"prompt": [""]}, "prompt"),
        ("completions", {"prompt": [[]]}, "prompt"),
        ("completions", {"prompt": "a " * 5000}, "prompt"),
        ("completions", {"prompt": "a", "max_tokens": 5000}, "max_tokens"),
        ("completions", {"prompt": "a", "min_tokens": 5000}, "min_tokens"),
        ("completions", {"prompt": "a", "min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a " * 5000}]}, "messages"),
        ("chat/completions", {"max_tokens": 5000}, "max_tokens"),
        ("chat/completions", {"max_completion_tokens": 5000}, "max_completion_tokens"),
    ],
)
def test_what_has_no_room_is_told_by_the_field_that_was_sent(
    live: Live, path: str, body: dict[str, Any], field: str
) -> None:
    asked = {"model": "tiny-random", **body}
    if path == "chat/completions":
        asked.setdefault("messages", [{"role": "user", "content": "a"}])
    answer = live.client.post(f"/v1/{path}", json=asked)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["param"].split(".")[0] == field
    assert "new_tokens" not in error["message"]
    assert "truncate" not in error["message"]
