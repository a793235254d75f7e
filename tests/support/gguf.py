"""Models as GGUF files: of every family that has such files."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

Value = str | bool | int | float | list[int] | list[str] | list[float]


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by id, those of them that are control tokens or a user's, and the merges.

    They are byte-level, but for those of sentencepiece, whose scores stand for merges.
    """

    tokens: Sequence[str]
    control: AbstractSet[int]
    merges: Sequence[str]
    end: int
    user_defined: AbstractSet[int] = frozenset()
    is_sentencepiece: bool = False

    @classmethod
    def of_bytes(cls, size: int) -> Vocabulary:
        """256 bytes, two pairs of them, then control tokens up to `size`."""
        spelling = bytes_to_unicode()
        tokens = [spelling[byte] for byte in range(256)] + ["12", "ĊĊ"]
        special = [f"<|special{i}|>" for i in range(size - len(tokens))]
        control = frozenset(range(len(tokens), size))
        return cls([*tokens, *special], control, ["1 2", "Ċ Ċ"], 258)

    @classmethod
    def of_sentencepiece(cls, size: int) -> Vocabulary:
        """Three control tokens, pieces of "hi", then bytes up to `size`."""
        pieces = ["<unk>", "<s>", "</s>", "▁hi", "▁h", "hi", "▁", "h", "i"]
        tokens = [*pieces, *(f"<0x{byte:02X}>" for byte in range(size - len(pieces)))]
        return cls(tokens, frozenset({1, 2}), [], 2, is_sentencepiece=True)

    def with_last(self, token: str, *, control: bool) -> Vocabulary:
        """With another token at the last id, a control token or one that a user defined."""
        last = frozenset({len(self.tokens) - 1})
        return replace(
            self,
            tokens=[*self.tokens[:-1], token],
            control=self.control - last | (last if control else frozenset()),
            user_defined=frozenset() if control else last,
        )

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
    model: PreTrainedModel,
    pre: str | None,
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    vocabulary: Vocabulary | None = None,
    made: Mapping[str, NDArray[np.uint8]] | None = None,
    keys: Mapping[str, Value] = MappingProxyType({}),
    tensors: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
) -> Path:
    """Matrices in `kind`, the rest in fp32; without a vocabulary one of bytes.

    made: blocks of `kind` [rows, bytes] by parameter, in place of the model's own. keys, tensors:
    more of them, by the file's own names.
    """
    vocabulary = vocabulary or Vocabulary.of_bytes(model.config.vocab_size)
    writer = gguf.GGUFWriter(str(file), model.config.model_type)
    _write_shape(writer, model)
    _write_vocabulary(writer, vocabulary, pre)
    for name, value in keys.items():
        _write_key(writer, name, value)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values, own = _values(name, tensor, model), _name(name, model)
        if made is not None and name in made:
            writer.add_tensor(own, made[name], raw_dtype=kind)
        elif values.ndim == 2 and made is None and kind != GGMLQuantizationType.F32:
            writer.add_tensor(own, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(own, values)
    for name, more in tensors.items():
        writer.add_tensor(name, more)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_key(writer: gguf.GGUFWriter, name: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def _write_shape(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.model_type == "llama":
        writer.add_rope_dimension_count(width)
        writer.add_vocab_size(config.vocab_size)
    elif config.model_type == "qwen3":
        writer.add_key_length(width)
        writer.add_value_length(width)


def _write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary, pre: str | None) -> None:
    kinds = [gguf.TokenType.NORMAL] * len(vocabulary.tokens)
    for index in vocabulary.control:
        kinds[index] = gguf.TokenType.CONTROL
    for index in vocabulary.user_defined:
        kinds[index] = gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("llama" if vocabulary.is_sentencepiece else "gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(kinds)
    if vocabulary.is_sentencepiece:
        writer.add_token_scores([-float(index) for index in range(len(vocabulary.tokens))])
        writer.add_unk_token_id(0)
    else:
        writer.add_token_merges(list(vocabulary.merges))
    writer.add_bos_token_id(vocabulary.end)
    writer.add_eos_token_id(vocabulary.end)


@functools.cache
def _names(architecture: str, layers: int) -> gguf.TensorNameMap:
    kinds = {known: kind for kind, known in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(kinds[architecture], layers)


def _name(name: str, model: PreTrainedModel) -> str:
    path, _, kind = name.rpartition(".")
    names = _names(model.config.model_type, model.config.num_hidden_layers)
    return f"{names.get_name(path)}.{kind}"


def _values(name: str, tensor: torch.Tensor, model: PreTrainedModel) -> NDArray[np.float32]:
    """As llama.cpp writes them.

    Of a Llama rotated pairs lie beside each other, half a head apart in transformers; of a GPT-2
    the layers' matrices are transposed.
    """
    values: NDArray[np.float32] = tensor.detach().float().numpy()
    if model.config.model_type == "gpt2" and ".h." in name and values.ndim == 2:
        return np.ascontiguousarray(values.T)
    if model.config.model_type != "llama":
        return values
    heads = {
        "q_proj": model.config.num_attention_heads,
        "k_proj": model.config.num_key_value_heads,
    }.get(name.split(".")[-2])
    if heads is None:
        return values
    rows, columns = values.shape
    pairs = values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    return np.ascontiguousarray(pairs.reshape(rows, columns))
