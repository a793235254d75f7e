"""What `bench isa` is asked to do. Each field with a help text is an option."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from adaptermix.bench import forced
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.settings import OUT, about, at_least


@dataclass(frozen=True, slots=True)
class IsaSettings:
    """Which instruction sets, and what is computed under each."""

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
        worker = "adaptermix/bench/peers/workers/engine.py"
        if self.before is not None and not (self.before / worker).is_file():
            raise BenchmarkError(f"before: no checkout of AdapterMix in {self.before}: no {worker}")
