"""8-bit weights in the C++ kernels: exact products, and the decoder against Int8Linear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters_store.types import Combination
from router_engine.backends.cpu.library import Library
from router_engine.config import CacheConfig, DType, EngineConfig, KernelConfig, ModelConfig
from router_engine.model.quantized import Int8Linear
from tests.router_engine.backends.conftest import Pair
from tests.router_engine.backends.test_linear import SHAPES
from tests.support.harness import EngineHarness, request
from tests.support.tiny import FAMILIES

pytestmark = pytest.mark.slow

MakePair = Callable[..., Pair]
# The last bit of a float can move an integer by one of 127, which what follows carries on.
TOLERANCE = 4e-2


def _config(dtype: DType = "float32") -> EngineConfig:
    model = ModelConfig(dtype=dtype, quantization="int8")
    return EngineConfig(model=model, cache=CacheConfig(num_blocks=512))


def _layer(library: Library, outputs: int, inputs: int) -> tuple[Int8Linear, torch.Tensor]:
    """A random layer and its packed form."""
    generator = torch.Generator().manual_seed(0)
    layer = Int8Linear(torch.randn(outputs, inputs, generator=generator), None)
    size = library.packed_size(layer.values.shape, torch.int8)
    packed = torch.empty(size, dtype=torch.int8)
    library.pack(layer.values, packed, layer.scale)
    return layer, packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_product_is_the_references_bit_for_bit(
    library: Library, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    layer, packed = _layer(library, outputs, inputs)
    generator = torch.Generator().manual_seed(1)
    for rows in (*range(1, 18), 33):
        x = torch.randn(rows, inputs, generator=generator).to(dtype)
        assert torch.equal(library.linears(x, [packed], outputs), layer(x.float())), rows


def test_a_row_does_not_depend_on_the_others(library: Library) -> None:
    _, packed = _layer(library, 144, 576)
    x = torch.randn(40, 576, generator=torch.Generator().manual_seed(1))
    x *= torch.logspace(-20, 3, 40)[:, None]
    together = library.linears(x, [packed], 144)
    for row in range(40):
        assert torch.equal(library.linears(x[row : row + 1], [packed], 144)[0], together[row])


def test_zeros_stay_zeros_and_a_nan_spreads_over_its_row(library: Library) -> None:
    _, packed = _layer(library, 48, 64)
    x = torch.ones(3, 64)
    x[0], x[1, 5] = 0.0, float("nan")
    y = library.linears(x, [packed], 48)
    assert torch.equal(y[0], torch.zeros(48))
    assert y[1].isnan().all()
    assert y[2].isfinite().all()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"])
def test_the_decoder_is_the_reference(
    family: str, make_pair: MakePair, family_folder: Callable[[str], Path]
) -> None:
    pair = make_pair(family_folder(family), config=_config())
    prompts = [list(range(5, 30)), [40, 41, 42], list(range(100, 230)), [9]]
    requests = [request(f"r{i}", prompt) for i, prompt in enumerate(prompts)]
    reference, fast = (harness.run(*requests) for harness in pair)
    for a, b in zip(reference, fast, strict=True):
        assert a.ids == b.ids
        assert b.logprobs == pytest.approx(a.logprobs, abs=TOLERANCE)


@pytest.mark.parametrize("combination", ["sum", "linear"])
def test_mixtures_on_top(
    combination: Combination, make_pair: MakePair, folders: list[Path]
) -> None:
    pair = make_pair(config=_config())
    for harness in pair:
        digests = [harness.publish(f"a{i}", folder) for i, folder in enumerate(folders)]
    rng = np.random.default_rng(0)
    requests = []
    for index in range(12):
        # `linear` wants positive weights and equal ranks
        members = [digests[0], digests[3]] if combination == "linear" else rng.permutation(digests)
        mixture = {m: float(rng.uniform(0.1, 1)) for m in members[: 1 + index % 3]}
        prompt = rng.integers(3, 259, size=3 + 5 * index).tolist()
        requests.append(request(f"r{index}", prompt, mixture, combination=combination))
    reference, fast = (harness.run(*requests) for harness in pair)
    for a, b in zip(reference, fast, strict=True):
        assert a.ids == b.ids
        assert b.logprobs == pytest.approx(a.logprobs, abs=TOLERANCE)
    bare = pair[1].run(*(request(f"b{r.request_id}", r.prompt_token_ids) for r in requests))
    assert [answer.ids for answer in bare] != [answer.ids for answer in fast]  # negative control


def test_in_bf16_it_is_as_near_to_fp32_as_the_reference(
    make_pair: MakePair, make_harness: Callable[..., EngineHarness]
) -> None:
    """Each against int8 in fp32, which rounds nothing else."""
    pair = make_pair(config=_config("bfloat16"))
    exact = make_harness(config=_config())
    rng = np.random.default_rng(2)
    requests = [
        request(f"r{i}", rng.integers(3, 259, size=30).tolist(), max_new_tokens=1)
        for i in range(40)
    ]
    truth = exact.run(*requests)
    errors = []
    for harness in pair:
        answers = harness.run(*requests)
        same = [(a, b) for a, b in zip(answers, truth, strict=True) if a.ids == b.ids]
        errors.append(np.mean([abs(a.logprobs[0] - b.logprobs[0]) for a, b in same]))
    assert 0 < errors[1] <= 1.2 * errors[0], errors


def test_a_request_does_not_depend_on_the_others(
    make_harness: Callable[..., EngineHarness], kernel_cache: Path
) -> None:
    """Bit for bit, in tiles of any height: also where a product is added to the residual."""
    config = replace(_config(), kernels=KernelConfig("cpu", kernel_cache))
    rng = np.random.default_rng(3)
    requests = [
        request(f"r{i}", rng.integers(3, 259, size=20 + i).tolist(), max_new_tokens=6)
        for i in range(11)
    ]
    together = make_harness(config=config).run(*requests)
    alone = make_harness(config=config)
    for one, answer in zip(requests, together, strict=True):
        assert alone.run(one)[0].logprobs == answer.logprobs


def test_threads_change_nothing(
    make_harness: Callable[..., EngineHarness], kernel_cache: Path, folders: list[Path]
) -> None:
    threads = torch.get_num_threads()
    config = EngineConfig(
        model=ModelConfig(quantization="int8"), kernels=KernelConfig("cpu", kernel_cache)
    )
    prompt = list(range(5, 30))
    answers = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            fast = make_harness(config=config)
            digest = fast.publish("a", folders[0])
            answers.append(fast.run(request("r", prompt, {digest: 1.0}), request("base", prompt)))
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(*answers, strict=True):
        assert one.ids == other.ids
        assert one.logprobs == other.logprobs
