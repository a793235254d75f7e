"""SamplingParams: what becomes of arguments, and which are refused by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from adaptermix import SamplingParams
from adaptermix.errors import InvalidInputError
from adaptermix.sampling import _NATIVE_NAMES
from server.schemas.generate import Parameters

_SAID_OTHERWISE = {
    "details",  # always: an answer has its weights
    "adapter_id",  # Mixture
    "do_sample",  # temperature
    "return_full_text",  # who asks has the prompt
    "return_k_alternatives",  # top_logprobs
    "apply_chat_template",  # an argument of the call: it is about the prompt
}


def test_what_is_left_out_is_not_sent() -> None:
    assert SamplingParams().to_json() == {"details": True}
    assert SamplingParams() == SamplingParams(temperature=None)


def test_names_of_vllm_become_those_of_the_http_api() -> None:
    params = SamplingParams(max_tokens=48, min_tokens=2, ignore_eos=True, top_logprobs=3, stop="\n")
    assert params.to_json() == {
        "max_new_tokens": 48,
        "min_new_tokens": 2,
        "ignore_eos_token": True,
        "top_n_tokens": 3,
        "stop": ["\n"],
        "details": True,
    }
    assert params.body.max_new_tokens == 48
    assert SamplingParams(stop=("a", "b")).to_json()["stop"] == ["a", "b"]


def test_every_parameter_of_the_http_api_can_be_said() -> None:
    said = {_NATIVE_NAMES.get(field.name, field.name) for field in fields(SamplingParams)}
    assert said | _SAID_OTHERWISE == set(Parameters.model_fields)
    assert not said & _SAID_OTHERWISE


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens = 0"),
    ({"max_tokens": "many"}, "max_tokens = 'many'"),
    ({"temperature": -1}, "temperature = -1"),
    ({"temperature": float("inf")}, "temperature = inf"),
    ({"top_p": 2}, "top_p = 2"),
    ({"stop": 5}, "stop = 5"),
    ({"stop": [5]}, "stop.0 = 5"),
    ({"ignore_eos": 1}, "ignore_eos = 1"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_what_no_server_takes_is_refused_by_name(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        SamplingParams(**arguments)
    assert words in str(caught.value)


def test_an_unknown_argument_is_named() -> None:
    unknown: dict[str, Any] = {"max_new_tokens": 4}
    with pytest.raises(TypeError, match="max_new_tokens"):
        SamplingParams(**unknown)
