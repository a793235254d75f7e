"""How the tokenizer of a GGUF file cuts text before it looks up pieces.

The file names it (`tokenizer.ggml.pre`); transformers takes every byte-level vocabulary for that of
GPT-2. The expressions are those that the models' own tokenizers have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from router_engine.errors import UnsupportedModelError
from router_engine.model.gguf_config import alone, plain_keys

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = (
    _CONTRACTIONS + r"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_EXPRESSIONS = {
    "llama-bpe": _WORDS.format(digits=r"\p{N}{1,3}"),
    "llama-v3": _WORDS.format(digits=r"\p{N}{1,3}"),
    "llama3": _WORDS.format(digits=r"\p{N}{1,3}"),
    "qwen2": _WORDS.format(digits=r"\p{N}"),
}
_PLAIN = ("default", "gpt-2", "gpt2")
_DIGITS = ("smollm",)  # each digit apart, then GPT-2's words
_BYTE_LEVEL = "gpt2"  # tokenizer.ggml.model of vocabularies of bytes


def load_gguf_tokenizer(file: Path) -> Any:
    """The tokenizer of a GGUF file. Raises UnsupportedModelError for an unknown way to cut."""
    from transformers import AutoTokenizer

    with alone(file) as (folder, own):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=own, trust_remote_code=False)
    keys = plain_keys(file)
    if keys.get("tokenizer.ggml.model") == _BYTE_LEVEL:
        name = str(keys.get("tokenizer.ggml.pre") or "default")
        tokenizer.backend_tokenizer.pre_tokenizer = _pre_tokenizer(name)
    return tokenizer


def _pre_tokenizer(name: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    if name in _PLAIN:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    if name in _EXPRESSIONS:
        split = pre_tokenizers.Split(Regex(_EXPRESSIONS[name]), behavior="isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, level])
    known = ", ".join((*_PLAIN, *_DIGITS, *_EXPRESSIONS))
    raise UnsupportedModelError(
        f"tokenizer.ggml.pre {name!r} is not supported; supported: {known}. A checkpoint directory "
        "with tokenizer.json brings its own"
    )
