"""POST /score: scores are those of generating the same text, and nothing leaks from behind."""

from __future__ import annotations

from typing import Any

import pytest

from server.http.native_wire import score_input_of
from server.schemas.score import ScoreBody
from tests.server.generation.test_generate import FIXED, MIXTURES, TOKEN_ROUTED, parameters
from tests.server.live import Live

PROMPT = "a question"


def score(live: Live, completions: list[str], **body: Any) -> dict[str, Any]:
    response = live.client.post(
        "/score", json={"inputs": PROMPT, "completions": completions, **body}
    )
    assert response.status_code == 200, response.text
    return dict(response.json())


@pytest.mark.parametrize("name", MIXTURES)
def test_the_score_of_a_generated_answer_is_what_its_tokens_had(name: str, live: Live) -> None:
    mixture = {} if MIXTURES[name] is None else {"mixture": MIXTURES[name]}
    details = live.answer(PROMPT, parameters=parameters(), **mixture)["details"]
    ids = tuple(token["id"] for token in details["tokens"])
    body = ScoreBody.model_validate({"inputs": PROMPT, "completions": ["-"], **mixture})
    generation = live.container.generation
    (job,) = live.run(generation.prepare_scores(score_input_of(body, generation), [ids]))
    scored = live.run(generation.run(job))
    assert tuple(piece.event.token_id for piece in scored.pieces) == ids
    drawn = [token["logprob"] for token in details["tokens"]]
    assert [piece.event.logprob for piece in scored.pieces] == pytest.approx(drawn, abs=1e-4)
    if name != "base":
        for ours, theirs in zip(scored.weights(), details["routing"]["weights"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("lag", [0, 1])
def test_weights_at_a_token_come_from_the_text_before_it(lag: int, live: Live) -> None:
    """Two completions that part at byte 3: so far the weights are equal, later they are not."""
    router = {**TOKEN_ROUTED["router"], "every": 1, "lag": lag}
    reply = score(live, ["abcdefgh", "abcxyzuv"], mixture={"router": router})
    one, two = (each["routing"]["weights"] for each in reply["scores"])
    seen = 4 + lag  # the pass that yields token 3 has seen three; the next sees token 3
    assert one[:seen] == two[:seen]
    assert all(a != b for a, b in zip(one[seen:], two[seen:], strict=True))  # negative control
    probabilities = [[t["logprob"] for t in each["tokens"]] for each in reply["scores"]]
    assert probabilities[0][:3] == pytest.approx(probabilities[1][:3], abs=1e-5)


def test_many_completions_are_scored_as_each_alone(live: Live) -> None:
    texts = [" one", " two", " and a longer one", " t"]
    together = score(live, texts, mixture=FIXED)["scores"]
    for text, found in zip(texts, together, strict=True):
        (alone,) = score(live, [text], mixture=FIXED)["scores"]
        assert found["logprob"] == pytest.approx(alone["logprob"], abs=1e-4)
        assert "".join(token["text"] for token in found["tokens"]) == text


def test_an_adapter_by_name_is_a_mixture_of_one(live: Live) -> None:
    single = {"adapters": [{"name": "math"}]}
    (by_name,) = score(live, [" x"], adapter="math")["scores"]
    (by_mixture,) = score(live, [" x"], mixture=single)["scores"]
    (base,) = score(live, [" x"])["scores"]
    assert by_name == by_mixture
    assert by_name["logprob"] != base["logprob"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"completions": []}, "completions"),
        ({"completions": ["a", ""]}, "completions.1"),
        ({"completions": ["a"] * 65}, "completions"),
        ({"completions": ["a"], "adapter": "math", "mixture": FIXED}, "either adapter or mixture"),
        ({"completions": ["a"], "temperature": 1}, "temperature is not a field"),
        ({"completions": ["a" * 5000]}, "too long"),
        ({"completions": ["a"], "adapter": "nobody"}, "nobody"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(
    body: dict[str, Any], words: str, live: Live
) -> None:
    response = live.client.post("/score", json={"inputs": PROMPT, **body})
    assert response.status_code in (404, 422)
    assert words in response.text


def test_a_lag_needs_a_router_at_level_token_that_keeps_its_context(live: Live) -> None:
    for changed, words in (
        ({"level": "request", "lag": 1}, "belong to level token"),
        ({"lag": 1, "context": "recompute"}, "leave lag out"),
        ({"lag": 65}, "lag"),
    ):
        router = {"name": "similarity", "level": "token", "candidates": ["math"], **changed}
        response = live.generate(mixture={"router": router})
        assert response.status_code == 422
        assert words in response.text
