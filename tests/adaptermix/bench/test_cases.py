"""Cases, their mixtures, and the random adapters."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.subject import ALL_TARGETS, RANK, TARGETS, Subject, write_adapters
from adaptermix.bench.workload import CASES, Population, Traffic, choose_cases, parse_lengths
from router_engine.model.tiny import TINY_RANDOM, tiny_model

NAMES = tuple(f"a{index}" for index in range(8))


def traffic(alpha: float | None = None, every: int = 1) -> Traffic:
    population = Population(NAMES, alpha=alpha, every=every)
    lengths = parse_lengths("uniform:4:20"), parse_lengths("fixed:6")
    return Traffic(population, *lengths, lambda text: len(text.split()), seed=1)


def test_each_case_has_as_many_mixtures_as_it_says() -> None:
    counts = {case: len({job.mixture for job in traffic().jobs(case, 16, "x")}) for case in CASES}
    assert counts == {
        "base": 1,
        "one": 1,
        "many": 8,
        "mixtures": 8,
        "given": 8,
        "similarity": 1,
        "merged": 1,
    }


def test_a_mixture_of_four_has_four_adapters_and_weights_that_sum_to_one() -> None:
    for job in traffic().jobs("mixtures", 8, "x"):
        assert len(set(job.mixture.adapters)) == 4
        assert job.mixture.weights == pytest.approx((0.4, 0.3, 0.2, 0.1))


def test_given_weights_differ_from_token_to_token() -> None:
    (job,) = traffic(every=2).jobs("given", 1, "x")
    rows = job.mixture.rows
    assert len(rows) == job.max_new_tokens == 6
    assert all(sum(row) == pytest.approx(1) for row in rows)
    assert all(one != two for one, two in pairwise(rows))
    body = job.mixture.body()
    assert body is not None
    assert body["router"]["every"] == 2
    assert body["router"]["weights"] == [list(row) for row in rows]


def test_base_asks_for_nothing() -> None:
    assert traffic().jobs("base", 1, "x")[0].mixture.body() is None


def test_jobs_are_those_of_their_seed_and_no_other_part_shares_a_prompt() -> None:
    made = traffic()
    assert made.jobs("many", 9, "x") == made.jobs("many", 9, "x")
    prompts = [{job.prompt for job in made.jobs("many", 9, part)} for part in ("x", "y")]
    assert not prompts[0] & prompts[1]


def test_zipf_prefers_the_first() -> None:
    drawn = traffic(alpha=1.5).picks("many", 400, "x")
    assert drawn.count(0) > drawn.count(3) > drawn.count(7)


def test_cases_are_chosen_by_name_in_their_order() -> None:
    assert choose_cases(["mixtures", "base"]) == ["base", "mixtures"]
    with pytest.raises(BenchmarkError, match="no such case: bass; there are base"):
        choose_cases(["bass"])


def test_a_mixture_larger_than_the_pool_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="mixture_size is 9"):
        Population(NAMES, mixture_size=9)


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


def test_ranks_take_turns_and_all_linears_can_be_targets(tmp_path: Path) -> None:
    subject = Subject.of(TINY_RANDOM)
    folders = write_adapters(subject, tmp_path, NAMES[:3], (4, 16), ALL_TARGETS)
    ranks = []
    for folder in folders:
        tensors = load_file(folder / "adapter_model.safetensors")
        assert len(tensors) == 2 * len(ALL_TARGETS) * subject.config.num_hidden_layers
        ranks.append({t.shape[0] for name, t in tensors.items() if "lora_A" in name})
    assert ranks == [{4}, {16}, {4}]


def test_equal_places_get_equal_adapters(tmp_path: Path) -> None:
    subject = Subject.of(TINY_RANDOM)
    (one,) = write_adapters(subject, tmp_path / "one", NAMES[:1])
    (two,) = write_adapters(subject, tmp_path / "two", NAMES[:1])
    files = [(folder / "adapter_model.safetensors").read_bytes() for folder in (one, two)]
    assert files[0] == files[1]
