"""Settings of benchmarks. Each field with a help text is an option of its command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import Load
from adaptermix.bench.workload import (
    CASES,
    FORMS,
    CaseName,
    Population,
    TokenCount,
    Traffic,
    choose_cases,
    parse_lengths,
)
from router_engine.processors import check_threads
from router_engine.routers.encoder.encoder_config import EncoderDType

OUT = Path("benchmarks") / "results"  # from where the command runs: the same at a desk
MIN_REQUESTS = 4  # in a round, however few the clients
Target = Literal["generate", "openai"]
Targets = Literal["attention", "all"]


def about(text: str) -> dict[str, str]:
    """Metadata of a field: what `--help` shows for it."""
    return {"help": text}


def at_least(name: str, value: float | None, least: float) -> None:
    """Raises BenchmarkError for a value below `least`."""
    if value is not None and value < least:
        raise BenchmarkError(f"{name} is {value}; it must be at least {least}")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The base model, and how it is computed with."""

    model: str = field(
        default="default",
        metadata=about("default, tiny-random or a checkpoint directory; it also counts tokens."),
    )
    dtype: str = field(default="auto", metadata=about("Number format of the base."))
    kernels: str | None = field(
        default=None,
        metadata=about(
            "What computes a step, as for `serve`; cpu without a GPU, else triton. Not auto, "
            "which would change in mid-run."
        ),
    )
    threads: int | None = field(
        default=None, metadata=about("Threads of the engine; all usable cores when left out.")
    )

    def __post_init__(self) -> None:
        check_threads("threads", self.threads)
        if self.kernels == "auto":
            raise BenchmarkError("kernels is auto, which would change in mid-run: name one")


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """The adapters of a run, and the way in which they are asked for."""

    adapters: int = field(default=8, metadata=about("How many random adapters there are."))
    rank: tuple[int, ...] = field(
        default=(8,), metadata=about("Rank of the adapters; several are given out in turn.")
    )
    targets: Targets = field(
        default="attention", metadata=about("attention: q, k, v, o; all: gate, up and down too.")
    )
    mixtures: int = field(default=8, metadata=about("How many different mixtures are asked for."))
    mixture_size: int = field(default=4, metadata=about("Adapters in a mixture."))
    zipf: float | None = field(
        default=None,
        metadata=about("Exponent of the popularity of adapters; each in turn when left out."),
    )
    every: int = field(default=1, metadata=about("Tokens between two renewals by a router."))

    def __post_init__(self) -> None:
        for name in ("adapters", "mixtures", "mixture_size", "every"):
            at_least(name, getattr(self, name), 1)
        for rank in self.rank:
            at_least("rank", rank, 1)
        at_least("zipf", self.zipf, 0)
        if self.mixture_size > self.adapters:
            raise BenchmarkError(
                f"mixture_size is {self.mixture_size}; there are {self.adapters} adapters"
            )


