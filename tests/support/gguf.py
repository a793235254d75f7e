"""A tiny Llama with a byte-level vocabulary, as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def save_gguf(file: Path, model: LlamaForCausalLM, pre: str | None) -> Path:
    """Weights in fp32. The vocabulary: 256 bytes, two pairs of them, then special tokens."""
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    spelling = bytes_to_unicode()
    tokens = [spelling[byte] for byte in range(256)] + ["12", "ĊĊ"]
    special = [f"<|special{i}|>" for i in range(config.vocab_size - len(tokens))]
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens + special)
    writer.add_token_types([normal] * len(tokens) + [control] * len(special))
    writer.add_token_merges(["1 2", "Ċ Ċ"])
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(258)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(_name(name), _values(name, tensor, model))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _name(name: str) -> str:
    path = name.removesuffix(".weight")
    if path in _TOP:
        return f"{_TOP[path]}.weight"
    layer, _, rest = path.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_NAMES[rest]}.weight"


def _values(name: str, tensor: torch.Tensor, model: LlamaForCausalLM) -> NDArray[np.float32]:
    """Rotated pairs lie beside each other in GGUF, half a head apart in transformers."""
    values: NDArray[np.float32] = tensor.detach().float().numpy()
    heads = {
        "q_proj": model.config.num_attention_heads,
        "k_proj": model.config.num_key_value_heads,
    }.get(name.split(".")[-2])
    if heads is None:
        return values
    rows, columns = values.shape
    pairs = values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(rows, columns))
