"""An LLM answers as transformers, PEFT and a server do, in the order of its prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adaptermix import LLM, Answer, Mixture, NotFoundError, SamplingParams
from router_engine.model.tiny_tokenizer import tiny_tokenizer
from tests.adaptermix.conftest import SMALL, tiny_llm
from tests.server.live import Live, serving, tiny_settings
from tests.support.oracle import greedy, peft_model, set_mixture
from tests.support.tiny import family_model

PROMPTS = ["hello", "a longer prompt than that one", "x", "def add(a, b):"]
EIGHT = SamplingParams(max_tokens=8, ignore_eos=True)
BOTH = Mixture(math=0.7, code=0.3)
HIDDEN = Mixture.routed("hidden_mean", candidates=["math", "code"], temperature=0.05)
ARROW = Mixture.routed("arrow", candidates=["math", "code"])


def expected(model: Any, prompt: str, count: int = 8) -> list[int]:
    return greedy(model, tiny_tokenizer().encode(prompt), count)[0]


def ids(answers: Sequence[Answer]) -> list[list[int]]:
    return [answer.token_ids for answer in answers]


def test_the_base_is_greedy_as_transformers_is(llm: LLM) -> None:
    answers = llm.generate(PROMPTS, EIGHT)
    model = family_model("llama")
    assert ids(answers) == [expected(model, prompt) for prompt in PROMPTS]
    assert [answer.prompt_tokens for answer in answers] == [len(prompt) for prompt in PROMPTS]
    assert {answer.finish_reason for answer in answers} == {"length"}
    assert (answers[0].adapters, answers[0].weights) == ([], [])


def test_a_mixture_is_that_of_peft(llm: LLM, adapters: Path) -> None:
    (answer,) = llm.generate(PROMPTS[0], EIGHT, mixture=BOTH)
    model = peft_model(family_model("llama"), [adapters / "math", adapters / "code"])
    set_mixture(model, (0.7, 0.3), "sum")
    assert answer.token_ids == expected(model, PROMPTS[0])
    assert answer.adapters == ["math@1", "code@1"]
    assert answer.weights == [[0.7, 0.3]] * 8


def test_a_mixed_batch_is_each_prompt_alone_in_the_order_given(llm: LLM) -> None:
    mixtures = [None, BOTH, HIDDEN, ARROW]
    samplings = [SamplingParams(max_tokens=n, ignore_eos=True) for n in (9, 1, 5, 3)]
    together = llm.generate(PROMPTS, samplings, mixture=mixtures)
    alone = [
        llm.generate(prompt, sampling, mixture=mixture)[0]
        for prompt, sampling, mixture in zip(PROMPTS, samplings, mixtures, strict=True)
    ]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [len(answer.tokens) for answer in together] == [9, 1, 5, 3]
    assert together[2].weights == alone[2].weights != []
    assert together[3].weights == []  # each layer has its own


def test_more_prompts_than_are_in_the_scheduler_at_once(llm_home: Path) -> None:
    with tiny_llm(llm_home, max_running=2, encoder="none") as small:
        one = SamplingParams(max_tokens=1, ignore_eos=True)
        prompts = [f"{number}" for number in range(300)]
        many = small.generate(prompts, one, mixture=Mixture(math=1.0))
        assert len(many) == 300
        first, last = small.generate([prompts[0], prompts[-1]], one, mixture=Mixture(math=1.0))
        assert (many[0].text, many[-1].text) == (first.text, last.text)


def test_prompts_of_token_ids_are_those_of_text(llm: LLM) -> None:
    tokens = [tiny_tokenizer().encode(prompt) for prompt in PROMPTS[:2]]
    written = llm.generate(PROMPTS[:2], EIGHT, mixture=HIDDEN)
    assert ids(llm.generate(tokens, EIGHT, mixture=HIDDEN)) == ids(written)
    assert ids(llm.generate(tokens[0], EIGHT, mixture=HIDDEN)) == ids(written[:1])
    last = SamplingParams(max_tokens=4, truncate=2, ignore_eos=True)
    (cut,) = llm.generate([tokens[1]], last)
    assert cut.prompt_tokens == 2
    assert ids([cut]) == ids(llm.generate(PROMPTS[1], last))


def test_nothing_asked_is_nothing_answered(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_several_threads_share_the_engine(llm: LLM) -> None:
    alone = ids(llm.generate(PROMPTS, EIGHT))
    with ThreadPoolExecutor(4) as threads:
        together = threads.map(lambda prompt: llm.generate(prompt, EIGHT), PROMPTS)
        assert [answer.token_ids for (answer,) in together] == alone


def test_a_conversation_is_written_by_the_chat_template(llm: LLM) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    written = tiny_tokenizer().apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    (answer,) = llm.chat(messages, EIGHT, mixture=BOTH)
    assert ids([answer]) == ids(llm.generate(written, EIGHT, mixture=BOTH))
    first, second = llm.chat([messages, messages[1:]], EIGHT, mixture=[BOTH, None])
    assert first.token_ids == answer.token_ids
    assert second.prompt_tokens is not None
    assert second.prompt_tokens < len(written)


def test_a_stream_is_the_answer_in_pieces_and_may_be_left(llm: LLM) -> None:
    (whole,) = llm.generate(PROMPTS[1], EIGHT, mixture=HIDDEN)
    pieces = list(llm.stream(PROMPTS[1], EIGHT, mixture=HIDDEN))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.weights for piece in pieces] == whole.weights
    assert pieces[-1].answer is not None
    assert pieces[-1].answer.text == whole.text
    endless = llm.stream("on and on", SamplingParams(max_tokens=400, ignore_eos=True))
    assert next(endless).answer is None
    endless.close()
    assert ids(llm.generate(PROMPTS[1], EIGHT, mixture=HIDDEN)) == ids([whole])


def test_the_first_error_ends_a_batch_and_says_whose_it_is(llm: LLM) -> None:
    long = SamplingParams(max_tokens=400, ignore_eos=True)
    with pytest.raises(NotFoundError, match="nobody") as caught:
        llm.generate(PROMPTS, long, mixture=[None, None, Mixture(nobody=1.0), BOTH])
    assert caught.value.__notes__ == ["mixture.adapters", "prompt 2 of 4, counted from 0"]
    assert len(llm.generate(PROMPTS, EIGHT)) == 4


@pytest.fixture(scope="module")
def live(llm: LLM, llm_home: Path) -> Iterator[Live]:
    """A server over the LLM's store."""
    settings = tiny_settings(llm_home, kv_blocks=SMALL["kv_blocks"], encoder="default")
    with serving(settings) as live:
        yield live


