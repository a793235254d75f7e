"""The sentence encoder against transformers used plainly, on a tiny model and on the real one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModel

from adaptermix.bench.forced import environment
from router_engine.errors import EngineError
from router_engine.routers.encoder.folder import EncoderFolder
from router_engine.routers.encoder.sentence import SentenceEncoder, dtype_here
from router_engine.routers.encoder.tiny_encoder import save_tiny_encoder
from router_engine.routers.errors import RouterInputError
from tests.support.isas import here

TEXTS = ["ab", "what is 3 + 4?", "", "def f(x): return x", "a" * 20]
MAX_PIECES = 64


def plain(directory: Path, ids: list[int]) -> NDArray[np.float32]:
    """One text alone, unpadded: the mean of the last hidden states, scaled to length 1."""
    model = AutoModel.from_pretrained(directory).eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    mean = states.mean(dim=0)
    return np.asarray((mean / mean.norm()).numpy())


def pieces(directory: Path, text: str) -> list[int]:
    """All pieces of a text with special tokens, however many."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return list(tokenizer.encode(text).ids)


@pytest.fixture(scope="module")
def encoder(encoder_dir: Path) -> SentenceEncoder:
    return SentenceEncoder(encoder_dir, max_batch=2)


def test_a_batch_equals_each_text_alone(encoder: SentenceEncoder, encoder_dir: Path) -> None:
    embeddings = encoder.encode(TEXTS)
    assert embeddings.shape == (len(TEXTS), encoder.dimension)
    assert embeddings.dtype == np.float32
    for text, embedding in zip(TEXTS, embeddings, strict=True):
        np.testing.assert_allclose(
            embedding, plain(encoder_dir, pieces(encoder_dir, text)), atol=1e-5
        )


def test_texts_differ(encoder: SentenceEncoder) -> None:
    first, second = encoder.encode(["ab", "zzz 9"])
    assert not np.allclose(first, second, atol=1e-2)


@pytest.mark.parametrize("window", ["tail", "head"])
def test_a_long_text_is_read_from_its_window(
    encoder: SentenceEncoder, encoder_dir: Path, window: str
) -> None:
    text = " ".join("abcdefghij"[i % 10] for i in range(200))
    begin, *body, end = pieces(encoder_dir, text)
    kept = MAX_PIECES - 2
    part = body[-kept:] if window == "tail" else body[:kept]
    embedding = encoder.encode([text], "tail" if window == "tail" else "head")[0]
    np.testing.assert_allclose(embedding, plain(encoder_dir, [begin, *part, end]), atol=1e-5)


def test_the_tail_moves_with_the_text_and_the_head_does_not(encoder: SentenceEncoder) -> None:
    text = "a b c d " * 40
    grown = text + "9 9 9 9 9"
    assert np.array_equal(encoder.encode([text], "head"), encoder.encode([grown], "head"))
    assert not np.allclose(encoder.encode([text]), encoder.encode([grown]), atol=1e-3)


def test_a_text_has_the_same_bits_in_every_batch(encoder: SentenceEncoder) -> None:
    alone = encoder.encode(["repeat me"])[0]
    among = encoder.encode(["x", "repeat me", "a longer text than the others are"])[1]
    assert np.array_equal(alone, among)


def test_no_texts_give_no_rows(encoder: SentenceEncoder) -> None:
    assert encoder.encode([]).shape == (0, encoder.dimension)


def test_memory_is_bounded(encoder_dir: Path) -> None:
    encoder = SentenceEncoder(encoder_dir, remembered=1)
    first = encoder.encode(["a", "b", "c"])
    np.testing.assert_allclose(encoder.encode(["a", "b", "c"]), first, atol=1e-6)


