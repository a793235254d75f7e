"""A GGUF file is the model that it was made of: weights in every format, and how text is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from router_engine.config import CacheConfig, EngineConfig, KernelConfig, ModelConfig
from router_engine.errors import UnsupportedModelError
from router_engine.model.gguf_tokenizer import load_gguf_tokenizer
from router_engine.model.loader import load_model
from router_engine.model.tiny import tiny_config, tiny_model
from tests.router_engine.conftest import MakeHarness
from tests.support.gguf import Vocabulary, save_gguf
from tests.support.harness import request
from tests.support.isas import here
from tests.support.oracle import assert_agrees, greedy

ODD = (
    "a\n\n 12",
    "  two  spaces,\ttabs\r\nand\n\n\nlines 1234567 ",
    "it's WE'LL o'clock 3.14159 x²",
    "naïve café — 你好，世界 🙂‍↔️ e\u0301",
    "def f(x):\n    return x+1\n\n\n# done",
    "<|im_start|>user\n hi<|im_end|>\n",
    "\u00a0\u2003 \u200b\x85",
)


def _matrices(model: LlamaForCausalLM) -> list[str]:
    return [name for name, tensor in model.state_dict().items() if tensor.ndim == 2]


@pytest.mark.parametrize(
    "kind", [Kind.BF16, Kind.F16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1]
)
def test_weights_are_what_their_blocks_stand_for(tmp_path: Path, kind: Kind) -> None:
    model = tiny_model()
    file = save_gguf(tmp_path / "tiny.gguf", model, "smollm", kind=kind)
    loaded = load_model(ModelConfig(str(file), dtype="float32")).model.state_dict()
    for name in _matrices(model):
        values = model.state_dict()[name]
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # blocks lie along rows: the same
            assert torch.allclose(loaded[name], values, atol=0.1)
            continue
        blocks = gguf.quantize(values.numpy(), kind)
        assert np.array_equal(loaded[name].numpy(), gguf.dequantize(blocks, kind))


# Bytes of a block's scales in fp16; what else a block holds may be anything.
SCALES = {
    Kind.Q2_K: (80, 82),
    Kind.Q3_K: (108,),
    Kind.Q4_K: (0, 2),
    Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,),
}


@pytest.mark.parametrize("kind", SCALES)
def test_formats_that_only_others_write(tmp_path: Path, kind: Kind) -> None:
    config = tiny_config()
    config.hidden_size = config.intermediate_size = 256
    config.head_dim = 64
    model = LlamaForCausalLM(config)
    size, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    name = "model.layers.1.mlp.down_proj.weight"
    blocks = rng.integers(0, 256, (256, 256 // size, block_bytes), dtype=np.uint8)
    for place in SCALES[kind]:
        blocks[..., place : place + 2] = np.frombuffer(np.float16(0.01).tobytes(), dtype=np.uint8)
    made = {name: blocks.reshape(256, -1)}
    file = save_gguf(tmp_path / "tiny.gguf", model, "smollm", kind=kind, made=made)
    loaded = load_model(ModelConfig(str(file), dtype="float32")).model.state_dict()
    assert np.array_equal(loaded[name].numpy(), gguf.dequantize(made[name], kind))


def test_a_format_that_nothing_reads_is_named(tmp_path: Path) -> None:
    model = tiny_model()
    size, block_bytes = gguf.GGML_QUANT_SIZES[Kind.Q8_1]
    blocks = np.zeros((64, 128 // size * block_bytes), dtype=np.uint8)
    made = {"model.layers.1.mlp.down_proj.weight": blocks}
    file = save_gguf(tmp_path / "tiny.gguf", model, "smollm", kind=Kind.Q8_1, made=made)
    with pytest.raises(UnsupportedModelError, match="Q8_1"):
        load_model(ModelConfig(str(file)))


def test_an_architecture_that_is_not_served_is_named(tmp_path: Path) -> None:
    file = save_gguf(tmp_path / "tiny.gguf", tiny_model(), "smollm")
    file.write_bytes(file.read_bytes().replace(b"llama", b"gemma"))
    with pytest.raises(UnsupportedModelError, match=r"gemma|Gemma"):
        load_model(ModelConfig(str(file)))


@pytest.mark.real_model
@pytest.mark.slow
def test_the_default_model_as_a_gguf_file(
    real_base: Path, tmp_path: Path, make_harness: MakeHarness, kernel_cache: Path
) -> None:
    """Tokens of odd texts, and log probabilities on the kernels that serve it: of four layers."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        real_base, dtype="bfloat16", num_hidden_layers=4
    )
    vocabulary = Vocabulary.of(real_base)
    name = tmp_path / "SmolLM2.gguf"
    file = save_gguf(name, model, "smollm", kind=Kind.BF16, vocabulary=vocabulary)
    theirs, ours = AutoTokenizer.from_pretrained(real_base), load_gguf_tokenizer(file)
    for text in ODD:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == text
    prompt = theirs.encode(ODD[0] + ODD[1] + "The capital of France is")
    config = EngineConfig(
        model=ModelConfig(dtype="float32", device="cpu"),
        cache=CacheConfig(num_blocks=64),
        kernels=KernelConfig("cpu", kernel_cache, here()[-1]),
    )
    (answer,) = make_harness(file, config=config).run(request("r", prompt, max_new_tokens=8))
    assert_agrees(answer, *greedy(model.float(), prompt, 8))
