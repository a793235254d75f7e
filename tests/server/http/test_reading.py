"""Bodies of JSON: what they say, strictly, whether they are read at once or in slices."""

from __future__ import annotations

import json
import re
from typing import Any

import jiter
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.body_reading import MOST, read_json
from server.http.error_replies import UnreadableBodyError
from server.http.slices import Most, SlicedReader

LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
) | st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


def at_once(text: bytes) -> Any:
    return jiter.from_json(text, cache_mode="none", catch_duplicate_keys=True)


def in_slices(text: bytes, most: Most = MOST) -> Any:
    return SlicedReader(text, at_once, most).read()


def said(read: Any, text: bytes) -> Any:
    try:
        return read(text)
    except ValueError:
        return ValueError


@given(value=VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 0, 2]))
def test_slices_say_what_the_whole_says(
    value: Any, *, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    assert in_slices(text) == at_once(text) == value


@given(value=VALUES, data=st.data())
def test_slices_refuse_what_the_whole_refuses(value: Any, data: st.DataObject) -> None:
    text = bytearray(json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        put = data.draw(
            st.sampled_from([b"", *(bytes([one]) for one in b'[]{},:"\\u 0-.entd\xff')])
        )
        text[at : at + data.draw(st.integers(0, 1))] = put
    assert said(in_slices, bytes(text)) == said(at_once, bytes(text))


TEXTS = {
    "escapes": '"' + r"\u00e9" * 300_000 + '"',
    "pairs": '"a' + r"\ud83d\ude00" * 100_000 + '"',
    "short escapes": '"' + r"\n\"\\" * 200_000 + '"',
    "wide": '"' + "a" + "𝄞€é" * 300_000 + '"',
    "numbers": "[" + "49151, " * 400_000 + "1]",
    "lists of numbers": "[" + ",".join(["[" + "49151," * 2000 + "1]"] * 200) + "]",
    "brackets in text": json.dumps({"inputs": ["[{,"] * 64 + ["[{,\n" * 500_000]}),
    "keys": json.dumps({f"k{index}": {"a": [index]} for index in range(5_000)}),
    "spaces": " " * 3_000_000 + '["a"' + "\n" * 3_000_000 + "]",
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_long_is_read_in_slices(name: str) -> None:
    text = TEXTS[name].encode()
    longest = 0

    def read(piece: bytes) -> Any:
        nonlocal longest
        longest = max(longest, len(piece))
        return at_once(piece)

    assert SlicedReader(text, read, MOST).read() == json.loads(text) == read_json(text)
    assert longest <= (1 << 16) + 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b'{"a": 1, "b": 2, "a": 1}', "uplicate key"),
        (b'{"x": {"a": 1, "\\u0061": 2}}', "uplicate key"),
        (b'["' + b"a" * (2 << 20) + b'", {"a": 1, "a": 2}]', "uplicate key"),
        (b"[" * 300 + b"]" * 300, "recursion"),
        (b"[" * 40_000 + b"]" * 40_000, "inside each other"),
        (b"[" + b"[],  " * MOST.brackets + b"[]]", f"more than {MOST.brackets} brackets"),
        (b"[" + b"{},  " * MOST.brackets + b"{}]", f"more than {MOST.brackets} brackets"),
        (b"[" + b'"",' * MOST.strings + b'""]', f"more than {MOST.strings} strings"),
        (b"[" + b"1," * MOST.numbers + b"1]", f"more than {MOST.numbers} numbers"),
        (b'["",' + b"1," * MOST.numbers + b"1]", f"more than {MOST.numbers} numbers"),
        (b"[" + b"1," * 20_000 + b"]", "byte|trailing|expected"),
        (b"[" + b"1," * 40_000 + b"," * 40_000 + b"1]", "byte|expected"),
        (b"[" + b"1" * (1 << 20) + b"1]", "from number to number"),
        (b'["' + b"\\u00e9" * 20_000 + b"\\ud83d" + b'"]', "byte"),
        (b'["' + b"\\u00e9" * 20_000 + b"\\ude00" + b'"]', "surrogate|escape"),
        (b'["' + b"\\u00e9" * 20_000, "before it is whole"),
        (b'["' + b"\x80" * (2 << 20) + b'"]', "byte"),
        (b"[1" + b"0" * 19 + b"]", "beyond 64 bits"),
        (b'{"a": [' + b"1," * 30_000 + b"-9223372036854775809]}", "beyond 64 bits"),
    ],
)
def test_what_is_no_usable_body_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(UnreadableBodyError) as caught:
        read_json(text)
    assert re.search(why, caught.value.detail)
