"""Vocabulary keys of a GGUF file: each is applied, changes nothing, or is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "tokenizer.ggml."
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # tokenizer.ggml.model: how pieces are spelled
LISTS = ("tokens", "token_type", "merges", "scores")  # those that are read

_APPLIED = ("model", "pre")
_FLAGS = ("add_bos_token", "add_eos_token")
_ID = "_token_id"  # bos, eos, unknown and padding are applied; nothing here asks for others
_SILENT = ("token_type_count",)  # segments of a BERT
_IDLE: Mapping[str, Any] = {
    "add_sep_token": False,
    "remove_extra_whitespaces": False,
    "normalizer.lowercase": False,
    "normalizer.strip_accents": False,
}


def unapplied(keys: Mapping[str, Any]) -> dict[str, str]:
    """Why a file's keys cannot be served, by their whole names; of a file that can be, nothing.

    keys: all of a file's, by their whole names.
    """
    tokens = keys.get(f"{PREFIX}tokens")
    count = len(tokens) if isinstance(tokens, list) else 0
    of_bytes = keys.get(f"{PREFIX}model") == BYTE_LEVEL
    reasons = {}
    for name, value in keys.items():
        if name.startswith(PREFIX):
            why = _refusal(name.removeprefix(PREFIX), value, count, of_bytes=of_bytes)
            if why is not None:
                reasons[name] = why
    return reasons


def _refusal(key: str, value: Any, tokens: int, *, of_bytes: bool) -> str | None:
    """Why a key's value cannot be served."""
    if key in _APPLIED or key in _SILENT:
        return None
    if key in LISTS:
        return None if isinstance(value, list) else "a list is supported"
    if key.endswith(_ID):
        is_id = isinstance(value, int) and not isinstance(value, bool)
        return None if is_id and 0 <= value < tokens else f"the vocabulary has {tokens} tokens"
    if key == "add_space_prefix" and of_bytes:  # is about spaces of sentencepiece
        return None if value is False else "of bytes only false is supported"
    if key in _FLAGS or key == "add_space_prefix":
        return None if isinstance(value, bool) else "true or false is supported"
    if key in _IDLE:
        return None if value is _IDLE[key] else "only false is supported"
    return "nothing applies it"
