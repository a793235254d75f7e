"""safetensors without torch: the header, bounds-checked, and a scan for NaN and Inf.

Format: 8 bytes little endian N, N bytes of JSON {name: {dtype, shape, data_offsets}}, the data.
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from adapters_store.errors import TensorFileError
from adapters_store.texts import is_utf8

# Bytes per element of the dtypes that fill whole bytes.
DTYPE_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
# Finite exactly when the exponent bits are not all ones (IEEE 754; bfloat16 is float32's top half).
_EXPONENTS: Mapping[str, tuple[str, int]] = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
}

_MAX_NAME = 512
_VALUES_EACH = 16  # commas of a header for each tensor that it may hold; one takes five or six
_VALUES_TOGETHER = 16_384  # commas between two objects: a tensor has five, metadata some dozens
_OTHER_OBJECTS = 4096  # beside the tensors: in texts of the metadata
_MOST_DIGITS = 80
_MAX_DIMENSIONS = 8
_MAX_DIMENSION = 1 << 48
_SCAN_BYTES = 4 << 20
_LENGTH_BYTES = 8
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `nbytes` bytes of `dtype` from `offset` of the file on, row major."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """All tensors of a file by name; each byte of the data belongs to exactly one of them."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_header(
    path: Path, *, max_header_bytes: int = 4 << 20, max_tensors: int = 16_384
) -> TensorHeader:
    """Read and check a safetensors header.

    Raises TensorFileError with every problem found: truncated or oversized header, broken or deep
    JSON, names twice, unknown dtypes, sizes that do not follow from shape and dtype, byte ranges
    that overlap, leave holes or leave the file.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = _header_length(stream, size, max_header_bytes)
        entries = _parse(stream.read(length), max_tensors)
    metadata = _metadata(entries.pop("__metadata__", {}))
    if len(entries) > max_tensors:
        raise TensorFileError([_too_many(len(entries), max_tensors)])
    start = _LENGTH_BYTES + length
    tensors: dict[str, TensorInfo] = {}
    problems: list[str] = []
    for name, entry in entries.items():
        try:
            tensors[name] = _tensor(name, entry, start)
        except TensorFileError as error:
            problems += error.problems
    if not problems:
        problems += _layout_problems(tensors, start, size)
    if problems:
        raise TensorFileError(problems)
    return TensorHeader(tensors, metadata)


def count_non_finite(path: Path, tensor: TensorInfo) -> int:
    """The number of NaN and infinite values in a F16, BF16, F32 or F64 tensor; 0 for other dtypes.

    `tensor` comes from `read_header(path)`. Reads 4 MiB at a time.
    """
    if tensor.dtype not in _EXPONENTS:
        return 0
    dtype, exponent = _EXPONENTS[tensor.dtype]
    mask = np.array(exponent, dtype=dtype)
    count = 0
    with path.open("rb") as stream:
        stream.seek(tensor.offset)
        left = tensor.nbytes
        while left:
            chunk = stream.read(min(left, _SCAN_BYTES))
            if not chunk:
                raise TensorFileError([f"{path.name} was cut short while it was read"])
            left -= len(chunk)
            bits: NDArray[Any] = np.frombuffer(chunk, dtype=dtype)
            count += int(np.count_nonzero((bits & mask) == mask))
    return count


def _header_length(stream: BinaryIO, size: int, limit: int) -> int:
    prefix = stream.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        raise TensorFileError([f"is {size} bytes long, too short for a safetensors file"])
    length = int.from_bytes(prefix, "little")
    if length > limit:
        raise TensorFileError(
            [f"says its header is {length} bytes long, at most {limit} are accepted"]
        )
    if length > size - _LENGTH_BYTES:
        raise TensorFileError(
            [f"says its header is {length} bytes long, but the file has {size} bytes: truncated?"]
        )
    return length


def _too_many(tensors: int, most: int) -> str:
    return f"holds {tensors} tensors, at most {most} are accepted"


def _parse(data: bytes, max_tensors: int) -> dict[str, Any]:
    if not data.startswith(b"{"):
        raise TensorFileError(["its header is not a JSON object: no safetensors file?"])
    tensors = data.count(b'"data_offsets"')
    if tensors > max_tensors:
        raise TensorFileError([_too_many(tensors, max_tensors)])
    _require_few(data, max_tensors)
    try:
        parsed = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_constant=_refuse_constant,
        )
    except RecursionError as error:
        raise TensorFileError(["its header is nested too deeply"]) from error
    except ValueError as error:
        raise TensorFileError([f"its header is not JSON: {error}"]) from error
    # The first byte is "{", so only an object parses.
    return dict(parsed)


def _require_few(data: bytes, max_tensors: int) -> None:
    """Raises TensorFileError for more than so many tensors and their metadata need."""
    most = _VALUES_EACH * max_tensors
    values, objects = data.count(b","), data.count(b"{")
    if values > most:
        raise TensorFileError([f"its header holds {values} values, at most {most} are accepted"])
    if objects > max_tensors + _OTHER_OBJECTS:
        raise TensorFileError(
            [f"its header holds {objects} objects: too many, or nested too deeply"]
        )
    # Only at an object's end does the parser give way to other threads.
    longest = max(part.count(b",") for part in data.split(b"{"))
    if longest > _VALUES_TOGETHER:
        message = (
            f"its header holds {longest} values together, at most {_VALUES_TOGETHER} are accepted"
        )
        raise TensorFileError([message])


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:  # which would take time quadratic in it
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = sorted(key for key, count in counts.items() if count > 1)
        raise TensorFileError([f"its header names {_short(key)!r} twice" for key in twice])
    return result


def _refuse_constant(text: str) -> None:
    raise TensorFileError([f"its header holds {text}, which is no JSON"])


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise TensorFileError(["__metadata__ must map strings to strings"])
    if not all(is_utf8(key) and is_utf8(text) for key, text in value.items()):
        raise TensorFileError(["__metadata__ holds a lone surrogate, which UTF-8 cannot say"])
    return value


def _tensor(name: str, entry: object, start: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != _ENTRY_KEYS:
        raise TensorFileError(
            [f"tensor {_short(name)!r} must have exactly dtype, shape and data_offsets"]
        )
    if len(name) > _MAX_NAME or not name.isprintable():
        raise TensorFileError([f"tensor {_short(name)!r}: its name is too long or not printable"])
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise TensorFileError([f"tensor {name!r} has the unknown dtype {_short(dtype)!r}"])
    if not _sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise TensorFileError([f"tensor {name!r} has the impossible shape {_short(shape)}"])
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise TensorFileError([f"tensor {name!r} has impossible data_offsets {_short(offsets)}"])
    begin, end = offsets
    expected = prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != expected:
        raise TensorFileError(
            [
                f"tensor {name!r}: data_offsets span {end - begin} bytes, but {dtype} "
                f"{_short(shape)} takes {expected}"
            ]
        )
    return TensorInfo(dtype, tuple(shape), start + begin, expected)


def _sizes(value: object) -> bool:
    """Whether it is a list of whole numbers (no booleans) in range."""
    return isinstance(value, list) and all(
        type(number) is int and 0 <= number <= _MAX_DIMENSION for number in value
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _layout_problems(tensors: Mapping[str, TensorInfo], start: int, size: int) -> list[str]:
    """The data must be the tensors one after the other, to the last byte of the file."""
    problems = []
    position, previous = start, "the header"
    for name, tensor in sorted(
        tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes, item[0])
    ):
        if tensor.offset < position:
            problems.append(f"tensors {previous!r} and {name!r} overlap")
        elif tensor.offset > position:
            problems.append(f"{tensor.offset - position} bytes before tensor {name!r} are unused")
        position, previous = max(position, tensor.offset + tensor.nbytes), name
    if position > size:
        problems.append(f"tensors end at byte {position}, but the file has {size}: truncated?")
    elif position < size:
        problems.append(f"{size - position} bytes after the last tensor are unused")
    return problems
