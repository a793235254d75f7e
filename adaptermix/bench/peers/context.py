"""What every peer is given: the model, the adapters, and how much of both."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from adaptermix.bench.matrix import System
from adaptermix.bench.peers.systems import Tokenize


@dataclass(frozen=True, slots=True)
class Context:
    """The work that is the same for all."""

    model: str  # checkpoint directory
    adapters: tuple[Path, ...]  # PEFT folders
    rank: int
    clients: int  # the most at once
    tokens: int  # the most of a prompt and its answer
    threads: int
    cache: Path  # of environments and converted models
    scratch: Path  # for this run
    tokenize: Tokenize
    isa: str | None  # that all are held down to; None: the machine as found
    stack: ExitStack = field(repr=False)  # ends what was started


@dataclass(frozen=True, slots=True)
class Opened:
    """A peer that is ready: systems by name (some have two), and what was installed."""

    systems: Mapping[str, System]
    versions: Mapping[str, str]


class OpenPeer(Protocol):
    """Install if need be, start, wait until ready. Raises BenchmarkError with the reason."""

    def __call__(self, context: Context) -> Opened: ...
