"""Work is bounded before it is done, and never holds up the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from router_engine.model.tiny_tokenizer import tiny_tokenizer
from server.errors import InputError
from server.generation.tokenization import Tokenization
from server.http.openai.wire import prompts_of, read_prompt, reads_text
from server.schemas.openai import CompletionBody
from tests.server.live import Live, serving, tiny_settings

BIG = "word " * 1_600_000  # 8 MB
SMALL = {"max_new_tokens": 1}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server where few may wait."""
    with serving(tiny_settings(tmp_path_factory.mktemp("few"), max_waiting=8)) as live:
        yield live


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": BIG, "parameters": SMALL}),
        ("/score", {"inputs": BIG, "completions": ["a"]}),
        ("/score", {"inputs": "a", "completions": [BIG]}),
        ("/v1/completions", {"model": "tiny-random", "prompt": BIG}),
        ("/v1/completions", {"model": "tiny-random", "prompt": [BIG[:4_000_000], "a"]}),
    ],
)
def test_a_prompt_that_cannot_fit_is_refused_unread(
    few: Live, path: str, body: dict[str, Any]
) -> None:
    answer = few.client.post(path, json=body)
    assert answer.status_code in (413, 422)
    assert "characters" in answer.text or "larger" in answer.text


def test_the_end_of_a_long_prompt_is_the_same_prompt(few: Live) -> None:
    text = "some text that goes on. " * 300_000
    parameters = {"max_new_tokens": 8, "truncate": 50}
    long = few.answer(text, parameters=parameters)
    short = few.answer(
        text[-50:], parameters={"max_new_tokens": 8, "details": True, "truncate": 50}
    )
    assert long["generated_text"] == short["generated_text"]


@pytest.mark.parametrize("count", [1, 7, 50, 400])
def test_the_last_tokens_are_those_of_the_whole_text(count: int) -> None:
    tokenization = Tokenization(tiny_tokenizer(), (2,), 1024)
    text = "".join(chr(97 + i * i % 26) for i in range(1000))
    assert tokenization.encode_last(text, count) == tokenization.encode(text)[-count:]


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": ["a"] * 9},
        {"prompt": ["a"] * 20_000},
        {"prompt": [[5]] * 300},
        {"prompt": ["a"] * 3, "n": 3},
    ],
)
def test_more_than_may_wait_is_refused_once_with_the_bound(few: Live, body: dict[str, Any]) -> None:
    answer = few.client.post("/v1/completions", json={"model": "tiny-random", **body})
    assert answer.status_code == 422
    assert "at most 8" in answer.text
    assert "ADAPTERMIX_MAX_WAITING" in answer.text


def test_as_many_as_may_wait_are_answered(few: Live) -> None:
    body = {"model": "tiny-random", "prompt": ["a"] * 8, "max_tokens": 2}
    answer = few.client.post("/v1/completions", json=body)
    assert answer.status_code == 200
    assert len(answer.json()["choices"]) == 8


def test_names_are_looked_up_while_the_admin_s_work_waits(few: Live, tmp_path: Path) -> None:
    """All threads of other work stand still."""
    gate = threading.Event()

    async def occupy() -> list[asyncio.Task[bool]]:
        return [asyncio.create_task(asyncio.to_thread(gate.wait)) for _ in range(64)]

    held = few.run(occupy())
    try:
        answer = few.client.post(
            "/generate", json={"inputs": "a", "parameters": SMALL | {"adapter_id": "no"}}
        )
        assert answer.status_code == 404
        assert few.client.get("/v1/models").status_code == 200
        long = few.client.post("/generate", json={"inputs": "a" * 900, "parameters": SMALL})
        assert long.status_code == 200
    finally:
        gate.set()
        few.run(_all(held))


async def _all(tasks: list[asyncio.Task[bool]]) -> None:
    await asyncio.gather(*tasks)


