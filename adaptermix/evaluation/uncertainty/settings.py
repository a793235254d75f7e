"""What the study is asked to do. Each field with a help text is an option of the command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.settings import OUT, about
from router_engine.request import MAX_MEMBERS


@dataclass(frozen=True, slots=True)
class UncertaintySettings:
    """Which adapters are asked, about which rows, and where the results go."""

    data: Path = field(metadata=about("Folder with SET/test.jsonl.gz."))
    adapter: tuple[Path, ...] = field(
        metadata=about("Folder of an adapter kept as copies, trained on ARC; repeatable.")
    )
    members: int = field(default=8, metadata=about("Of the ensemble."))
    rows: int = field(default=300, metadata=about("ARC test rows, and as many unfamiliar ones."))
    unfamiliar: tuple[str, ...] = field(
        default=("openbookqa", "boolq", "gsm8k", "squad"),
        metadata=about("A set that the adapters were not trained on; repeatable."),
    )
    concurrency: int = field(default=8, metadata=about("Requests in flight."))
    speed_rounds: int = field(
        default=3, metadata=about("Times that tokens/s are measured; 0: never.")
    )
    seed: int = field(default=0, metadata=about("Chooses the rows and the members."))
    out: Path = field(
        default=OUT / "uncertainty", metadata=about("The results, without .json, .md and .png.")
    )

    def __post_init__(self) -> None:
        if not 2 <= self.members <= MAX_MEMBERS:
            raise BenchmarkError(f"members is {self.members}; it must be from 2 to {MAX_MEMBERS}")
        for name, least in (("rows", 2), ("concurrency", 1), ("speed_rounds", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise BenchmarkError(
                    f"{name} is {getattr(self, name)}; it must be at least {least}"
                )
        names = [folder.name for folder in self.adapter]
        if len(set(names)) != len(names):
            raise BenchmarkError(f"adapter names {', '.join(names)}: each folder needs its own")