SAMPLED = SamplingParams(max_tokens=8, temperature=0.9, top_p=0.8, seed=7, top_logprobs=2)
STOPPED = SamplingParams(max_tokens=40, stop=["e", "a"])
MEMBERS = {"mode": "ensemble", "members": 3, "seed": 5}


@pytest.mark.parametrize(
    ("sampling", "mixture"),
    [
        (None, None),
        (SAMPLED, BOTH),
        (STOPPED, Mixture(math=1.0)),
        (EIGHT, HIDDEN),
        (EIGHT, ARROW),
        (EIGHT, Mixture(adamix=1.0, math=0.2, combination="sum")),
        (EIGHT, Mixture({"adamix@1": 1.0, "code": 0.5})),
        (EIGHT, Mixture.routed("similarity", candidates=["math", "code"])),
        (EIGHT, Mixture.routed("similarity", candidates=["math", "code"], level="token", every=3)),
        (EIGHT, Mixture.routed("retrieval", candidates=["math", "code"])),
        (
            {"max_new_tokens": 5, "return_full_text": True, "return_k_alternatives": 2},
            {"adapters": [{"name": "adamix", "copies": MEMBERS}]},
        ),
        ({"max_new_tokens": 5, "adapter_id": "code", "apply_chat_template": True}, None),
    ],
)
def test_an_answer_is_what_the_server_answers(
    llm: LLM, live: Live, sampling: Any, mixture: Any
) -> None:
    """Every detail but what the prefix cache had."""
    (answer,) = llm.generate("the prompt", sampling, mixture=mixture)
    parameters = sampling.to_json() if isinstance(sampling, SamplingParams) else sampling or {}
    body: dict[str, Any] = {"parameters": {"details": True, **parameters}}
    if mixture is not None:
        body["mixture"] = mixture.to_json() if isinstance(mixture, Mixture) else mixture
    reply = live.answer("the prompt", **body)
    assert answer.text == reply["generated_text"]
    assert answer.details is not None
    details = answer.details.model_dump(mode="json")
    assert details | {"cached_tokens": 0} == reply["details"] | {"cached_tokens": 0}


def test_scores_are_those_of_the_server(llm: LLM, live: Live) -> None:
    scores = llm.score("the prompt", [" yes", " no"], mixture=BOTH, uncertainty=True)
    body = {
        **{"inputs": "the prompt", "completions": [" yes", " no"], "uncertainty": True},
        "mixture": BOTH.to_json(),
    }
    assert scores.model_dump(mode="json") == live.client.post("/score", json=body).json()
