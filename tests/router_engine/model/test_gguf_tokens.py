"""The tokenizer of a GGUF file has the file's tokens, at their ids, and does what its keys say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router_engine.errors import UnsupportedModelError
from router_engine.model.gguf_tokenizer import load_gguf_tokenizer
from router_engine.model.loader import described_by
from router_engine.model.tiny import tiny_model
from tests.support.gguf import Value, Vocabulary, save_gguf
from tests.support.tiny import family_model

ROWS = 259  # tokens of a tiny model
OF_BYTES = Vocabulary.of_bytes(ROWS)
OF_PIECES = Vocabulary.of_sentencepiece(ROWS)
END = OF_BYTES.end
HI = 3  # "▁hi" of sentencepiece

Keys = Mapping[str, Value]


def _tokenizer(
    tmp_path: Path,
    vocabulary: Vocabulary = OF_BYTES,
    pre: str | None = "smollm",
    keys: Keys | None = None,
) -> Any:
    file = tmp_path / "tiny.gguf"
    below = {f"tokenizer.ggml.{key}": value for key, value in (keys or {}).items()}
    return load_gguf_tokenizer(
        save_gguf(file, tiny_model(), pre, vocabulary=vocabulary, keys=below)
    )


def _refusal(tmp_path: Path, vocabulary: Vocabulary, keys: Keys) -> str:
    with pytest.raises(UnsupportedModelError) as raised:
        _tokenizer(tmp_path, vocabulary, keys=keys)
    told = str(raised.value)
    assert str(tmp_path / "tiny.gguf") in told
    assert "\n" not in told
    assert len(told) < 1000
    return told


WHOLE = (
    "<|plain|>",
    "<｜User｜>",
    "<a b>",
    "   ",
    "\n\n",
    "<tab\t>",
    "你好",
    "<é>",
    "ĠĠx",
    "[MASK]",
)


@pytest.mark.parametrize("kind", ["control", "user-defined"])
@pytest.mark.parametrize("vocabulary", [OF_BYTES, OF_PIECES], ids=["bytes", "sentencepiece"])
@pytest.mark.parametrize("token", WHOLE)
def test_a_whole_token_is_found_whatever_its_spelling(
    tmp_path: Path, token: str, vocabulary: Vocabulary, kind: str
) -> None:
    control = kind == "control"
    vocabulary = replace(vocabulary.with_last(token, control=control), end=ROWS - 2)
    tokenizer = _tokenizer(tmp_path, vocabulary)
    last = ROWS - 1
    assert len(tokenizer) == ROWS
    assert tokenizer.convert_ids_to_tokens(list(range(ROWS))) == list(vocabulary.tokens)
    ids = tokenizer.encode(f"hi{token}hi", add_special_tokens=False)
    hi = tokenizer.encode("hi", add_special_tokens=False)
    assert ids == [*hi, last, *hi]
    assert (last in tokenizer.all_special_ids) is False  # no end of a text
    assert tokenizer.added_tokens_decoder[last].special is control


def test_no_token_is_made_up(tmp_path: Path) -> None:
    for text in ("<|endoftext|>", "<s>", "</s>", "<unk>", "<pad>"):
        tokenizer = _tokenizer(tmp_path)
        assert len(tokenizer) == ROWS
        assert tokenizer.encode(text) == list(text.encode())
        assert set(tokenizer.all_special_ids) == {END}
        assert tokenizer.unk_token is None


def test_other_names_of_the_special_tokens_of_sentencepiece(tmp_path: Path) -> None:
    tokens = ["[U]", "[B]", "[E]", *OF_PIECES.tokens[3:]]
    tokens[tokens.index("<0x9F>")] = "other"
    tokenizer = _tokenizer(tmp_path, replace(OF_PIECES, tokens=tokens), keys={"bos_token_id": 1})
    assert len(tokenizer) == ROWS
    assert (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token) == ("[U]", "[B]", "[E]")
    assert "<s>" not in tokenizer.get_vocab()
    # A character that has no piece, and one of whose bytes has none either.
    assert tokenizer.encode("hi\N{GRINNING FACE}") == [1, HI, 0]


BOS: Keys = {"bos_token_id": 1}
PREFIX: list[tuple[Keys, str, list[int]]] = [
    ({}, "hi", [HI]),
    ({"add_space_prefix": True}, "hi", [HI]),
    ({"add_space_prefix": False}, "hi", [5]),
    ({}, " hi", [6, HI]),
    ({"add_space_prefix": False}, " hi", [HI]),
    ({}, "hi</s>hi", [HI, 2, HI]),
    ({"add_space_prefix": False}, "hi</s>hi", [5, 2, 5]),
]


@pytest.mark.parametrize(("keys", "text", "ids"), PREFIX)
def test_a_space_is_put_before_text_or_not(
    tmp_path: Path, keys: Keys, text: str, ids: list[int]
) -> None:
    tokenizer = _tokenizer(tmp_path, OF_PIECES, keys={**BOS, **keys})
    assert tokenizer.encode(text) == [1, *ids]
    if "</s>" not in text:  # one space belongs to the text's beginning, not to each part's
        assert tokenizer.decode(ids) == text


ENDS: list[tuple[Vocabulary, str, Keys, list[int], list[int]]] = [
    (OF_BYTES, "smollm", {}, [], []),
    (OF_BYTES, "gpt-2", {}, [], []),
    (OF_BYTES, "qwen2", {}, [], []),
    (OF_BYTES, "llama-bpe", {}, [END], []),
    (OF_BYTES, "llama-v3", {}, [END], []),
    (OF_BYTES, "llama3", {}, [END], []),
    (OF_BYTES, "llama-bpe", {"add_bos_token": False}, [], []),
    (OF_BYTES, "smollm", {"add_bos_token": True}, [END], []),
    (OF_BYTES, "smollm", {"add_eos_token": True}, [], [END]),
    (OF_PIECES, "default", BOS, [1], []),
    (OF_PIECES, "default", {**BOS, "add_bos_token": False}, [], []),
    (OF_PIECES, "default", {**BOS, "add_eos_token": True}, [1], [2]),
]


@pytest.mark.parametrize(("vocabulary", "pre", "keys", "before", "after"), ENDS)
def test_a_text_begins_and_ends_as_the_file_says(
    tmp_path: Path,
    vocabulary: Vocabulary,
    pre: str,
    keys: Keys,
    before: list[int],
    after: list[int],
) -> None:
    tokenizer = _tokenizer(tmp_path, vocabulary, pre, keys)
    inner = tokenizer.encode("hi", add_special_tokens=False)
    assert tokenizer.encode("hi") == [*before, *inner, *after]


@pytest.mark.parametrize("pre", ["llama-bpe", "llama-v3", "llama3", "qwen2", "smollm"])
def test_a_word_of_llama_3_that_is_a_piece_needs_no_merges(tmp_path: Path, pre: str) -> None:
    tokens = [*OF_BYTES.tokens[:257], "abc", OF_BYTES.tokens[258]]
    vocabulary = replace(OF_BYTES, tokens=tokens, merges=["1 2"])
    ids = _tokenizer(tmp_path, vocabulary, pre).encode("abc", add_special_tokens=False)
    assert ids == ([257] if pre.startswith("llama") else [97, 98, 99])


@pytest.mark.parametrize("pre", ["qwen2", "llama-bpe", "smollm"])
def test_text_of_a_qwen_is_composed(tmp_path: Path, pre: str) -> None:
    ids = _tokenizer(tmp_path, pre=pre).encode("e\u0301", add_special_tokens=False)
    assert ids == list(("é" if pre == "qwen2" else "e\u0301").encode())


UNNAMED = {
    "gpt2": ["a", "\n\n", " 12"],
    "qwen2": ["a", "\n\n", " ", "1", "2"],
    "qwen3": ["a", "\n\n", " ", "1", "2"],
}


@pytest.mark.parametrize("family", UNNAMED)
@pytest.mark.parametrize("pre", [None, ""])
def test_an_architecture_with_one_way_to_cut_need_not_name_it(
    tmp_path: Path, family: str, pre: str | None
) -> None:
    tokenizer = load_gguf_tokenizer(save_gguf(tmp_path / "x.gguf", family_model(family), pre))
    text = "a\n\n 12"
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in pieces] == UNNAMED[family]
    is_composed = tokenizer.encode("e\u0301") == list("é".encode())
    assert is_composed == family.startswith("qwen")


@pytest.mark.parametrize("pre", [None, ""])
def test_a_llama_that_does_not_say_how_it_cuts_is_refused(tmp_path: Path, pre: str | None) -> None:
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.ggml\.pre .*how its text is cut"):
        _tokenizer(tmp_path, pre=pre)
    assert _tokenizer(tmp_path, OF_PIECES, pre, BOS).encode("hi") == [1, HI]  # has nothing to say


# What llama.cpp's converters write of these families, and nothing here asks for.
IDLE: Keys = {
    **{
        f"{kind}_token_id": 7
        for kind in (
            *("eot", "eom", "seperator", "separator", "padding", "unknown", "cls", "mask"),
            *("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"),
            *("prefix", "suffix", "middle"),
        )
    },
    "add_sep_token": False,
    "add_eos_token": False,
    "add_bos_token": False,
    "add_space_prefix": False,
    "remove_extra_whitespaces": False,
    "normalizer.lowercase": False,
    "token_type_count": 1,
    "scores": [0.0] * ROWS,
}


def test_keys_of_ordinary_files_are_let_by(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, keys=IDLE)
    described_by(str(tmp_path / "tiny.gguf"))
    assert tokenizer.encode("hi 12") == [104, 105, 32, 49, 50]
    assert len(tokenizer) == ROWS


def test_chat_templates(tmp_path: Path) -> None:
    keys: Keys = {
        "tokenizer.chat_template": "{{ messages[0].content }}!",
        "tokenizer.chat_template.tool_use": "other",
        "tokenizer.chat_templates": ["tool_use"],
    }
    file = save_gguf(tmp_path / "tiny.gguf", tiny_model(), "smollm", keys=keys)
    tokenizer = load_gguf_tokenizer(file)
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "hi!"
    keys = {"tokenizer.chat_template": 5}
    file = save_gguf(tmp_path / "tiny.gguf", tiny_model(), "smollm", keys=keys)
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.chat_template is no text"):
        load_gguf_tokenizer(file)


REFUSED: list[tuple[Keys, str]] = [
    ({"add_sep_token": True}, "add_sep_token = True"),
    ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces = True"),
    ({"precompiled_charsmap": [1, 2, 3]}, "precompiled_charsmap = a list"),
    ({"suppress_tokens": [1, 2]}, "suppress_tokens = a list"),
    ({"normalizer.lowercase": True}, "normalizer.lowercase = True"),
    ({"normalizer.strip_accents": True}, "normalizer.strip_accents = True"),
    ({"add_bos_token": 1}, "add_bos_token = 1"),
    ({"add_eos_token": "yes"}, "add_eos_token = yes"),
    ({"add_space_prefix": 1}, "add_space_prefix = 1"),
    ({"eos_token_ids": [1, 2]}, "eos_token_ids = a list"),
    ({"what_comes_next": "x" * 9999}, "what_comes_next = xxx"),
    ({"bos_token_id": ROWS}, f"bos_token_id = {ROWS} (the vocabulary has {ROWS} tokens)"),
    ({"eos_token_id": 9999}, f"eos_token_id = 9999 (the vocabulary has {ROWS} tokens)"),
    ({"unknown_token_id": 2**31}, "unknown_token_id = 2147483648"),
    ({"padding_token_id": 2**32 - 1}, "padding_token_id = 4294967295"),
    ({"eot_token_id": ROWS}, f"eot_token_id = {ROWS}"),
    ({"fim_pre_token_id": ROWS}, f"fim_pre_token_id = {ROWS}"),
    ({"bos_token_id": "x"}, "bos_token_id = x"),
    ({"eos_token_id": True}, "eos_token_id = True"),
    ({"padding_token_id": 1.0}, "padding_token_id = 1.0"),
    ({"bos_token_id": [1]}, "bos_token_id = a list"),
]


@pytest.mark.parametrize(("keys", "words"), REFUSED, ids=lambda of: str(of)[:40])
@pytest.mark.parametrize("vocabulary", [OF_BYTES, OF_PIECES], ids=["bytes", "sentencepiece"])
def test_a_key_that_nothing_applies_is_refused_by_name(
    tmp_path: Path, vocabulary: Vocabulary, keys: Keys, words: str
) -> None:
    told = _refusal(tmp_path, vocabulary, keys)
    assert f"tokenizer.ggml.{words}" in told
    with pytest.raises(UnsupportedModelError) as raised:
        described_by(str(tmp_path / "tiny.gguf"))
    assert str(raised.value) == told


def test_a_space_before_bytes_is_refused(tmp_path: Path) -> None:
    told = _refusal(tmp_path, OF_BYTES, {"add_space_prefix": True})
    assert "tokenizer.ggml.add_space_prefix = True (of bytes only false is supported)" in told


UNFIT: list[tuple[Vocabulary, Keys, str]] = [
    (OF_BYTES, {"model": "t5"}, "model is t5: supported: gpt2, llama"),
    (OF_BYTES, {"model": "gemma4"}, "model is gemma4: supported: gpt2, llama"),
    (OF_BYTES, {"token_type": [1] * 7}, "token_type: 7 of them for 259 tokens"),
    (OF_BYTES, {"merges": [1, 2]}, "merges: a list of str is needed"),
    (OF_BYTES, {"merges": "1 2"}, "merges = 1 2 (a list is supported)"),
    (OF_BYTES, {"tokens": 259}, "tokens = 259 (a list is supported)"),
    (OF_BYTES, {"token_type": 1}, "token_type = 1 (a list is supported)"),
    (OF_PIECES, {**BOS, "scores": ["a"] * ROWS}, "scores: a list of Real is needed"),
    (OF_BYTES, {"tokens": ["a", "b", "a"], "bos_token_id": 0, "eos_token_id": 0}, "'a' twice"),
    (OF_PIECES, {**BOS, "scores": [0.0] * 7}, "scores: 7 of them for 259 tokens"),
    (replace(OF_BYTES, is_sentencepiece=True), {"model": "gpt2"}, "merges is not there"),
    (replace(OF_PIECES, is_sentencepiece=False), {"model": "llama"}, "scores is not there"),
]


@pytest.mark.parametrize(("vocabulary", "keys", "words"), UNFIT)
def test_lists_that_do_not_fit_are_named(
    tmp_path: Path, vocabulary: Vocabulary, keys: Keys, words: str
) -> None:
    assert words in _refusal(tmp_path, vocabulary, keys)


def test_a_file_that_adds_a_token_must_name_it(tmp_path: Path) -> None:
    file = save_gguf(tmp_path / "tiny.gguf", tiny_model(), "llama-bpe")
    file.write_bytes(file.read_bytes().replace(b"tokenizer.ggml.bos", b"tokenizer.xxxx.bos"))
    with pytest.raises(UnsupportedModelError, match=r"tokenizer\.ggml\.bos_token_id is not there"):
        load_gguf_tokenizer(file)
