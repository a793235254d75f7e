"""A Llama with a byte-level vocabulary, as a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
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


@dataclass(frozen=True)
class Vocabulary:
    """Byte-level pieces by id, those of them that are control tokens, and the merges."""

    tokens: Sequence[str]
    control: AbstractSet[int]
    merges: Sequence[str]
    end: int

    @classmethod
    def of_bytes(cls, size: int) -> Vocabulary:
        """256 bytes, two pairs of them, then control tokens up to `size`."""
        spelling = bytes_to_unicode()
        tokens = [spelling[byte] for byte in range(256)] + ["12", "ĊĊ"]
        special = [f"<|special{i}|>" for i in range(size - len(tokens))]
        control = frozenset(range(len(tokens), size))
        return cls([*tokens, *special], control, ["1 2", "Ċ Ċ"], 258)

    @classmethod
    def of(cls, folder: Path) -> Vocabulary:
        """That of a checkpoint's tokenizer.json."""
        described = json.loads((folder / "tokenizer.json").read_text())
        ids = dict(described["model"]["vocab"])
        added = described["added_tokens"]
        ids |= {token["content"]: token["id"] for token in added}
        merges = [m if isinstance(m, str) else " ".join(m) for m in described["model"]["merges"]]
        end = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
        return cls(
            sorted(ids, key=ids.__getitem__),
            frozenset(token["id"] for token in added if token["special"]),
            merges,
            ids[end],
        )


def save_gguf(
    file: Path,
    model: LlamaForCausalLM,
    pre: str | None,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    vocabulary: Vocabulary | None = None,
    made: Mapping[str, NDArray[np.uint8]] | None = None,
) -> Path:
    """Matrices in `kind`, the rest in fp32; without a vocabulary one of bytes.

    made: blocks of `kind` [rows, bytes] by parameter, in place of the model's own.
    """
    vocabulary = vocabulary or Vocabulary.of_bytes(model.config.vocab_size)
    writer = gguf.GGUFWriter(str(file), "llama")
    _write_shape(writer, model)
    _write_vocabulary(writer, vocabulary, pre)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = _values(name, tensor, model)
        if made is not None and name in made:
            writer.add_tensor(_name(name), made[name], raw_dtype=kind)
        elif values.ndim == 2 and made is None and kind != GGMLQuantizationType.F32:
            writer.add_tensor(_name(name), gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_shape(writer: gguf.GGUFWriter, model: LlamaForCausalLM) -> None:
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary, pre: str | None) -> None:
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(
        [
            control if index in vocabulary.control else normal
            for index in range(len(vocabulary.tokens))
        ]
    )
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_bos_token_id(vocabulary.end)
    writer.add_eos_token_id(vocabulary.end)


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
