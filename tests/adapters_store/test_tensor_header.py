"""safetensors headers: what is sound is read as the library reads it, what lies is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors import safe_open
from safetensors.numpy import save

from adapters_store.errors import TensorFileError
from adapters_store.tensor_header import count_non_finite, read_header
from tests.adapters_store.folders import Tensors, entry, raw_safetensors

DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("scratch")


def written(folder: Path, content: bytes) -> Path:
    path = folder / "x.safetensors"
    path.write_bytes(content)
    return path


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    made: Tensors = {
        "b": np.ones((3, 4), np.float16),
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    }
    path = written(tmp_path, save(made, metadata={"format": "pt"}))
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert {name: (t.dtype, t.shape) for name, t in header.tensors.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("F16", (3, 4)),
    }
    a = header.tensors["a"]
    values = np.frombuffer(path.read_bytes()[a.offset : a.offset + a.nbytes], "<f4")
    assert np.array_equal(values.reshape(a.shape), made["a"])


REFUSED = {
    "empty": (b"", "too short"),
    "cut in the length": (b"\x01\x02", "too short"),
    "header cut short": (raw_safetensors({}, length=100), "truncated"),
    "huge header": (raw_safetensors({}, length=1 << 62), "at most"),
    "negative length": (raw_safetensors({}, length=(1 << 64) - 1), "at most"),
    "not JSON": (raw_safetensors(b"{nope}"), "not JSON"),
    "a list": (raw_safetensors([]), "not a JSON object"),
    "not UTF-8": (raw_safetensors(b'{"\xff": 1}'), "not JSON"),
    "NaN constant": (raw_safetensors(b'{"a": NaN}'), "no JSON"),
    "endless number": (raw_safetensors(b'{"a": ' + b"9" * 10_000 + b"}"), "not JSON"),
    "deep": (raw_safetensors(DEEP), "too deeply"),
    "name twice": (raw_safetensors(b'{"a": 1, "a": 2}'), "'a' twice"),
    "metadata no strings": (raw_safetensors({"__metadata__": {"a": 1}}), "__metadata__"),
    "entry no object": (raw_safetensors({"a": 3}), "exactly dtype"),
    "unknown entry key": (raw_safetensors({"a": {**entry(0, 4), "x": 1}}, bytes(4)), "exactly"),
    "unknown dtype": (raw_safetensors({"a": entry(0, 4, "F99")}, bytes(4)), "dtype 'F99'"),
    "dtype no text": (raw_safetensors({"a": {**entry(0, 4), "dtype": []}}, bytes(4)), "dtype"),
    "negative size": (raw_safetensors({"a": entry(0, 4, shape=[-1])}, bytes(4)), "shape"),
    "boolean size": (raw_safetensors({"a": entry(0, 4, shape=[True])}, bytes(4)), "shape"),
    "fraction": (raw_safetensors({"a": {**entry(0, 4), "shape": [1.0]}}, bytes(4)), "shape"),
    "many dimensions": (raw_safetensors({"a": entry(0, 4, shape=[1] * 9)}, bytes(4)), "shape"),
    "overflowing shape": (
        raw_safetensors({"a": entry(0, 4, shape=[1 << 40, 1 << 40])}, bytes(4)),
        "takes",
    ),
    "three offsets": (
        raw_safetensors({"a": {**entry(0, 4), "data_offsets": [0, 2, 4]}}, bytes(4)),
        "data_offsets",
    ),
    "offsets backwards": (
        raw_safetensors({"a": {**entry(0, 4), "data_offsets": [4, 0]}}, bytes(4)),
        "data_offsets",
    ),
    "shape lies": (raw_safetensors({"a": entry(0, 8, shape=[3])}, bytes(8)), "takes 12"),
    "data cut short": (raw_safetensors({"a": entry(0, 8)}, bytes(4)), "truncated"),
    "data left over": (raw_safetensors({"a": entry(0, 4)}, bytes(9)), "5 bytes after"),
    "hole": (raw_safetensors({"a": entry(4, 8)}, bytes(8)), "4 bytes before tensor 'a'"),
    "overlap": (
        raw_safetensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        "'a' and 'b' overlap",
    ),
    "the same bytes": (
        raw_safetensors({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
        "overlap",
    ),
    "unprintable name": (raw_safetensors({"a\ud800": entry(0, 4)}, bytes(4)), "not printable"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(TensorFileError, match=message):
        read_header(written(tmp_path, content))


def test_names_every_problem_at_once(tmp_path: Path) -> None:
    header = {"a": entry(0, 4, "F99"), "b": entry(4, 8, shape=[7])}
    with pytest.raises(TensorFileError) as caught:
        read_header(written(tmp_path, raw_safetensors(header, bytes(8))))
    assert len(caught.value.problems) == 2


def test_too_many_tensors(tmp_path: Path) -> None:
    header = {str(index): entry(0, 0) for index in range(9)}
    with pytest.raises(TensorFileError, match="holds 9 tensors, at most 8"):
        read_header(written(tmp_path, raw_safetensors(header)), max_tensors=8)


@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(scratch: Path, content: bytes) -> None:
    path = written(scratch, content)
    try:
        read_header(path)
    except TensorFileError:
        return
    with safe_open(path, "np") as stream:
        stream.keys()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F99"]) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 32), min_size=2, max_size=2) | JSON,
    }
)


@given(
    header=st.dictionaries(st.text(max_size=4), ENTRIES | JSON, max_size=3),
    data=st.binary(max_size=32),
)
def test_any_header_is_read_or_refused_as_the_library_does(
    scratch: Path, header: dict[str, object], data: bytes
) -> None:
    path = written(scratch, raw_safetensors(header, data))
    try:
        ours = read_header(path)
    except TensorFileError:
        return
    with safe_open(path, "np") as stream:
        assert set(stream.keys()) == ours.tensors.keys()


@given(content=st.data())
@settings(max_examples=30)
def test_a_sound_file_with_one_byte_changed(scratch: Path, content: st.DataObject) -> None:
    sound = bytearray(save({"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float16)}))
    at = content.draw(st.integers(0, len(sound) - 1))
    sound[at] = content.draw(st.integers(0, 255))
    path = written(scratch, bytes(sound))
    try:
        header = read_header(path)
    except TensorFileError:
        return
    assert all(t.offset + t.nbytes <= len(sound) for t in header.tensors.values())


VALUES = arrays(
    np.float32,
    array_shapes(max_dims=2, max_side=8),
    elements=st.floats(width=32) | st.sampled_from([float("nan"), float("inf"), -float("inf")]),
)


@given(values=VALUES, dtype=st.sampled_from([np.float16, np.float32, np.float64]))
def test_counts_what_is_not_finite(
    scratch: Path, values: np.ndarray, dtype: type[np.floating]
) -> None:
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    path = written(scratch, save({"a": cast}))
    tensor = read_header(path).tensors["a"]
    assert count_non_finite(path, tensor) == np.count_nonzero(~np.isfinite(cast))


@pytest.mark.parametrize(
    ("bits", "count"),
    [(0x7F80, 1), (0xFF80, 1), (0x7FC0, 1), (0x7F81, 1), (0x7F7F, 0), (0x3F80, 0), (0, 0)],
)
def test_counts_in_bfloat16(tmp_path: Path, bits: int, count: int) -> None:
    data = np.array([0x3F80, bits], "<u2").tobytes()
    path = written(tmp_path, raw_safetensors({"a": entry(0, 4, "BF16", [2])}, data))
    assert count_non_finite(path, read_header(path).tensors["a"]) == count


def test_counts_past_one_read(tmp_path: Path) -> None:
    values = np.zeros(3_000_000, np.float32)
    values[[0, 1_500_000, 2_999_999]] = np.nan
    path = written(tmp_path, save({"a": values}))
    assert count_non_finite(path, read_header(path).tensors["a"]) == 3


def test_a_file_cut_after_its_header_was_read(tmp_path: Path) -> None:
    path = written(tmp_path, save({"a": np.ones(8, np.float32)}))
    tensor = read_header(path).tensors["a"]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(TensorFileError, match="cut short"):
        count_non_finite(path, tensor)


def test_integers_have_no_nan(tmp_path: Path) -> None:
    path = written(tmp_path, save({"a": np.full(4, -1, np.int32)}))
    assert count_non_finite(path, read_header(path).tensors["a"]) == 0
    assert json.loads(path.read_bytes()[8:].split(b"}")[0] + b"}}")["a"]["dtype"] == "I32"
