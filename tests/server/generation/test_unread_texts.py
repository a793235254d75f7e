"""Texts that a model's own tokenizer cannot read, and tokenizers that can read none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from router_engine.errors import UnsupportedModelError
from router_engine.model.tiny import save_tiny
from router_engine.model.tiny_tokenizer import tiny_tokenizer
from server.errors import InputError
from server.generation.tokenization import Tokenization
from server.models import BaseFiles, load_tokenizer
from tests.server.live import Live, serving, tiny_settings

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
WORDS: dict[str, Any] = {
    "WordLevel": {"type": "WordLevel", "vocab": {"a": 5, "b": 6}, "unk_token": "<none>"},
    "Unigram": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0], ["b", -1.0]]},
}
BARE = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}


def with_words(folder: Path, kind: str) -> Path:
    """A tiny model's folder whose tokenizer knows `a` and `b`, and has no token for the rest."""
    save_tiny(folder)
    file = folder / "tokenizer.json"
    changed = BARE | {"model": WORDS[kind], "added_tokens": []}
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module", params=WORDS)
def few(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    root = tmp_path_factory.mktemp("few")
    model = with_words(root / "model", request.param)
    with serving(tiny_settings(root / "cache", model=str(model))) as live:
        yield live


TEXT = "hi there"
CHAT = {"model": "model", "messages": [{"role": "user", "content": TEXT}]}
TWO = {"inputs": "a", "completions": ["b", TEXT]}
ASKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "generate": ("/generate", "inputs", {"inputs": TEXT}),
    "the last of it": ("/generate", "inputs", {"inputs": TEXT, "parameters": {"truncate": 4}}),
    "as a chat": (
        "/generate",
        "messages",
        {"inputs": TEXT, "parameters": {"apply_chat_template": True}},
    ),
    "stream": ("/generate_stream", "inputs", {"inputs": TEXT}),
    "score": ("/score", "inputs", {"inputs": TEXT, "completions": ["a"]}),
    "completion of a score": (
        "/score",
        "completions.1",
        TWO,
    ),
    "completions": ("/v1/completions", "prompt", {"model": "model", "prompt": TEXT}),
    "chat": ("/v1/chat/completions", "messages", CHAT),
}


@pytest.mark.parametrize("ask", ASKS)
def test_it_is_refused_and_others_go_on(few: Live, ask: str) -> None:
    path, field, body = ASKS[ask]
    answer = few.client.post(path, json=body)
    assert answer.status_code == 422, answer.text
    assert f"{field} = " in answer.text
    assert "tokenizer cannot read it" in answer.text
    assert few.generate("a", parameters={"max_new_tokens": 2}).status_code == 200


def test_a_template_may_make_what_is_no_text() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = '{{ "\\ud800" }}'
    with pytest.raises(InputError, match=r"messages = .* tokenizer cannot read it"):
        Tokenization(tokenizer, (2,), 64).chat([{"role": "user", "content": "x"}])


def _changed(folder: Path, file: str, **keys: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("tokenizer_config.json", {"model_max_length": "x"}),
        ("tokenizer_config.json", {"model_max_length": [5]}),
        ("tokenizer.json", BARE | {"model": WORDS["WordLevel"] | {"vocab": {}}}),
    ],
)
def test_what_reads_no_text_is_refused_at_the_start(
    tmp_path: Path, file: str, keys: dict[str, Any]
) -> None:
    folder = save_tiny(tmp_path / "model")
    _changed(folder, file, **keys)
    if file == "tokenizer.json":
        _changed(folder, file, added_tokens=[])
        _changed(folder, "tokenizer_config.json", eos_token=None, bos_token=None, unk_token=None)
    with pytest.raises(UnsupportedModelError) as raised:
        load_tokenizer(BaseFiles("model", str(folder)))
    assert str(folder) in str(raised.value)
    assert "its tokenizer cannot" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_of_few_words_is_served(tmp_path: Path) -> None:
    for kind in WORDS:
        tokenizer = load_tokenizer(BaseFiles("model", str(with_words(tmp_path / kind, kind))))
        assert len(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()).encode("a").ids) == 1
