"""Tokens that the tokenizer has and the model has not: refused wherever they come in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from router_engine.model.tiny import save_tiny, tiny_config
from router_engine.model.tiny_tokenizer import tiny_tokenizer
from tests.server.live import Live, serving, tiny_settings

EXTRA = "<extra>"
VOCABULARY = tiny_config().vocab_size


@pytest.fixture(scope="module", params=["reference", "cpu"])
def odd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose tokenizer has a token more than the embedding has rows."""
    root = tmp_path_factory.mktemp("odd")
    model = save_tiny(root / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([EXTRA])
    assert tokenizer.convert_tokens_to_ids(EXTRA) >= VOCABULARY
    tokenizer.save_pretrained(model)
    settings = tiny_settings(root / "cache", model=str(model), kernels=request.param)
    with serving(settings) as live:
        yield live


ASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("/generate", {"inputs": f"a {EXTRA}"}),
    "stream": ("/generate_stream", {"inputs": f"a {EXTRA}"}),
    "prompt of a score": ("/score", {"inputs": EXTRA, "completions": ["a"]}),
    "completion of a score": ("/score", {"inputs": "a", "completions": ["b", EXTRA]}),
    "text of a completion": ("/v1/completions", {"model": "model", "prompt": EXTRA}),
    "ids": ("/v1/completions", {"model": "model", "prompt": [1, VOCABULARY]}),
    "several": ("/v1/completions", {"model": "model", "prompt": [[1], [VOCABULARY]]}),
    "chat": (
        "/v1/chat/completions",
        {"model": "model", "messages": [{"role": "user", "content": EXTRA}]},
    ),
}


@pytest.mark.parametrize("ask", ASKS)
def test_it_is_refused_and_others_go_on(odd: Live, ask: str) -> None:
    path, body = ASKS[ask]
    answer = odd.client.post(path, json=body)
    assert answer.status_code == 422, answer.text
    assert str(VOCABULARY) in answer.text or "chat template" in answer.text
    assert odd.generate("a", parameters={"max_new_tokens": 2}).status_code == 200
