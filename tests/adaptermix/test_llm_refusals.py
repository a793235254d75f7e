"""What an LLM refuses: by name, with what would work, and in the errors that a client raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adaptermix import (
    LLM,
    InvalidInputError,
    InvalidRequestError,
    Mixture,
    NotFoundError,
    RequestTimeoutError,
    SamplingParams,
    StartFailedError,
)
from tests.adaptermix.conftest import tiny_llm

AT_ONCE = 1e-6  # seconds: over before anything is read


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_runing": 3}, "max_runing is not a setting; near names: max_running"),
        ({"port": 80}, "port is a setting of a server's"),
        ({"max_waiting": 3}, "max_waiting is a setting of a server's"),
        ({"cpu_isa": "avx2"}, "cpu_isa binds a whole process: set ADAPTERMIX_CPU_ISA"),
        ({"omp_wait_policy": "ACTIVE"}, "omp_wait_policy = 'ACTIVE': torch is loaded already"),
        ({"max_running": 0}, "max_running .* = 0"),
        ({"dtype": "float8"}, "dtype .* = 'float8'"),
        ({"adapters": "/nowhere/at/all"}, "adapters = '/nowhere/at/all' is not a directory"),
        ({"encoder": "/nowhere/at/all"}, "encoder = '/nowhere/at/all'"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        tiny_llm(tmp_path, **settings)


def test_folders_without_adapters(tmp_path: Path, llm_home: Path, llm: LLM) -> None:
    with pytest.raises(InvalidInputError, match="holds no adapter folder: name the folder"):
        tiny_llm(tmp_path / "home", adapters=tmp_path)
    assert llm.adapters.list()
    with pytest.raises(InvalidInputError, match="a store's home is given as store="):
        tiny_llm(tmp_path / "home", adapters=llm_home / "store")


def test_a_model_or_kernels_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(StartFailedError, match="/nowhere/at/all"):
        LLM("/nowhere/at/all", cache=tmp_path)
    with pytest.raises(StartFailedError, match="none-at-all"):
        tiny_llm(tmp_path, kernels="none-at-all")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": 3}, "prompts = 3: use a text, a list of texts, or lists of token ids"),
        ({"prompts": ["a", 3]}, r"prompts = \['a', 3\]"),
        ({"prompts": ["a", ""]}, "prompt 1: inputs = ''"),
        ({"prompts": ["a"], "sampling": [None, None]}, "sampling: 2 for 1 prompts"),
        ({"prompts": ["a"], "mixture": [None, None]}, "mixture: 2 for 1 prompts"),
        ({"prompts": "a", "mixture": "math"}, "mixture = 'math': use one for all prompts"),
        (
            {"prompts": "a", "sampling": {"max_tokens": 3}},
            "parameters.max_tokens: max_tokens is not a field",
        ),
        ({"prompts": "a", "mixture": {"adapter": []}}, "mixture.adapter: adapter is not a field"),
        ({"prompts": "a", "priority": 1000}, "prompt 0: priority = 1000"),
        ({"prompts": "a", "timeout": -1.0}, "prompt 0: timeout = -1.0"),
    ],
)
def test_arguments_that_cannot_be_used(llm: LLM, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        llm.generate(**arguments)


def test_conversations_that_are_none(llm: LLM) -> None:
    text: Any = "Hello"
    with pytest.raises(InvalidInputError, match="messages = 'Hello': use a list such as"):
        llm.chat(text)
    with pytest.raises(InvalidInputError, match=r"conversation 0: messages.0.role = 'robot'"):
        llm.chat([{"role": "robot", "content": "Hello"}])


@pytest.mark.parametrize(
    ("prompt", "sampling", "mixture", "words"),
    [
        ("a", SamplingParams(max_tokens=5000), None, "max_tokens = 5000: too long"),
        ("a" * 5000, None, None, "prompt = 5000 tokens: too long.* shorten it or set truncate"),
        ([99999], None, None, "prompt = 99999: token ids are 0 to 258"),
        (
            "a",
            None,
            Mixture({"math": -1.0, "code": 1.0}, combination="linear"),
            "mixture.adapters.0.weight = -1.0",
        ),
        ("a", None, Mixture.routed("psychic", candidates=["math"]), "psychic"),
        (
            "a",
            None,
            Mixture(math=1.0, copies={"math": {"mode": "ensemble", "members": 2}}),
            "keeps no copies apart",
        ),
    ],
)
def test_what_the_model_or_the_store_refuses(
    llm: LLM, prompt: Any, sampling: Any, mixture: Any, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        llm.generate(prompt, sampling, mixture=mixture)
    assert (caught.value.status, caught.value.type) == (422, "validation")
    if isinstance(prompt, str):
        with pytest.raises(InvalidRequestError, match=words):
            next(llm.stream(prompt, sampling, mixture=mixture))


def test_adapters_that_are_not_there(llm: LLM) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        llm.generate("a", mixture=Mixture(nobody=1.0))
    with pytest.raises(NotFoundError, match="nobody"):
        llm.score("a", ["b"], mixture=Mixture(nobody=1.0))


def test_a_timeout_ends_a_prompt(llm: LLM) -> None:
    endless = SamplingParams(max_tokens=900, ignore_eos=True)
    with pytest.raises(RequestTimeoutError, match="timeout of 1e-06 s"):
        llm.generate("a", endless, timeout=AT_ONCE)
