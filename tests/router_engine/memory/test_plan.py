"""The plan of a GPU's memory, for models of the sizes that people serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PreTrainedConfig, Qwen3Config

from router_engine.config import AdapterPoolConfig, EngineConfig, ModelConfig, SchedulerConfig
from router_engine.errors import EngineError
from router_engine.memory.defaults import suited
from router_engine.memory.device_plan import MemoryPlan, Taken, planned
from router_engine.memory.sizes import ModelSizes, sizes_of_checkpoint
from router_engine.scheduling.plan import StepLimits

GIB = 1 << 30
CUDA = torch.device("cuda")


def _llama(hidden: int, feed_forward: int, layers: int, heads: int) -> LlamaConfig:
    """A Llama 3.1 of some size."""
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        max_position_embeddings=131_072,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )


LLAMA_8B = _llama(4096, 14_336, 32, 32)
LLAMA_70B = _llama(8192, 28_672, 80, 64)
QWEN3_06B = Qwen3Config(
    vocab_size=151_936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    max_position_embeddings=40_960,
    tie_word_embeddings=True,
    dtype="bfloat16",
    architectures=["Qwen3ForCausalLM"],
)
# Parameters, bytes of KV a token, numbers of a rank of a LoRA on every linear layer; all by hand.
MODELS: dict[str, tuple[PreTrainedConfig, int, int, int]] = {
    "Llama-3.1-8B": (
        LLAMA_8B,
        8_030_261_248,
        2 * 32 * 8 * 128 * 2,
        32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14_336)),
    ),
    "Llama-3.1-70B": (
        LLAMA_70B,
        70_553_706_496,
        2 * 80 * 8 * 128 * 2,
        80 * (2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 28_672)),
    ),
    "Qwen3-0.6B": (
        QWEN3_06B,
        596_049_920,
        2 * 28 * 8 * 128 * 2,
        28 * (2 * (1024 + 2048) + 2 * (1024 + 1024) + 3 * (1024 + 3072)),
    ),
}


def _sizes(folder: Path, config: PreTrainedConfig, **options: Any) -> ModelSizes:
    config.save_pretrained(folder)  # nothing else is there
    return sizes_of_checkpoint(ModelConfig(str(folder), **options), CUDA)


def _planned(sizes: ModelSizes, total: int, **options: Any) -> MemoryPlan:
    limits = StepLimits(2048, 256, sizes.max_model_len, 16)
    asked: dict[str, Any] = {"utilization": 0.9, "adapters": total // 10} | options
    return planned(sizes, limits, total=total, **asked)


@pytest.mark.parametrize("name", MODELS)
def test_a_config_tells_the_sizes(name: str, tmp_path: Path) -> None:
    config, parameters, kv, rank = MODELS[name]
    sizes = _sizes(tmp_path, config)
    linears = 7 * config.num_hidden_layers
    assert sizes.weight_bytes // 2 == pytest.approx(parameters, rel=1e-6)  # and a few frequencies
    assert sizes.kv_token_bytes == kv
    assert sizes.lora_bytes(16) == 2 * 16 * rank + linears * 64  # a line a layer for its rows


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_are_all_of_the_memory(name: str, tmp_path: Path) -> None:
    sizes = _sizes(tmp_path, MODELS[name][0])
    for total in (192 * GIB, 8 * 141 * GIB):
        plan = _planned(sizes, total)
        assert sum(part.num_bytes for part in plan.parts()) == total
        assert plan.adapters == total // 10
        assert plan.reserve == total - int(0.9 * total)
        kept = plan.weights + plan.adapters + plan.kv + plan.step + plan.buffers + plan.graphs
        assert kept + plan.others == int(0.9 * total)
        assert plan.num_blocks * 16 <= plan.kv // sizes.kv_token_bytes < plan.num_blocks * 16 + 16


def test_eight_bits_take_half_of_the_linear_layers(tmp_path: Path) -> None:
    """What is tied stays as it is: the head is one of its own then."""
    plain = _sizes(tmp_path / "8b", LLAMA_8B)
    eight = _sizes(tmp_path / "8b", LLAMA_8B, quantization="int8")
    outputs = sum(shape.out_features for shape in plain.base.linears.values())
    numbers = sum(s.in_features * s.out_features for s in plain.base.linears.values())
    assert plain.weight_bytes - eight.weight_bytes == numbers - 4 * outputs
    tied = _sizes(tmp_path / "qwen", QWEN3_06B)
    eight = _sizes(tmp_path / "qwen", QWEN3_06B, quantization="int8")
    head = tied.base.linears["lm_head"]
    outputs = sum(shape.out_features for shape in tied.base.linears.values())
    numbers = sum(s.in_features * s.out_features for s in tied.base.linears.values())
    saved = numbers - 2 * head.in_features * head.out_features - 4 * outputs
    assert tied.weight_bytes - eight.weight_bytes == saved


def test_what_does_not_fit_is_told_with_its_numbers(tmp_path: Path) -> None:
    sizes = _sizes(tmp_path, LLAMA_70B)
    with pytest.raises(EngineError) as caught:
        _planned(sizes, 80 * GIB)
    told = str(caught.value)
    for part in ("80.0 GiB of GPU memory are 70", "the weights take 131.42 GiB", "adapter_memory"):
        assert part in told
    small = _sizes(tmp_path / "small", QWEN3_06B)
    fits = _planned(small, 24 * GIB)
    assert _planned(small, 24 * GIB, kv=fits.kv).reserve == fits.reserve
    assert _planned(small, 24 * GIB, kv=fits.kv - GIB).reserve == fits.reserve + GIB
    with pytest.raises(EngineError, match=r"24\.0 GiB of GPU memory are 1\.00 GiB short"):
        _planned(small, 24 * GIB, kv=fits.kv + GIB)
    with pytest.raises(EngineError, match="use a smaller adapter_memory"):
        _planned(small, 24 * GIB, adapters=23 * GIB)


def test_what_is_measured_takes_the_place_of_an_estimate(tmp_path: Path) -> None:
    sizes = _sizes(tmp_path, QWEN3_06B)
    estimate = _planned(sizes, 24 * GIB)
    step, graphs = estimate.step // 2, estimate.graphs // 4
    measured = _planned(sizes, 24 * GIB, taken=Taken(estimate.others + GIB, step, graphs))
    saved = estimate.step - step + estimate.graphs - graphs
    assert measured.kv - estimate.kv == saved - GIB
    eager = _planned(sizes, 24 * GIB, taken=Taken(graphs=0))
    assert eager.kv - estimate.kv == estimate.graphs > 0


def test_a_device_has_defaults_of_its_own() -> None:
    open_ = EngineConfig(
        scheduler=SchedulerConfig(max_step_tokens=0, max_running=0),
        cache=replace(EngineConfig().cache, memory_bytes=None),
    )
    card, cpu = suited(open_, 80 * GIB), suited(open_, None)
    assert (card.scheduler.max_step_tokens, card.scheduler.max_running) == (2048, 256)
    assert (cpu.scheduler.max_step_tokens, cpu.scheduler.max_running) == (512, 64)
    assert (card.adapters.memory_bytes, cpu.adapters.memory_bytes) == (8 * GIB, GIB)
    assert (card.cache.memory_bytes, cpu.cache.memory_bytes) == (None, GIB)
    assert cpu.adapters.host_bytes == GIB
    chosen = EngineConfig(
        scheduler=SchedulerConfig(max_step_tokens=7, max_running=9),
        adapters=AdapterPoolConfig(5, None, 11),
    )
    assert suited(chosen, 80 * GIB) == suited(chosen, None) == chosen


def test_a_share_is_of_a_gpu() -> None:
    shared = EngineConfig(adapters=AdapterPoolConfig(memory_share=0.25))
    assert suited(shared, 80 * GIB).adapters.memory_bytes == 20 * GIB
    with pytest.raises(EngineError, match="adapter_memory 25% is a share of a GPU's memory"):
        suited(shared, None)
