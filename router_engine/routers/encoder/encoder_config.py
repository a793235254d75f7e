"""Configuration of an encoder worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

# auto: bfloat16 where products in it are measured to be faster, else float32.
EncoderDType = Literal["auto", "float32", "bfloat16"]

_REQUIRED = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """`environment` is the whole environment of the child.

    It must say how OpenMP behaves: processes that share cores and spin at barriers slow each
    other down tenfold. Raises ValueError when it does not.
    """

    encoder_dir: Path  # a sentence encoder, as transformers saves it
    tokenizer_dir: Path  # the base model's tokenizer
    endpoint: str  # ZeroMQ address to listen on: ipc://... or tcp://127.0.0.1:...
    environment: Mapping[str, str]
    dtype: EncoderDType = "auto"  # of the encoder's weights and states
    num_threads: int = 1  # of torch, inside the worker
    max_batch: int = 32  # texts in one forward pass of the encoder
    start_seconds: float = 120.0  # from launch to ready
    make_tiny: bool = False  # the worker first writes a tiny random encoder to `encoder_dir`

    def __post_init__(self) -> None:
        missing = [name for name in _REQUIRED if name not in self.environment]
        if missing:
            raise ValueError(f"the encoder worker's environment must set {', '.join(missing)}")
        if self.num_threads < 1 or self.max_batch < 1:
            raise ValueError(
                f"num_threads={self.num_threads} and max_batch={self.max_batch} must be 1 or more"
            )


class StartOrder(msgspec.Struct, frozen=True):
    """The first line on the worker's stdin, as JSON."""

    encoder_dir: str
    tokenizer_dir: str
    endpoint: str
    dtype: EncoderDType
    num_threads: int
    max_batch: int
    parent_pid: int
    make_tiny: bool = False