class Watched(Tokenization):
    """Notes what is read, and on which thread."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.checked: list[int] = []
        self.decoded: list[int] = []

    def check_ids(self, ids: Sequence[int], field: str) -> tuple[int, ...]:
        self.checked.append(len(ids))
        return super().check_ids(ids, field)

    def decode(self, ids: Sequence[int]) -> str:
        self.decoded.append(len(ids))
        return super().decode(ids)


@pytest.mark.parametrize(
    "prompt", [[5] * 64, [5] * 400_000, [[5], [5] * 64], [[5] * 63, [2**62] * 100_000]]
)
def test_ids_are_counted_before_they_are_looked_at(prompt: list[Any]) -> None:
    watched = Watched(tiny_tokenizer(), (2,), 64)
    with pytest.raises(InputError, match="may have 64 tokens"):
        prompts_of(CompletionBody(model="m", prompt=prompt), watched)
    assert watched.checked == watched.decoded == []


@pytest.mark.parametrize(
    ("more", "is_read"),
    [
        ({}, False),
        ({"mixture": {"adapters": [{"name": "a"}]}}, False),
        ({"mixture": {"router": {"name": "random", "level": "token", "candidates": ["a"]}}}, False),
        ({"mixture": {"router": {"name": "random", "candidates": ["a"]}}}, True),
        ({"echo": True}, True),
    ],
)
def test_ids_are_spelled_where_their_text_is_read(more: dict[str, Any], *, is_read: bool) -> None:
    watched = Watched(tiny_tokenizer(), (2,), 64)
    body = CompletionBody.model_validate({"model": "m", "prompt": [[5, 6], [7]], **more})
    assert reads_text(body) == is_read
    prompts = [
        read_prompt(prompt, watched, with_text=is_read) for prompt in prompts_of(body, watched)
    ]
    assert [ids for ids, _ in prompts] == [(5, 6), (7,)]
    assert watched.decoded == ([2, 1] if is_read else [])
    assert all(bool(text) == is_read for _, text in prompts)


def test_ids_too_long_name_the_bound(few: Live) -> None:
    most = few.container.services.info.max_model_len
    for prompt in ([5] * most, [[5], [5] * most]):
        answer = few.client.post("/v1/completions", json={"model": "tiny-random", "prompt": prompt})
        assert answer.status_code == 422
        assert f"prompt = {most} tokens" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["a"] * 70}),
        ("/v1/completions", {"prompt": ["a" * 4500]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": ""}] * 70}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 70}]},
        ),
        ("/score", {"inputs": "a", "completions": ["b"] * 64}),
    ],
)
def test_many_short_texts_are_read_beside_the_loop(
    bare: Live, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    encode = Tokenization.encode

    def noted(self: Tokenization, text: str, **options: Any) -> tuple[int, ...]:
        threads.add(threading.current_thread().name.partition("_")[0])
        return encode(self, text, **options)

    monkeypatch.setattr(Tokenization, "encode", noted)
    model = {} if path == "/score" else {"model": "tiny-random", "max_tokens": 1}
    assert bare.client.post(path, json=model | body).status_code in (200, 422)
    assert threads == {"bodies"}


@pytest.mark.parametrize("count", [1, 11, 2048])
def test_the_parts_of_all_messages_are_bounded_together(few: Live, count: int) -> None:
    part = {"type": "text", "text": ""}
    body = {
        "model": "tiny-random",
        "messages": [{"role": "user", "content": [part] * (1 + 4096 // count)}] * count,
    }
    answer = few.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 422
    assert "parts of content; all together may have 4096" in answer.json()["error"]["message"]


def test_an_adapter_that_could_never_be_loaded_is_refused(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    with serving(tiny_settings(tmp_path, adapter_memory=14_847)) as live:
        refused = live.publish(folders["math"], "math")
        assert refused.status_code == 422
        assert "needs 14,848 bytes on the device, which has 14,847 for adapters" in refused.text
        assert "ADAPTERMIX_ADAPTER_MEMORY" in refused.text
        checked = live.upload("/admin/adapters/check", folders["math"], "math").json()
        assert [problem["where"] for problem in checked["problems"]] == ["size"]
        assert not checked["loads"]


def test_texts_that_are_wrong_are_told_after_a_few_lines(few: Live) -> None:
    lines = b"not json\n" * 1_000_000
    files = [("files", ("adapter_config.json", json.dumps({"peft_type": "LORA"}).encode()))]
    answer = few.client.post(
        "/admin/adapters", data={"name": "x"}, files=[*files, ("texts", ("texts.jsonl", lines))]
    )
    assert answer.status_code == 422
    assert len(answer.content) < 1500
