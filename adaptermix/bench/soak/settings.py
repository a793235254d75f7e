"""Settings of `bench soak`. Each field with a help text is an option."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.settings import OUT, about, at_least

BLOCK_SIZE = 4  # tokens: small, so that answers outgrow their blocks often
# How far a log probability may be from the reference's, in nats, by the base's number format: as
# the tests of parity have it, a ten-thousandth of logits of size ten in float32.
TOLERANCES = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}


@dataclass(frozen=True, slots=True)
class SoakSettings:
    """Length and load of a soak, its faults, and the sizes of the server's pools."""

    minutes: float = field(default=30.0, metadata=about("How long traffic goes on."))
    answers: int | None = field(
        default=None, metadata=about("End after so many answers, where that comes first.")
    )
    clients: int = field(default=32, metadata=about("Clients with one request in flight each."))
    questions: int = field(default=96, metadata=about("Different requests that are asked."))
    adapters: int = field(default=12, metadata=about("Adapters that stay for the whole run."))
    new_tokens: int = field(default=24, metadata=about("Tokens of an answer, at most."))
    every: int = field(default=250, metadata=about("Answers between two faults."))
    calm: float = field(
        default=0.4,
        metadata=about("Share of the run, at its end, without faults: memory is compared there."),
    )
    patience: float = field(
        default=10.0,
        metadata=about("Seconds after which the server takes a silent process for hung."),
    )
    bound: float = field(
        default=180.0, metadata=about("Seconds after which a request counts as lost.")
    )
    on_device: int = field(
        default=8, metadata=about("Adapters for which the device has memory at once.")
    )
    kv_blocks: int = field(
        default=160, metadata=about(f"Blocks of the KV cache, of {BLOCK_SIZE} tokens.")
    )
    seed: int = field(default=0, metadata=about("Chooses requests, faults and who is cancelled."))
    out: Path = field(default=OUT / "soak", metadata=about("The results, without .json and .md."))

    def __post_init__(self) -> None:
        for name in ("clients", "questions", "every", "new_tokens"):
            at_least(name, getattr(self, name), 1)
        at_least("adapters", self.adapters, 4)  # a mixture of four is the largest
        at_least("answers", self.answers, 1)
        at_least("on_device", self.on_device, 8)  # four, two that are merged, one that is pinned
        at_least("kv_blocks", self.kv_blocks, 48)  # of which the longest request takes 36
        for name in ("minutes", "patience", "bound"):
            if getattr(self, name) <= 0:
                raise BenchmarkError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.calm < 1:
            raise BenchmarkError(f"calm is {self.calm}; it must be at least 0 and below 1")


def tolerance_of(dtype: str) -> float:
    """Nats. Raises BenchmarkError for a format that has none."""
    if dtype not in TOLERANCES:
        raise BenchmarkError(f"dtype {dtype}: answers are compared in {', '.join(TOLERANCES)}")
    return TOLERANCES[dtype]
