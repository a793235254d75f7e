"""The base model of a run and its tokenizer, read with the checks that serving makes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from adaptermix.training.errors import TrainingError
from adaptermix.training.settings import DTypeName
from router_engine.model.checkpoint import is_gguf
from router_engine.model.loader import described_by, read_checkpoint
from router_engine.model.tokenizer import read_tokenizer

_DEVICE = re.compile(r"cpu|cuda(?::([0-9]+))?")


def check_base(base: str, revision: str | None = None) -> None:
    """Look at a base model's config and files, before anything is trained on it.

    revision: branch, tag or commit of a hub id, here and below.
    Raises TrainingError for a GGUF file, UnsupportedModelError for what could not be served.
    """
    if is_gguf(Path(base)):
        raise TrainingError(
            f"base {base} is a GGUF file, which is served but not trained on: name the checkpoint "
            "that it was made from, a directory or a hub id"
        )
    described_by(base, revision)


def torch_device(name: str) -> torch.device:
    """The device of that name. Raises TrainingError for one that is not here."""
    match = _DEVICE.fullmatch(name)
    if match is None:
        raise TrainingError(f"device is {name!r}; it must be cpu, cuda or cuda:<number>")
    if name != "cpu":
        count = torch.cuda.device_count()
        if int(match[1] or 0) >= count:
            raise TrainingError(f"device is {name!r}, but torch sees {count} of CUDA here: use cpu")
    return torch.device(name)


def read_base(base: str, dtype: DTypeName, device: str, revision: str | None = None) -> Any:
    """The model in `dtype` on `device`, every weight of it out of the checkpoint.

    Raises UnsupportedModelError for what could not be served, TrainingError for the device.
    """
    place = torch_device(device)
    with _without_warnings():
        model: Any = read_checkpoint(base, getattr(torch, dtype), revision)
    return model.to(place)


def padding_tokenizer(base: str, revision: str | None = None) -> Any:
    """The base's tokenizer, which pads on the left. Raises UnsupportedModelError."""
    tokenizer = read_tokenizer(base, revision, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer


@contextmanager
def _without_warnings() -> Iterator[None]:
    """transformers tells of wrong tensors in a table; the loader's error names them."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
