"""A tiny random sentence encoder, made on the spot: nothing is downloaded.

`tiny-random` and the quick tests route with it. What it finds alike is noise; that like texts get
like embeddings is real.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def _tokenizer() -> Tokenizer:
    """WordPiece over single characters."""
    characters = [*string.ascii_lowercase, *string.digits]
    pieces = [*_SPECIAL, *string.punctuation, *characters, *(f"##{c}" for c in characters)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    return tokenizer


def save_tiny_encoder(directory: Path, *, seed: int = 0, max_pieces: int = 64) -> Path:
    """Write a BERT of width 32 (d = 32); equal for equal seeds, which leave the caller's alone."""
    tokenizer = _tokenizer()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=max_pieces,
        pad_token_id=0,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).eval().save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = json.dumps({"max_seq_length": max_pieces})
    (directory / "sentence_bert_config.json").write_text(settings, encoding="utf-8")
    return directory