@dataclass(frozen=True, slots=True)
class WorkSettings:
    """The requests of a run: cases, loads and lengths."""

    case: tuple[str, ...] = field(
        default=("base", "one", "many", "mixtures", "given"),
        metadata=about(f"Of {', '.join(CASES)}; repeatable."),
    )
    concurrency: tuple[int, ...] = field(
        default=(1, 8, 32), metadata=about("Clients with one request in flight each; repeatable.")
    )
    per_client: int = field(default=2, metadata=about("Requests of each client in a round."))
    rounds: int = field(default=5, metadata=about("Times that every cell is measured."))
    prompt: str = field(
        default="uniform:48:80", metadata=about(f"Lengths of prompts in tokens: {FORMS}.")
    )
    output: str = field(
        default="fixed:64", metadata=about(f"Lengths of answers in tokens: {FORMS}.")
    )
    slo_ttft: float | None = field(
        default=None, metadata=about("Milliseconds to the first token that are still good.")
    )
    slo_itl: float | None = field(
        default=None, metadata=about("Milliseconds a later token, on average, still good.")
    )
    seed: int = field(default=0, metadata=about("Chooses prompts, adapters and arrivals."))

    def __post_init__(self) -> None:
        for clients in self.concurrency:
            at_least("concurrency", clients, 1)
        at_least("per_client", self.per_client, 1)
        at_least("rounds", self.rounds, 1)
        parse_lengths(self.prompt)
        if parse_lengths(self.output).quantile(1e-9) < 2:
            raise BenchmarkError(f"output {self.output!r}: an answer needs two tokens for a gap")
        choose_cases(self.case)

    @property
    def cases(self) -> list[CaseName]:
        return choose_cases(self.case)

    def requests(self, clients: int) -> int:
        """Of one round in a closed loop."""
        return max(MIN_REQUESTS, self.per_client * clients)

    def traffic(self, population: Population, count_tokens: TokenCount) -> Traffic:
        """The jobs of these lengths, for adapters or mixtures of `population`."""
        prompts, outputs = parse_lengths(self.prompt), parse_lengths(self.output)
        return Traffic(population, prompts, outputs, count_tokens, self.seed)


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Settings of `bench serve`: the server under load."""

    target: Target = field(
        default="generate",
        metadata=about("generate: AdapterMix' own route; openai: /v1/completions of any server."),
    )
    url: str | None = field(
        default=None, metadata=about("A running server; one of its own when left out.")
    )
    served: str | None = field(
        default=None, metadata=about("Target openai: the base model's name at --url.")
    )
    adapter: tuple[str, ...] = field(
        default=(), metadata=about("An adapter that the server at --url has; repeatable.")
    )
    rate: tuple[float, ...] = field(
        default=(),
        metadata=about(
            "Requests a second, as a Poisson process; repeatable. An open loop, which "
            "takes the place of --concurrency."
        ),
    )
    duration: float = field(default=30.0, metadata=about("Seconds of one round of an open loop."))
    out: Path = field(
        default=OUT / "serve", metadata=about("The results, without .json, .md and .png.")
    )

    def __post_init__(self) -> None:
        for rate in self.rate:
            if rate <= 0:
                raise BenchmarkError(f"rate is {rate}; it must be above 0")
        at_least("duration", self.duration, 0.1)
        if self.url is None and (self.adapter or self.served):
            raise BenchmarkError("adapter and served describe a running server: give its url too")
        if self.url is not None and self.target == "openai" and self.served is None:
            raise BenchmarkError("target openai at a url needs served, the base model's name there")


def loads(work: WorkSettings, serve: ServeSettings) -> list[tuple[Load, int]]:
    """Every load with its number of requests in a round."""
    if serve.rate:
        return [
            (Load(rate=rate), max(MIN_REQUESTS, round(rate * serve.duration)))
            for rate in serve.rate
        ]
    return [(Load(clients=n), work.requests(n)) for n in work.concurrency]


CURVES = ("requests", "context", "adapters", "mixture", "rank")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of `bench engine`."""

    curve: tuple[str, ...] = field(
        default=(),
        metadata=about(
            f"Step time against one of {', '.join(CURVES)}; repeatable. The curves take "
            "the place of the cases."
        ),
    )
    steps: int = field(default=16, metadata=about("Decode steps timed in a turn of a curve."))
    smallest: int | None = field(default=None, metadata=about("Leave out points below this."))
    largest: int | None = field(default=None, metadata=about("Leave out points above this."))
    out: Path = field(
        default=OUT / "engine", metadata=about("The results, without .json, .md and .png.")
    )

    def __post_init__(self) -> None:
        unknown = [name for name in self.curve if name not in CURVES]
        if unknown:
            raise BenchmarkError(
                f"no such curve: {', '.join(unknown)}; there are {', '.join(CURVES)}"
            )
        at_least("steps", self.steps, 1)


@dataclass(frozen=True, slots=True)
class KernelSettings:
    """Settings of `bench kernels`."""

    rows: tuple[int, ...] = field(
        default=(1, 8, 32, 256), metadata=about("Rows of a step (tokens); repeatable.")
    )
    rounds: int = field(default=20, metadata=about("Times that everything is measured."))
    inductor: bool = field(
        default=False,
        metadata=about("Also what torch.compile makes of each product: minutes of compiling."),
    )
    out: Path = field(
        default=OUT / "kernels", metadata=about("The results, without .json, .md and .png.")
    )

    def __post_init__(self) -> None:
        for rows in self.rows:
            at_least("rows", rows, 1)
        at_least("rounds", self.rounds, 1)


