"""Tensor files: headers that lie, numbers that are none, tensors that are not LoRA."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.server.hostile.cases import TENSORS, Case, Good, Parts, parsed, replaced, tensor_file

Header = dict[str, Any]
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def sent(content: bytes) -> Callable[[Good], Parts]:
    """This in place of the tensor file."""
    return lambda good: replaced(good, TENSORS, content)


def entry(**changes: Any) -> Callable[[Good], Parts]:
    """A file of one tensor that is not quite right."""
    return sent(tensor_file({"a": {**ONE, **changes}}, bytes(4)))


def edited(change: Callable[[Header], Any], *, data: bytes = b"") -> Callable[[Good], Parts]:
    """A sound file with a changed header, and `data` behind its own."""

    def make(good: Good) -> Parts:
        header, own = parsed(good)
        change(header)
        return replaced(good, TENSORS, tensor_file(header, own + data))

    return make


def names(header: Header) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def first(change: Callable[[Header], Any]) -> Callable[[Good], Parts]:
    """A sound file whose first tensor is changed."""
    return edited(lambda header: change(header[names(header)[0]]))


def rename(old: str, new: str) -> Callable[[Good], Parts]:
    """A sound file with other names."""

    def change(header: Header) -> None:
        for name in names(header):
            header[name.replace(old, new)] = header.pop(name)

    return edited(change)


def updated(**changes: Any) -> Callable[[Header], Any]:
    """A change of some keys."""
    return lambda header: header.update(changes)


def added(name: str, count: int = 1) -> Callable[[Good], Parts]:
    """A sound file with tensors of zeros beside its own; `{}` in the name is their number."""

    def make(good: Good) -> Parts:
        header, data = parsed(good)
        for index in range(count):
            at = len(data) + 4 * index
            header[name.format(index)] = {**ONE, "data_offsets": [at, at + 4]}
        return replaced(good, TENSORS, tensor_file(header, data + bytes(4 * count)))

    return make


def valued(value: float, *, last: bool = False) -> Callable[[Good], Parts]:
    """A sound file with one number of its own."""

    def make(good: Good) -> Parts:
        header, data = parsed(good)
        numbers = np.frombuffer(data, "<f4").copy()
        numbers[-1 if last else 0] = value
        return replaced(good, TENSORS, tensor_file(header, numbers.tobytes()))

    return make


def padded(good: Good) -> Parts:
    """Data at an odd place of the file, which the format allows."""
    header, data = parsed(good)
    text = json.dumps(header).encode()
    text += b" " * (1 + len(text) % 2)
    return replaced(good, TENSORS, tensor_file(text, data))


def without(part: str) -> Callable[[Good], Parts]:
    """A sound file without some tensors, its data moved together."""

    def make(good: Good) -> Parts:
        header, data = parsed(good)
        kept: Header = {}
        packed = b""
        for name in names(header):
            if part not in name:
                begin, end = header[name]["data_offsets"]
                kept[name] = {
                    **header[name],
                    "data_offsets": [len(packed), len(packed) + end - begin],
                }
                packed += data[begin:end]
        return replaced(good, TENSORS, tensor_file(kept, packed))

    return make


_DTYPES = ("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "F64", "F8_E4M3", "F8_E5M2")
_WORDS = ("f32", "F4", "F128", "", "\ud800", 4, None, True, ["F32"], {"F32": 1}, "F32" * 10_000)
_SHAPES: dict[str, Any] = {
    "negative": [-1],
    "negative twice": [-1, -1],
    "fraction": [1.0],
    "flag": [True],
    "text": ["1"],
    "null": None,
    "number": 1,
    "object": {},
    "nested": [[1]],
    "huge": [1 << 62],
    "beyond 64 bits": [1 << 70],
    "product overflows": [1 << 32, 1 << 32],
    "product is zero": [0],
    "many": [1] * 100,
    "very many": [1] * 100_000,
}
_OFFSETS: dict[str, Any] = {
    "negative": [-4, 0],
    "turned": [4, 0],
    "beyond the file": [1 << 40, (1 << 40) + 4],
    "beyond 64 bits": [1 << 70, (1 << 70) + 4],
    "fractions": [0.0, 4.0],
    "flags": [False, True],
    "one": [0],
    "three": [0, 4, 8],
    "none": [],
    "null": None,
    "text": ["0", "4"],
    "object": {"0": 4},
    "too short": [0, 2],
    "too long": [0, 8],
    "a hole before": [4, 8],
}
_LENGTHS = {"all ones": (1 << 64) - 1, "2^63": 1 << 63, "a gigabyte": 1 << 30, "zero": 0, "one": 1}
_TEXTS: dict[str, bytes] = {
    **{"empty": b"", "a list": b"[]", "a number": b"1", "null": b"null", "text": b'"x"'},
    **{"NaN": b'{"a": NaN}', "Infinity": b'{"a": {"dtype": "F32", "shape": [Infinity]}}'},
    **{"not UTF-8": b'{"\xff": 1}', "cut": b'{"a": {', "trailing": b"{} x", "two": b"{}{}"},
    **{"deep": b'{"a":' * 100_000, "deep list": b'{"a":' + b"[" * 100_000, "a comment": b"{} // x"},
    **{"many digits": b'{"a": ' + b"1" * 100_000 + b"}", "a mark": b"\xef\xbb\xbf{}"},
    "many values": b'{"a": [' + b"1," * 1_000_000 + b"1]}",
    "a name twice": b'{"a": 1, "a": 2}',
    "a key twice": b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [], "data_offsets": [0, 4]}}',
    "a surrogate": rb'{"\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    "spaces": b"{" + b" " * (5 << 20) + b"}",
}
_TEXTS |= {
    "many fractions": b'{"a": [' + b"0.12345678," * 262_000 + b"1]}",
    "many lists": b'{"a": [' + b"[]," * 262_000 + b"1]}",
    "many flags": b'{"a": [' + b"true," * 262_000 + b"1]}",
    "many texts": b'{"a": [' + b'"",' * 262_000 + b"1]}",
    "many objects": b'{"a": [' + b"{}," * 262_000 + b"1]}",
    "some lists": b'{"a": [' + b"[]," * 17_000 + b"1]}",
    "many lists, named as tensors": b'{"a": ["data_offsets"'
    + b',"data_offsets"' * 16_000
    + b",[]" * 240_000
    + b"]}",
    "long numbers": b'{"a": [' + (b"1" * 4200 + b",") * 990 + b"1]}",
    "braces": b"{" * 4_000_000,
    "brackets": b'{"a": ' + b"[" * 4_000_000,
}
_TRAINING = {"tags": {f"tag {index}": index for index in range(8000)}, "sets": [{"n": 1}] * 1000}
_METADATA = {"list": [], "number": 1, "null": None, "nested": {"a": {}}, "numbers": {"a": 1}}

CASES: dict[str, Case] = {
    **{f"header {key}": Case(sent(tensor_file(text))) for key, text in _TEXTS.items()},
    **{
        f"length {key}": Case(sent(struct.pack("<Q", length) + b"{}" + bytes(8)))
        for key, length in _LENGTHS.items()
    },
    **{f"{n} bytes": Case(sent(bytes(n))) for n in (0, 1, 7, 8, 9)},
    **{f"shape {key}": Case(entry(shape=shape)) for key, shape in _SHAPES.items()},
    **{f"offsets {key}": Case(entry(data_offsets=value)) for key, value in _OFFSETS.items()},
    **{f"dtype {str(word)[:20]!a}": Case(entry(dtype=word)) for word in _WORDS},
    **{f"dtype {dtype} of LoRA": Case(first(updated(dtype=dtype))) for dtype in _DTYPES},
    **{
        f"metadata {key}": Case(edited(updated(__metadata__=value)))
        for key, value in _METADATA.items()
    },
    "metadata with a surrogate": Case(edited(updated(__metadata__={"a": "\ud800"})), "surrogate"),
    "metadata, sound": Case(edited(updated(__metadata__={"format": "pt"})), statuses=(201,)),
    "metadata, long": Case(edited(updated(__metadata__={"a": "x" * 1_000_000})), statuses=(201,)),
    "metadata, in JSON": Case(
        edited(updated(__metadata__={"training": json.dumps(_TRAINING)})), statuses=(201,)
    ),
    "data at an odd place": Case(padded, statuses=(201,)),
    "one key more": Case(first(lambda one: one.update(stride=[1])), "exactly"),
    "one key less": Case(first(lambda one: one.pop("shape")), "exactly"),
    "no tensors": Case(sent(tensor_file({})), "no LoRA"),
    "bytes behind": Case(edited(lambda header: None, data=b"x"), "unused"),
    "cut short": Case(lambda good: replaced(good, TENSORS, good[TENSORS][:-4]), "truncated"),
    "cut in the header": Case(lambda good: replaced(good, TENSORS, good[TENSORS][:100])),
    "overlap": Case(
        edited(lambda header: header.__setitem__(names(header)[1], header[names(header)[0]]))
    ),
    "a pickle": Case(sent(b"\x80\x04\x95" + bytes(100))),
    "a zip": Case(sent(b"PK\x03\x04" + bytes(100))),
    "a page": Case(sent(b"<!DOCTYPE html><html>404</html>")),
    "A without B": Case(without("lora_B"), "no lora_B"),
    "B without A": Case(without("lora_A"), "no lora_A"),
    "a layer is missing": Case(without("layers.1."), "holds no tensors"),
    "A and B exchanged": Case(rename("lora_A", "lora_C")),
    "names of another model": Case(rename("layers", "h"), "is no module"),
    "a layer out of range": Case(rename("layers.1.", "layers.99."), "is no module"),
    "two adapters": Case(added("base_model.model.model.layers.0.self_attn.q_proj.lora_A.b.weight")),
    "shape turned": Case(first(lambda one: one.update(shape=one["shape"][::-1]))),
    "shape of one dimension": Case(
        first(lambda one: one.update(shape=[int(np.prod(one["shape"]))]))
    ),
    "shape of four": Case(first(lambda one: one.update(shape=[*one["shape"], 1, 1]))),
    "DoRA": Case(added("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector")),
    "a bias": Case(added("base_model.model.model.layers.0.self_attn.q_proj.bias"), "biases"),
    "an embedding": Case(added("base_model.model.model.embed_tokens.weight"), "resized"),
    "a norm": Case(added("base_model.model.model.norm.weight"), "modules_to_save"),
    "a stray": Case(added("x"), "no LoRA"),
    "a name of nothing": Case(added("")),
    "a name of NUL": Case(added("a\0b")),
    "a long name": Case(added("x" * 10_000)),
    "a name of dots": Case(added("." * 500)),
    "a name of many parts": Case(added("a." * 200 + "lora_A.weight")),
    "many strays": Case(added("x{}", 5000)),
    "many modules": Case(
        added("base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight", 5000)
    ),
    "too many tensors": Case(added("x{}", 20_000), "at most 16384"),
    **{
        f"{value} {'at the end' if last else 'at the start'}": Case(
            valued(value, last=last), "NaN or infinite"
        )
        for value in (float("nan"), float("inf"), float("-inf"))
        for last in (False, True)
    },
    "large numbers": Case(valued(3e38), statuses=(201,)),
    "tiny numbers": Case(valued(1e-45), statuses=(201,)),
}