def test_the_digest_names_weights_and_settings(tmp_path: Path, encoder_dir: Path) -> None:
    original = EncoderFolder.read(encoder_dir).digest()
    copy = shutil.copytree(encoder_dir, tmp_path / "copy")
    assert EncoderFolder.read(copy).digest() == original
    (copy / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
    assert EncoderFolder.read(copy).digest() != original
    other = save_tiny_encoder(tmp_path / "other", seed=1)
    assert EncoderFolder.read(other).digest() != original


def test_another_number_format_is_another_encoder(encoder_dir: Path) -> None:
    exact, rounded = (SentenceEncoder(encoder_dir, dtype=d) for d in ("float32", "bfloat16"))
    assert exact.digest == EncoderFolder.read(encoder_dir).digest()
    assert rounded.digest != exact.digest
    assert SentenceEncoder(encoder_dir, dtype="auto").digest in (exact.digest, rounded.digest)


def test_rounding_moves_an_embedding_less_than_another_text(encoder_dir: Path) -> None:
    exact = SentenceEncoder(encoder_dir).encode(TEXTS)
    rounded = SentenceEncoder(encoder_dir, dtype="bfloat16").encode(TEXTS)
    assert rounded.dtype == np.float32
    assert not np.array_equal(rounded, exact)
    cosines = rounded @ exact.T
    assert np.diag(cosines).min() > 0.999
    assert (cosines.argmax(axis=1) == np.arange(len(TEXTS))).all()


def _spoilt(file: Path) -> None:
    described = json.loads(file.read_text())
    described["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": ""}
    file.write_text(json.dumps(described))


def test_a_tokenizer_that_its_library_panics_of_is_one_line(
    tmp_path: Path, encoder_dir: Path
) -> None:
    directory = shutil.copytree(encoder_dir, tmp_path / "copy")
    _spoilt(directory / "tokenizer.json")
    with pytest.raises(EngineError, match=r"tokenizer\.json: the tokenizer cannot be loaded") as it:
        SentenceEncoder(directory)
    assert "\n" not in str(it.value)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"

CONTENTS = [POINTER, b"{bad", b"", b"[5]", b"7", "{}".encode("utf-16")]


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "modules.json", "sentence_bert_config.json", "1_Pooling"],
)
@pytest.mark.parametrize("content", CONTENTS)
def test_settings_that_cannot_be_read_are_named(
    tmp_path: Path, encoder_dir: Path, name: str, content: bytes
) -> None:
    directory = shutil.copytree(encoder_dir, tmp_path / "copy")
    file = directory / name
    if name == "1_Pooling":
        file.mkdir(exist_ok=True)
        file /= "config.json"
    file.write_bytes(content)
    with pytest.raises(EngineError) as raised:
        SentenceEncoder(directory)
    assert str(directory) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_a_normalize_module_lengths_stay(tmp_path: Path) -> None:
    directory = save_tiny_encoder(tmp_path)
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    assert not np.allclose(np.linalg.norm(SentenceEncoder(directory).encode(["abc"])), 1.0)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "pooling_mode_cls_token"),
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "pooling_mode_max_tokens"),
        ("modules.json", [{"type": "m.Transformer", "path": ""}], "must be"),
        ("modules.json", [{"type": "m.Dense", "path": "2_Dense"}], "lists Dense"),
    ],
)
def test_other_poolings_are_refused(tmp_path: Path, file: str, content: object, said: str) -> None:
    directory = save_tiny_encoder(tmp_path)
    (directory / file).parent.mkdir(exist_ok=True)
    (directory / file).write_text(json.dumps(content))
    with pytest.raises(RouterInputError, match=said):
        SentenceEncoder(directory)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RouterInputError, match=r"has no tokenizer\.json"):
        SentenceEncoder(tmp_path)


@pytest.mark.real_model
def test_the_real_encoder_equals_plain_mean_pooling(real_encoder: Path) -> None:
    encoder = SentenceEncoder(real_encoder)
    assert encoder.dimension == 384
    long = "A shop sells pens at $3 each. " * 60
    texts = ["What is 3 + 4?\n\nAnswer: 7", "def f(x):\n    return x", long]
    for window in ("tail", "head"):
        embeddings = encoder.encode(texts, "tail" if window == "tail" else "head")
        for text, embedding in zip(texts, embeddings, strict=True):
            begin, *body, end = pieces(real_encoder, text)
            part = body[-254:] if window == "tail" else body[:254]
            np.testing.assert_allclose(
                embedding, plain(real_encoder, [begin, *part, end]), atol=1e-5
            )


@pytest.mark.real_model
def test_the_real_encoder_rounds_little(real_encoder: Path) -> None:
    texts = ["What is 3 + 4?", "def f(x):\n    return x", "Who wrote Hamlet?", "A pen costs $3."]
    exact = SentenceEncoder(real_encoder).encode(texts)
    rounded = SentenceEncoder(real_encoder, dtype="bfloat16").encode(texts)
    np.testing.assert_allclose(rounded @ exact.T, exact @ exact.T, atol=5e-3)


@pytest.mark.real_model
def test_the_real_encoder_tells_tasks_apart(real_encoder: Path) -> None:
    """Negative control: an embedding is nearer to one of its own kind."""
    sums, code, more_sums = SentenceEncoder(real_encoder).encode(
        ["How much are 12 apples at $2?", "Write a Python function.", "What do 3 pens at $5 cost?"]
    )
    assert sums @ more_sums > sums @ code + 0.1


def test_a_format_that_is_asked_for_is_taken() -> None:
    assert dtype_here("float32", 64) == torch.float32
    assert dtype_here("bfloat16", 64) == torch.bfloat16


@pytest.mark.parametrize("isa", [isa for isa in here() if isa in ("avx2", "avx512")])
def test_where_bf16_has_no_instructions_that_are_used_texts_are_read_in_fp32(isa: str) -> None:
    program = (
        "import sys\n"
        "from router_engine.routers.encoder.sentence import dtype_here\n"
        "sys.stdout.write(str(dtype_here('auto', 384)))\n"
    )
    forced = {**os.environ, **environment(isa)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=forced, capture_output=True, text=True, check=True)
    assert done.stdout == "torch.float32"