@dataclass(frozen=True, slots=True)
class QuantizationSettings:
    """Settings of `bench quantization`."""

    data: Path = field(metadata=about("Folder with TASK/test.jsonl.gz, as for `train eval`."))
    adapters: Path = field(
        default=Path("examples") / "adapters",
        metadata=about("Folder of adapter folders, each named as its task."),
    )
    rows: int = field(default=100, metadata=about("Test rows of each task."))
    requests: tuple[int, ...] = field(
        default=(1, 8, 32), metadata=about("Requests of a timed decode step; repeatable.")
    )
    rounds: int = field(default=5, metadata=about("Times that every step is measured."))
    seed: int = field(default=0, metadata=about("Chooses the rows."))
    out: Path = field(
        default=OUT / "quantization", metadata=about("The results, without .json and .md.")
    )

    def __post_init__(self) -> None:
        for requests in self.requests:
            at_least("requests", requests, 1)
        for name in ("rows", "rounds"):
            at_least(name, getattr(self, name), 1)


@dataclass(frozen=True, slots=True)
class ExpertSettings:
    """Settings of `bench experts`: the batch that is measured under each kind."""

    requests: int = field(default=32, metadata=about("Requests of a batch."))
    adapters: int = field(default=8, metadata=about("Adapters that they run under, in turn."))
    context: int = field(default=64, metadata=about("Tokens of every prompt."))
    steps: int = field(default=16, metadata=about("Decode steps timed in a turn."))
    rounds: int = field(default=12, metadata=about("Times that every case is measured."))
    seed: int = field(default=0, metadata=about("Chooses the prompts."))
    out: Path = field(
        default=OUT / "experts", metadata=about("The results, without .json and .md.")
    )

    def __post_init__(self) -> None:
        for name in ("requests", "adapters", "context", "steps", "rounds"):
            at_least(name, getattr(self, name), 1)


_ROWS = 8
_EXAMPLES = Path("examples") / "adapters"


@dataclass(frozen=True, slots=True)
class RoutingSettings:
    """Settings of `bench routing`: sizes of batches, and texts on which contexts are compared."""

    requests: tuple[int, ...] = field(
        default=(1, 8, 32), metadata=about("Requests of a batch; repeatable.")
    )
    candidates: tuple[int, ...] = field(
        default=(4, 64, 1000), metadata=about("Adapters to choose from; repeatable.")
    )
    steps: int = field(default=16, metadata=about("Tokens of each request in a timed turn."))
    rounds: int = field(default=5, metadata=about("Times that everything is measured."))
    minutes: float = field(
        default=6.0, metadata=about("The most that all rounds may take: else there are fewer.")
    )
    encoder: str = field(
        default="default",
        metadata=about("Sentence encoder: default (a tiny one beside tiny-random) or a directory."),
    )
    encoder_dtype: EncoderDType = field(
        default="auto", metadata=about("Number format of the sentence encoder.")
    )
    encoder_threads: int = field(default=1, metadata=about("Threads of the encoder's process."))
    data: Path | None = field(
        default=None,
        metadata=about(
            "Folder with TASK/test.jsonl.gz, as for `train eval`: also compare context keep with "
            "recompute."
        ),
    )
    adapters: Path = field(
        default=_EXAMPLES,
        metadata=about("With --data: folder of adapter folders, each named as its task."),
    )
    rows: int = field(default=_ROWS, metadata=about("With --data: test rows of each task."))
    seed: int = field(default=0, metadata=about("Chooses prompts, centroids and rows."))
    out: Path = field(
        default=OUT / "routing", metadata=about("The results, without .json, .md and .png.")
    )

    def __post_init__(self) -> None:
        for name in ("requests", "candidates"):
            for value in getattr(self, name):
                at_least(name, value, 1)
        for name in ("steps", "rounds", "rows"):
            at_least(name, getattr(self, name), 1)
        check_threads("encoder_threads", self.encoder_threads)
        at_least("minutes", self.minutes, 0.1)
        if self.data is None and (self.rows, self.adapters) != (_ROWS, _EXAMPLES):
            raise BenchmarkError("rows and adapters say what to do with data: give that folder too")
