"""The plan of a run beside the peers: suites of adapters, and the cells that goals need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from adaptermix.bench.goals import (
    INT8,
    LLAMA,
    LLAMA_F16,
    LLAMA_Q4,
    MIXED,
    OFFLINE,
    OURS,
    OWN,
    PEERS,
    PEFT,
    VLLM,
)
from adaptermix.bench.load import Load
from adaptermix.bench.peers.settings import PeerSettings
from adaptermix.bench.rounds import Cell
from adaptermix.bench.subject import ALL_TARGETS, TARGETS, Subject, write_adapters
from adaptermix.bench.verdicts import Key
from adaptermix.bench.workload import Job, Population, Traffic, parse_lengths

PROMPT = "uniform:48:80"
LONGEST_PROMPT = 80
ZIPF = 1.0
LEAST_REQUESTS = 2  # of a wave


@dataclass(frozen=True, slots=True)
class PeerSuite:
    """Adapters of one kind."""

    name: str
    count: int
    ranks: tuple[int, ...]
    targets: tuple[str, ...]
    alpha: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}-{index}" for index in range(self.count))

    def rank(self, index: int) -> int:
        return self.ranks[index % len(self.ranks)]


SUITES = (
    PeerSuite(PEERS, 8, (16,), ALL_TARGETS),
    PeerSuite(OWN, 8, (8,), TARGETS),
    PeerSuite(MIXED, 64, (4, 8, 16, 32, 64), TARGETS, ZIPF),
)

# system, suite, case, clients
_CELLS: tuple[tuple[str, str, str, tuple[int, ...]], ...] = (
    (OURS, PEERS, "base", (1, 8, 32)),
    (OURS, PEERS, "one", (8, 32)),
    (OURS, PEERS, "many", (8, 32)),
    *((peer, PEERS, "base", (1, 8, 32)) for peer in (PEFT, VLLM, LLAMA, LLAMA_F16)),
    *((peer, PEERS, "one", (8,)) for peer in (PEFT, VLLM, LLAMA)),
    *((peer, PEERS, "many", (8, 32)) for peer in (PEFT, VLLM)),
    (LLAMA, PEERS, "many", (8,)),
    (LLAMA_Q4, PEERS, "base", (1,)),
    (INT8, PEERS, "base", (1,)),
    (OURS, OWN, "base", (1, 32)),
    (OURS, OWN, "one", (32,)),
    (OURS, OWN, "many", (8, 32)),
    (OURS, OWN, "mixtures", (8, 32)),
    (OURS, OWN, "given", (8, 32)),
    (OURS, OWN, "merged", (1, 32)),
    (OFFLINE, OWN, "many", (32,)),
    (OURS, MIXED, "many", (32,)),
)


def cells(settings: PeerSettings, systems: Sequence[str]) -> list[Cell]:
    """Those of the systems that are there, at the numbers of clients that are asked for.

    Each is one wave: a request of every client.
    """
    return [
        Cell(
            system,
            case,
            Load(clients=clients),
            wave(clients),
            suite,
        )
        for system, suite, case, levels in _CELLS
        for clients in levels
        if system in systems and clients in settings.concurrency
    ]


def wave(clients: int) -> int:
    """Requests that belong together: one of every client."""
    return max(LEAST_REQUESTS, clients)


def waves(cell: Cell, turn: str) -> list[str]:
    """Names the jobs of each wave of a cell in a turn of the run.

    Neither suites nor loads may share prompts, or the second would find them in the prefix cache.
    Systems do: whoever runs more waves than another has done the same work before.
    """
    clients = cell.load.clients or 1
    count = cell.requests // wave(clients)
    return [f"{cell.suite} {clients} clients {turn} wave {number}" for number in range(count)]


def jobs(cell: Cell, turn: str, traffic: Traffic) -> list[Job]:
    """The work of a cell in a turn of the run."""
    count = wave(cell.load.clients or 1)
    return [job for name in waves(cell, turn) for job in traffic.jobs(cell.case, count, name)]


def key_of(cell: Cell) -> Key:
    return Key(cell.system, cell.suite, cell.case, cell.load.clients or 0)


def traffics(new_tokens: int, count_tokens: Callable[[str], int]) -> dict[str, Traffic]:
    """The jobs of each suite."""
    lengths = parse_lengths(PROMPT), parse_lengths(f"fixed:{new_tokens}")
    return {
        suite.name: Traffic(Population(suite.names, alpha=suite.alpha), *lengths, count_tokens)
        for suite in SUITES
    }


def write_suites(
    subject: Subject, root: Path, suites: Sequence[PeerSuite] = SUITES
) -> dict[str, list[Path]]:
    """PEFT folders of the suites, each under a folder of its own."""
    return {
        suite.name: write_adapters(
            subject, root / suite.name, suite.names, suite.ranks, suite.targets
        )
        for suite in suites
    }


def mixed_bytes_over_one(
    subject: Subject, traffic: Traffic, weight_bytes: int, turns: Sequence[str], cell: Cell
) -> float:
    """Bytes that a step of `cell`, of the suite `mixed`, reads over those with one of rank 8.

    Of the adapters, those that a wave of neighbouring requests asks for count once each; the mean
    over the waves of all turns, as they are drawn in the run. The cache of keys and values is left
    out: it is the same on both sides.
    """
    suite = next(suite for suite in SUITES if suite.name == MIXED)
    per_rank = sum(2 * (i + o) for _, i, o in subject.targeted_linears(suite.targets))
    count = wave(cell.load.clients or 1)
    picked = [
        set(traffic.picks(cell.case, count, name)) for turn in turns for name in waves(cell, turn)
    ]
    active = [sum(suite.rank(index) for index in picks) for picks in picked]
    rank = next(suite for suite in SUITES if suite.name == OWN).rank(0)
    return (weight_bytes + per_rank * mean(active)) / (weight_bytes + per_rank * rank)


def rates(measured: Mapping[Cell, Sequence[float]]) -> dict[Key, Sequence[float]]:
    return {key_of(cell): values for cell, values in measured.items()}
