"""What `bench contention` is asked to do. Each field with a help text is an option."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from adaptermix.bench import forced
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.forced import ISAS
from adaptermix.bench.peers.settings import PeerSettings
from adaptermix.bench.settings import OUT, about, at_least

PEERS = ("transformers", "llama")


@dataclass(frozen=True, slots=True)
class ContentionSettings:
    """How many busy loops there are, and who is measured beside them."""

    loops: tuple[int, ...] = field(
        default=(1, 2, 4, 8), metadata=about("Busy loops beside a system; repeatable.")
    )
    peer: tuple[str, ...] = field(
        default=PEERS, metadata=about(f"Of {', '.join(PEERS)}, or none; repeatable.")
    )
    model: str = field(default="default", metadata=about("default, or a checkpoint directory."))
    clients: int = field(default=8, metadata=about("Clients with one request in flight each."))
    new_tokens: int = field(default=32, metadata=about("Tokens of every answer."))
    rounds: int = field(default=5, metadata=about("Times that everything is measured."))
    threads: int | None = field(
        default=None, metadata=about("Threads of each system; all cores when left out.")
    )
    kernels: str = field(default="cpu", metadata=about("What computes a step of AdapterMix."))
    isa: str | None = field(
        default=None,
        metadata=about(f"Hold every system down to an instruction set: {', '.join(ISAS)}."),
    )
    cache: Path = field(
        default=Path("~/.cache/adaptermix/peers"),
        metadata=about("Where the peers are installed and their models kept."),
    )
    out: Path = field(
        default=OUT / "contention", metadata=about("The results, without .json and .md.")
    )

    def __post_init__(self) -> None:
        unknown = [name for name in self.peer if name not in (*PEERS, "none")]
        if unknown:
            raise BenchmarkError(
                f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}, and none"
            )
        for loops in self.loops:
            at_least("loops", loops, 1)
        for name, least in (("clients", 1), ("rounds", 1), ("new_tokens", 2)):
            at_least(name, getattr(self, name), least)
        forced.check(self.isa)

    def as_peers(self) -> PeerSettings:
        """The same for what starts the systems."""
        return PeerSettings(
            peer=self.peer,
            model=self.model,
            concurrency=(self.clients,),
            new_tokens=self.new_tokens,
            threads=self.threads,
            kernels=self.kernels,
            int8=False,
            cache=self.cache,
            isa=self.isa,
        )
