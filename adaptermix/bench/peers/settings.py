"""What a run beside the peers is asked to do. Each field with a help text is an option."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from adaptermix.bench import forced
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.forced import ISAS
from adaptermix.bench.settings import OUT, about, at_least
from router_engine.processors import check_threads

PEERS = ("transformers", "vllm", "llama")


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Which peers are measured, and where they are installed."""

    peer: tuple[str, ...] = field(
        default=PEERS, metadata=about(f"Of {', '.join(PEERS)}, or none; repeatable.")
    )
    model: str = field(default="default", metadata=about("default, or a checkpoint directory."))
    concurrency: tuple[int, ...] = field(
        default=(1, 8, 32), metadata=about("Clients with one request in flight each; repeatable.")
    )
    rounds: int = field(default=5, metadata=about("Times that every cell is measured."))
    cell_seconds: float = field(
        default=4.0,
        metadata=about("Seconds that a fast cell repeats its requests for; a slow one runs once."),
    )
    minutes: float = field(
        default=50.0, metadata=about("The most that all rounds may take: else there are fewer.")
    )
    new_tokens: int = field(default=64, metadata=about("Tokens of every answer."))
    threads: int | None = field(
        default=None, metadata=about("Threads of each system; all usable cores when left out.")
    )
    kernels: str = field(default="cpu", metadata=about("What computes a step of AdapterMix."))
    int8: bool = field(
        default=True, metadata=about("Measure AdapterMix with its base in 8 bits, too.")
    )
    starts: int = field(default=5, metadata=about("Starts of the server that are timed."))
    cache: Path = field(
        default=Path("~/.cache/adaptermix/peers"),
        metadata=about("Where the peers are installed and their models kept."),
    )
    isa: str | None = field(
        default=None,
        metadata=about(
            f"Hold every system down to an instruction set: {', '.join(ISAS)}. As the machine is "
            "when left out."
        ),
    )
    out: Path = field(
        default=OUT / "peers", metadata=about("The results, without .json, .md and .png.")
    )

    def __post_init__(self) -> None:
        unknown = [name for name in self.peer if name not in (*PEERS, "none")]
        if unknown:
            raise BenchmarkError(
                f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}, and none"
            )
        check_threads("threads", self.threads)
        for clients in self.concurrency:
            at_least("concurrency", clients, 1)
        for name, least in (("rounds", 1), ("starts", 1), ("new_tokens", 2)):
            at_least(name, getattr(self, name), least)
        at_least("minutes", self.minutes, 0.1)
        forced.check(self.isa)

    @property
    def chosen(self) -> tuple[str, ...]:
        return tuple(name for name in PEERS if name in self.peer)
