"""Detokenizing and stop strings, on real tokenizers made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from router_engine.events import TokenEvent
from router_engine.model.tiny import tiny_tokenizer
from server.generation.answer_text import AnswerText
from server.generation.detokenizer import Detokenizer, StopMatcher
from server.generation.tokenization import Tokenization

BYTES = Tokenization(tiny_tokenizer(), eos_ids=(2,))
TEXTS = ("hello", "naïve café", "日本語テキスト", "a😀b👩‍👩‍👧", "tab\tnew\n\nline", "  spaces  ")


def _byte_fallback() -> Tokenization:
    """A Llama-style tokenizer: words with ▁, and one token a byte for the rest."""
    words = ["<unk>", "</s>", "▁", "▁hello", "▁world", "o", "!", "é"]
    vocabulary = {
        token: i for i, token in enumerate([*words, *(f"<0x{b:02X}>" for b in range(256))])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>"
    )
    return Tokenization(wrapped, eos_ids=(1,))


FALLBACK = _byte_fallback()
FIRST_BYTE = 8


def deltas(tokenization: Tokenization, ids: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(tokenization)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_deltas_join_to_the_text_and_are_never_half_a_character(text: str) -> None:
    pieces = deltas(BYTES, BYTES.encode(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, 258), max_size=40))
def test_byte_level_deltas_join_to_the_decoding_of_any_tokens(ids: list[int]) -> None:
    assert "".join(deltas(BYTES, ids)) == BYTES.decode(ids)


@given(st.lists(st.integers(0, FIRST_BYTE + 255), max_size=40))
def test_byte_fallback_deltas_join_to_the_decoding_of_any_tokens(ids: list[int]) -> None:
    assert "".join(deltas(FALLBACK, ids)) == FALLBACK.decode(ids)


@given(st.text(min_size=1, max_size=20))
def test_byte_fallback_never_shows_half_a_character(text: str) -> None:
    ids = [FIRST_BYTE + byte for byte in text.encode("utf-8", "ignore")]
    pieces = deltas(FALLBACK, [3, *ids, 4])
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == FALLBACK.decode([3, *ids, 4])


def test_text_comes_as_soon_as_it_is_settled() -> None:
    detokenizer = Detokenizer(BYTES)
    first, second = BYTES.encode("é")
    assert detokenizer.push(BYTES.encode("a")[0]) == "a"
    assert detokenizer.push(first) == ""
    assert detokenizer.num_pending == 1
    assert detokenizer.push(second) == "é"
    assert not detokenizer.num_pending


def run(text: str, stops: Sequence[str], min_new_tokens: int = 0) -> tuple[AnswerText, list[str]]:
    """Feed a text byte by byte; the answer and the texts of its pieces."""
    answer = AnswerText(BYTES, stops, min_new_tokens)
    pieces: list[str] = []
    for token_id in BYTES.encode(text):
        pieces += [piece.text for piece in answer.push(TokenEvent("r", token_id, -1.0))]
        if answer.is_stopped:
            break
    pieces += [piece.text for piece in answer.flush()]
    return answer, pieces


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one\n\ntwo", ["\n\n"], "one"),
        ("one\ntwo\n\nthree", ["\n\n"], "one\ntwo"),
        ("abcd", ["cd", "bcd"], "a"),
        ("abcabd", ["abd"], "abc"),
        ("aaab", ["aab"], "a"),
        ("xé!y", ["é!"], "x"),
        ("no stop here", ["zzz"], "no stop here"),
        ("ends in a part of one <", ["</s>"], "ends in a part of one <"),
        ("stop", ["stop"], ""),
    ],
)
def test_the_text_ends_before_the_first_stop_string(
    text: str, stops: list[str], expected: str
) -> None:
    answer, pieces = run(text, stops)
    assert answer.text == expected
    assert "".join(pieces) == expected
    assert answer.is_stopped == (expected != text)
    assert len(pieces) == answer.num_tokens


@given(st.text("ab\n", max_size=30), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_any_stop_strings_cut_where_the_text_first_holds_one(text: str, stops: list[str]) -> None:
    answer, pieces = run(text, stops)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert answer.text == text
    else:
        seen = text[: min(ends)]
        assert answer.text == seen[: min(seen.find(stop) for stop in stops if stop in seen)]
    assert "".join(pieces) == answer.text


def test_what_may_become_a_stop_string_is_held_back() -> None:
    answer = AnswerText(BYTES, ["<end>"])
    released = []
    for token_id in BYTES.encode("a<en!"):
        released.append([piece.text for piece in answer.push(TokenEvent("r", token_id, -1.0))])
    assert released == [["a"], [], [], [], ["<", "e", "n", "!"]]


def test_stop_strings_do_not_count_before_min_new_tokens() -> None:
    answer, _ = run("a.b.c.d", ["."], min_new_tokens=4)
    assert answer.text == "a.b.c"


ADDED = st.lists(st.text("ab", max_size=6), max_size=8)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


@given(parts=ADDED, stops=STOPS)
def test_stop_strings_are_found_and_held_back_as_they_are_defined(
    parts: list[str], stops: list[str]
) -> None:
    matcher, text = StopMatcher(stops), ""
    for added in parts:
        begun = matcher.push(added)
        before, text = len(text), text + added
        ends = [
            (at, at + len(stop))
            for stop in stops
            for at in range(len(text))
            if text.startswith(stop, at) and at + len(stop) > before
        ]
        assert begun == (len(text) - min(ends)[0] if ends else None)
        beginnings = {stop[:length] for stop in stops for length in range(len(stop))}
        assert matcher.held_back == max(len(one) for one in beginnings if text.endswith(one))


def test_a_text_that_begins_anew_holds_nothing_of_the_old_one() -> None:
    matcher = StopMatcher(["ab", "b"])
    assert matcher.push("xxab") == 2
    assert matcher.push("xx") is None
    assert matcher.push("a") is None
    assert matcher.held_back == 1
    matcher.reset()
    assert matcher.held_back == 0
    assert matcher.push("b") == 1


class Counted(str):
    """Text that counts how often one of its characters is looked at."""

    looks = 0

    def __getitem__(self, key: Any) -> Any:
        Counted.looks += 1
        return super().__getitem__(key)


@pytest.mark.parametrize("end", ["x", "y"])
def test_a_token_costs_what_it_adds_however_long_stop_strings_are(end: str) -> None:
    added, times = "xxxxx", 1000
    matcher = StopMatcher([Counted("x" * 1023 + "z")] * 16)
    Counted.looks = 0
    for _ in range(times):
        matcher.push(added + end)
    assert Counted.looks <= 4 * times * len(added + end)


class Counting:
    """A tokenizer that counts what it decodes."""

    def __init__(self) -> None:
        self.decoded = 0

    def decode(self, ids: Sequence[int]) -> str:
        self.decoded += len(ids)
        return BYTES.decode(ids)

    def is_skipped(self, token_id: int) -> bool:
        return BYTES.is_skipped(token_id)

    def token_of(self, token_id: int) -> str:
        return BYTES.token_of(token_id)


@pytest.mark.parametrize(
    "ids",
    [
        BYTES.encode("\ufffd" * 1000),
        BYTES.encode("\ufffd", add_special_tokens=False)[:1] * 3000,
        BYTES.encode("é")[:1] * 3000,
        (2,) * 3000,
        (BYTES.encode("é")[0], *(2,) * 3000, BYTES.encode("é")[1]),
        (*BYTES.encode("a"), *(2,) * 3000, *BYTES.encode("b")),
    ],
    ids=["replacements", "first bytes", "unfinished", "special", "special within", "between"],
)
def test_a_token_costs_the_same_however_many_came_before(ids: Sequence[int]) -> None:
    counting = Counting()
    answer = AnswerText(counting)
    texts, waited = [], 0
    for token_id in ids:
        texts += [piece.text for piece in answer.push(TokenEvent("r", token_id, -1.0))]
        waited = max(waited, answer.num_tokens - len(texts))
    texts += [piece.text for piece in answer.flush()]
    assert "".join(texts) == answer.text == BYTES.decode(ids)
    assert len(texts) == len(ids)
    assert counting.decoded < 60 * len(ids)
    assert waited < 20 or 2 in ids
