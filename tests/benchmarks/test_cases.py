"""Cases, prompts and the random adapters."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from benchmarks.cases import CASES, NUM_ADAPTERS, choose_cases, request_body
from benchmarks.prompts import LONGEST, SHORTEST, make_prompts
from benchmarks.subject import RANK, TARGETS, Subject, write_adapters
from router_engine.model.tiny import TINY_RANDOM, tiny_model

NAMES = [f"a{index}" for index in range(NUM_ADAPTERS)]
MIXTURES = {case.name: [case.mixture_of(index, NAMES) for index in range(16)] for case in CASES}


def distinct(name: str) -> int:
    return len({json.dumps(mixture) for mixture in MIXTURES[name]})


def test_each_case_has_as_many_mixtures_as_it_says() -> None:
    counts = {name: distinct(name) for name in MIXTURES}
    assert counts == {"base": 1, "one": 1, "eight": 8, "mixtures": 8, "token-routed": 1}
    assert MIXTURES["base"][0] is None


def test_a_mixture_of_four_has_four_different_adapters() -> None:
    for mixture in MIXTURES["mixtures"]:
        assert mixture is not None
        assert len({adapter["name"] for adapter in mixture["adapters"]}) == 4


def test_cases_are_chosen_by_name_in_their_order() -> None:
    assert [case.name for case in choose_cases(["mixtures", "base"])] == ["base", "mixtures"]
    assert choose_cases([]) == list(CASES)
    with pytest.raises(ValueError, match="no such case: bass; there are base"):
        choose_cases(["bass"])


def test_a_base_request_has_no_mixture() -> None:
    assert "mixture" not in request_body("text", 4, None)


def test_prompts_have_their_lengths_and_their_seed() -> None:
    def count(text: str) -> int:
        return len(text.split())

    prompts = make_prompts(9, "seed", count)
    assert sorted(count(prompt) for prompt in prompts) == list(range(SHORTEST, LONGEST + 1, 4))
    assert prompts == make_prompts(9, "seed", count)
    assert not set(prompts) & set(make_prompts(9, "another seed", count))


def test_prompts_of_bytes_stay_within_the_limits() -> None:
    for prompt in make_prompts(5, "seed", len):
        assert SHORTEST - 10 <= len(prompt) <= LONGEST


def test_random_adapters_load_in_peft_and_change_the_model(tmp_path: Path) -> None:
    folders = write_adapters(Subject.of(TINY_RANDOM), tmp_path, NAMES[:2])
    tokens = torch.arange(3, 40)[None]
    before = tiny_model()(tokens).logits
    after = [PeftModel.from_pretrained(tiny_model(), folder)(tokens).logits for folder in folders]
    assert not torch.allclose(before, after[0])
    assert not torch.allclose(after[0], after[1])
    tensors = load_file(folders[0] / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(TARGETS) * tiny_model().config.num_hidden_layers
    assert all(RANK in tensor.shape for tensor in tensors.values())


def test_equal_places_get_equal_adapters(tmp_path: Path) -> None:
    subject = Subject.of(TINY_RANDOM)
    (one,) = write_adapters(subject, tmp_path / "one", NAMES[:1])
    (two,) = write_adapters(subject, tmp_path / "two", NAMES[:1])
    files = [(folder / "adapter_model.safetensors").read_bytes() for folder in (one, two)]
    assert files[0] == files[1]
