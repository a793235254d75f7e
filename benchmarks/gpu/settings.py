"""Settings of a run: what is measured of which shape, in requests, tokens and steps."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import ROOT, commit_of, describe_machine
from adaptermix.bench.settings import about, at_least
from adaptermix.bench.subject import ALL_TARGETS, TARGETS

RANK = 16
FEW = 8  # adapters of the cases `eight`, `mixtures`, `routed`, `hidden`, and of PEFT
MEMBERS = 4  # adapters of a mixture

_TARGETS = {"all": ALL_TARGETS, "attention": TARGETS}
_PACKAGES = ("adapters_store", "router_engine", "adaptermix", "benchmarks")


@dataclass(frozen=True, slots=True)
class CardSizes:
    """How large the measurements of one shape are. The goals' own sizes come first."""

    requests: tuple[int, ...]  # of a decode step
    contexts: tuple[int, ...]  # tokens of their prompts
    long_context: int  # tokens of the one long prompt among short ones
    distinct: int  # adapters of the case `distinct`
    kv_tokens: int  # that the cache holds
    own_tokens: int  # of a batch's prompts: longer ones are computed once for all cases
    step_tokens: int  # of a prefill
    prefills: tuple[tuple[int, int], ...]  # (requests, tokens of each prompt)
    churn_prompts: tuple[int, int]  # least and most tokens of a prompt of the closed loop
    churn_answers: tuple[int, int]
    churn_adapters: int  # that its requests ask for at any time
    arrivals: int  # adapters that come new, half of the loop's for warming up
    arrivals_a_second: float

    @property
    def goal(self) -> tuple[int, int]:
        """Requests and context that the goals speak of."""
        return self.requests[0], self.contexts[0]


SIZES = {
    "llama-8b": CardSizes(
        requests=(32, 1, 256),
        contexts=(128, 8192, 1024),
        long_context=32_768,
        distinct=128,
        kv_tokens=340_000,  # 45 GB; 256 requests of 8,192 would take 280
        own_tokens=1 << 16,
        step_tokens=4096,
        prefills=((32, 128), (32, 1024), (1, 8192), (8, 8192)),
        churn_prompts=(32, 256),
        churn_answers=(64, 256),
        churn_adapters=16,
        arrivals=48,
        arrivals_a_second=4.0,
    ),
    "tiny": CardSizes(
        requests=(2, 1),
        contexts=(16, 400),
        long_context=64,
        distinct=6,
        kv_tokens=640,  # two requests of 400 are too many
        own_tokens=64,
        step_tokens=128,
        prefills=((2, 16), (1, 40)),
        churn_prompts=(4, 12),
        churn_answers=(3, 6),
        churn_adapters=3,
        arrivals=6,
        arrivals_a_second=1000.0,
    ),
}


@dataclass(frozen=True, slots=True)
class CardSettings:
    """What is measured, and how.

    What files of another commit, machine, shape or setting hold is measured anew. Raises
    BenchmarkError.
    """

    shape: str = field(default="llama-8b", metadata=about(f"One of {', '.join(SIZES)}."))
    kernels: str = field(default="auto", metadata=about("What computes a step."))
    steps: int = field(default=48, metadata=about("Timed steps of a turn."))
    rounds: int = field(default=3, metadata=about("Turns of each cell."))
    targets: str = field(
        default="all", metadata=about("Linears under adapters: all seven, or attention's four.")
    )

    def __post_init__(self) -> None:
        require("shape", self.shape, SIZES)
        require("targets", self.targets, _TARGETS)
        at_least("steps", self.steps, 1)
        at_least("rounds", self.rounds, 1)

    @property
    def sizes(self) -> CardSizes:
        return SIZES[self.shape]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the linears under adapters."""
        return _TARGETS[self.targets]

    def identity(self) -> dict[str, Any]:
        """What a result belongs to, as JSON: commit, sources, machine, settings and sizes.

        The digest of the sources tells commits apart where there is no git, and changes that are
        not committed.
        """
        sizes = {
            name: _as_lists(value) if isinstance(value, tuple) else value
            for name, value in asdict(self.sizes).items()
        }
        return {
            "commit": commit_of(),
            "sources": _digest_of_sources(),
            "machine": describe_machine(),
            "torch": torch.__version__,
            **asdict(self),
            "sizes": sizes,
        }


def require(name: str, value: str, known: Collection[str]) -> None:
    """Raises BenchmarkError for a value that is not known."""
    if value not in known:
        raise BenchmarkError(f"{name} is {value!r}; it must be one of {', '.join(known)}")


def _as_lists(value: tuple[Any, ...]) -> list[Any]:
    return [_as_lists(each) if isinstance(each, tuple) else each for each in value]


def _digest_of_sources(root: Path = ROOT) -> str:
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
