"""Settings of runs beside the peers. Each field with a help text is an option."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from adaptermix.bench import forced
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.forced import ISAS
from adaptermix.bench.settings import OUT, about, at_least
from router_engine.processors import check_threads

PEERS = ("transformers", "vllm", "llama")
WORKER = "adaptermix.bench.peers.workers.engine"
_OLDER_WORKER = "benchmarks.peers.workers.engine"  # of commits whose benchmarks were a package


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """The peers that are measured, and the place of their environments."""

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


CONTENTION_PEERS = ("transformers", "llama")


@dataclass(frozen=True, slots=True)
class ContentionSettings:
    """Settings of `bench contention`: busy loops, and the systems beside them."""

    loops: tuple[int, ...] = field(
        default=(1, 2, 4, 8), metadata=about("Busy loops beside a system; repeatable.")
    )
    peer: tuple[str, ...] = field(
        default=CONTENTION_PEERS,
        metadata=about(f"Of {', '.join(CONTENTION_PEERS)}, or none; repeatable."),
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
        unknown = [name for name in self.peer if name not in (*CONTENTION_PEERS, "none")]
        if unknown:
            peers = ", ".join(CONTENTION_PEERS)
            raise BenchmarkError(f"no such peer: {', '.join(unknown)}; there are {peers}, and none")
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


@dataclass(frozen=True, slots=True)
class IsaSettings:
    """Settings of `bench isa`: instruction sets, and the work under each."""

    isa: tuple[str, ...] = field(
        default=(), metadata=about("An instruction set; repeatable. All that run here if none.")
    )
    model: str = field(default="default", metadata=about("default, or a checkpoint directory."))
    rows: tuple[int, ...] = field(
        default=(1, 8, 64, 256), metadata=about("Rows of a product (tokens); repeatable.")
    )
    requests: tuple[int, ...] = field(
        default=(1, 8, 32), metadata=about("Requests of a decode step; repeatable.")
    )
    prompt: tuple[int, ...] = field(
        default=(64, 256), metadata=about("Tokens of the prompt of a prefill; repeatable.")
    )
    new_tokens: int = field(default=24, metadata=about("Tokens that are decoded."))
    rounds: int = field(default=5, metadata=about("Times that everything is measured."))
    threads: int | None = field(
        default=None, metadata=about("Threads of each system; all cores when left out.")
    )
    before: Path | None = field(
        default=None,
        metadata=about(
            "A checkout of another commit, whose engine runs beside this one. One that knows no "
            "instruction sets is compiled for the machine as it is."
        ),
    )
    cache: Path = field(
        default=Path("~/.cache/adaptermix/peers"), metadata=about("Where llama.cpp is, if it is.")
    )
    out: Path = field(default=OUT / "isa", metadata=about("The results, without .json and .md."))

    def __post_init__(self) -> None:
        for isa in self.isa:
            forced.check(isa)
        for name, least in (("rows", 1), ("requests", 1), ("prompt", 8)):
            for value in getattr(self, name):
                at_least(name, value, least)
        for name, least in (("new_tokens", 4), ("rounds", 1)):
            at_least(name, getattr(self, name), least)
        if self.before is not None:
            worker_of(self.before)


def worker_of(checkout: Path) -> str:
    """The module of our engine's worker in a checkout of any commit.

    Raises BenchmarkError where it has none.
    """
    for module in (WORKER, _OLDER_WORKER):
        if (checkout / module.replace(".", "/")).with_suffix(".py").is_file():
            return module
    path = WORKER.replace(".", "/")
    raise BenchmarkError(f"before: no checkout of AdapterMix in {checkout}: no {path}.py")
