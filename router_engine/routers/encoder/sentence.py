"""A BERT-like sentence encoder: text [n] -> embeddings [n, d] in fp32 by masked mean pooling."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel

from router_engine.model.checkpoint import refused
from router_engine.model.dtypes import behind
from router_engine.routers.encoder.encoder_config import EncoderDType
from router_engine.routers.encoder.encoder_messages import MAX_CHARACTERS, part_read
from router_engine.routers.encoder.folder import EncoderFolder
from router_engine.routers.scoring import Window

Embeddings = NDArray[np.float32]
Pieces = tuple[int, ...]

_ROWS = (32, 256)  # word pieces: of a request's text, and of some texts together
_CHARACTERS = 64  # read for one word piece: more than any has, and room for what has no piece
_PAYS = 1.25  # times as fast as fp32
_DIRECTION: dict[Window, str] = {"head": "right", "tail": "left"}  # the side that truncation cuts


def dtype_here(wanted: EncoderDType, width: int) -> torch.dtype:
    """The number format that `wanted` means on this machine, for states of so many numbers.

    Measured, for a processor may have instructions for bf16 that are slower than those for fp32, or
    may be held down to fewer. By a margin that noise doesn't cross: an embedding depends on it.
    """
    if wanted != "auto":
        return torch.float32 if wanted == "float32" else torch.bfloat16
    pays = behind(torch.bfloat16, width, _ROWS) < 1 / _PAYS
    return torch.bfloat16 if pays else torch.float32


class SentenceEncoder:
    """Owns the encoder's weights and tokenizer; one thread uses it.

    Texts longer than `max_pieces` word pieces (special tokens included) lose their beginning
    (`window="tail"`) or their end (`"head"`, as sentence-transformers does). Of a text of more
    characters than 64 for each piece, no more than these are read.

    In bfloat16 products are up to five times as fast where the processor is made for them;
    cosines of the default encoder move by less than 0.005. Embeddings are pooled in fp32.

    Padding changes the last bits of an embedding, so the same text in another batch would route
    under weights that differ by 1e-7 and share no prefix blocks with its first run. A bounded
    memory of recent embeddings gives the same text the same bits, and costs a repeat nothing.
    """

    def __init__(
        self,
        directory: Path,
        *,
        dtype: EncoderDType = "float32",
        max_batch: int = 32,
        remembered: int = 2048,
    ) -> None:
        self._folder = EncoderFolder.read(directory)
        self._max_batch = max_batch
        self._remembered = remembered
        self._memory: OrderedDict[Pieces, Embeddings] = OrderedDict()
        self._tokenizers = {window: self._tokenizer(window) for window in _DIRECTION}
        model = self._folder.model
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        read = partial(AutoConfig.from_pretrained, model, **options)
        config = refused(str(model), "its config cannot be read", read)
        self._dtype = dtype_here(dtype, int(config.hidden_size))
        load = partial(
            AutoModel.from_pretrained, model, config=config, dtype=self._dtype, **options
        )
        self._model = refused(str(model), "its weights cannot be loaded", load).eval()
        self._pad_id = int(self._model.config.pad_token_id or 0)
        self.dimension = int(self._model.config.hidden_size)

    @cached_property
    def digest(self) -> str:
        """ "sha256:..." over everything that an embedding depends on."""
        return self._folder.digest(str(self._dtype).removeprefix("torch."))

    def encode(self, texts: Sequence[str], window: Window = "tail") -> Embeddings:
        """Texts [n] -> embeddings [n, d]; of length 1 where the encoder's folder says so."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        pieces = self._pieces(texts, window)
        embeddings = {key: self._memory[key] for key in pieces if key in self._memory}
        missing = sorted({key for key in pieces if key not in embeddings}, key=len)
        for start in range(0, len(missing), self._max_batch):
            batch = missing[start : start + self._max_batch]
            embeddings.update(zip(batch, self._forward(batch), strict=True))
        self._remember(embeddings.items())
        return np.stack([embeddings[key] for key in pieces])

    def _tokenizer(self, window: Window) -> Tokenizer:
        file = str(self._folder.model / "tokenizer.json")
        tokenizer: Tokenizer = refused(
            file, "the tokenizer cannot be loaded", partial(Tokenizer.from_file, file)
        )
        tokenizer.no_padding()
        tokenizer.enable_truncation(self._folder.max_pieces, direction=_DIRECTION[window])
        refused(file, "the tokenizer cannot read text", partial(tokenizer.encode, "text"))
        return tokenizer

    def _pieces(self, texts: Sequence[str], window: Window) -> list[Pieces]:
        most = min(self._folder.max_pieces * _CHARACTERS, MAX_CHARACTERS)
        texts = [part_read(text, window, most) for text in texts]
        if self._folder.lowercase:
            texts = [text.lower() for text in texts]
        return [tuple(item.ids) for item in self._tokenizers[window].encode_batch(list(texts))]

    @torch.inference_mode()
    def _forward(self, batch: Sequence[Pieces]) -> Embeddings:
        longest = max(len(pieces) for pieces in batch)
        ids = torch.full((len(batch), longest), self._pad_id)
        mask = torch.zeros((len(batch), longest), dtype=torch.int64)
        for row, pieces in enumerate(batch):
            ids[row, : len(pieces)] = torch.tensor(pieces)
            mask[row, : len(pieces)] = 1
        states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        scale = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * scale).sum(dim=1) / scale.sum(dim=1).clamp(min=1e-9)
        if self._folder.normalize:
            mean = torch.nn.functional.normalize(mean, dim=-1)
        embeddings: Embeddings = mean.numpy()
        return embeddings

    def _remember(self, items: Iterable[tuple[Pieces, Embeddings]]) -> None:
        for key, embedding in items:
            self._memory[key] = embedding
            self._memory.move_to_end(key)
        while len(self._memory) > self._remembered:
            self._memory.popitem(last=False)
