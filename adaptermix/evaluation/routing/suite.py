"""A suite: which tasks are measured under which routings, read from a file, strictly."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.scoring.tasks import TASKS

BUILT_IN = Path(__file__).with_name("suite.toml")
_READERS: Mapping[str, Callable[[str], Any]] = {".toml": tomllib.loads, ".json": json.loads}

Number = int | float
Params = Mapping[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class MixedTask(_Strict):
    """Prompts that need two skills: row i of the `first` task joined with row i of `second`."""

    name: str = Field(min_length=1)
    first: str
    second: str


class SuiteRouting(_Strict):
    """One row of the table: the `mixture` of its requests.

    Neither `mixture` nor `by_task` is the base. `by_task` names the adapter that each task's rows
    run under, as an oracle would; a mixed prompt changes over from one to the other in between.
    `family` names the entry of `tuning` whose chosen parameters its router gets. `rows`,
    `answer_rows` and `mixed_rows` are upper bounds. `completion_tokens` cuts completions off:
    then only likelihoods of the plain tasks are measured. `cost` is about how many times as long
    a token takes as one of a fixed mixture: it orders the work and predicts its time.
    """

    name: str = Field(min_length=1)
    mixture: dict[str, Any] | None = None
    by_task: dict[str, str] | None = None
    family: str | None = None
    rows: int | None = Field(default=None, ge=1)
    answer_rows: int | None = Field(default=None, ge=0)
    mixed_rows: int | None = Field(default=None, ge=0)
    completion_tokens: int | None = Field(default=None, ge=1)
    cost: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _one_way(self) -> SuiteRouting:
        if self.mixture is not None and self.by_task is not None:
            raise ValueError("give mixture or by_task, not both")
        if self.family is not None and not self.router:
            raise ValueError("family gives parameters to a router: the mixture has none")
        return self

    @property
    def router(self) -> Mapping[str, Any]:
        """The mixture's router; empty where weights are fixed."""
        router = (self.mixture or {}).get("router", {})
        return router if isinstance(router, Mapping) else {}

    @property
    def is_base(self) -> bool:
        return self.mixture is None and self.by_task is None

    @property
    def is_single(self) -> bool:
        """Whether one adapter answers alone."""
        return len((self.mixture or {}).get("adapters", ())) == 1

    @property
    def is_token_level(self) -> bool:
        """Whether a router renews the weights while the text grows, and KV is kept."""
        return self.router.get("level") == "token" and not self.recomputes

    @property
    def recomputes(self) -> bool:
        return self.router.get("context") == "recompute"

    @property
    def every(self) -> int:
        return int(self.router.get("every", 1))

    def tuned(self, chosen: Mapping[str, Mapping[str, Any]]) -> SuiteRouting:
        """The same with the parameters that were chosen for its family."""
        params = chosen.get(self.family or "")
        if not params:
            return self
        return self.model_copy(update={"mixture": {"router": {**self.router, **params}}})


class Tuning(_Strict):
    """Parameters of a family of routers: every combination of `grid` is tried on train rows."""

    family: str = Field(min_length=1)
    mixture: dict[str, Any]
    grid: dict[str, list[Number | str]] = Field(min_length=1)
    cost: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _a_router_and_values(self) -> Tuning:
        if not isinstance(self.mixture.get("router"), dict):
            raise ValueError("mixture must have a router, whose parameters are tuned")
        empty = [name for name, values in self.grid.items() if not values]
        if empty:
            raise ValueError(f"grid.{empty[0]} has no values")
        return self


class Suite(_Strict):
    """Everything that is measured."""

    tasks: list[str] = Field(min_length=1)
    mixed: list[MixedTask] = Field(default_factory=list)
    routing: list[SuiteRouting] = Field(min_length=1)
    tuning: list[Tuning] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names(self) -> Suite:
        _distinct("task", [*self.tasks, *(task.name for task in self.mixed)])
        _distinct("routing", [routing.name for routing in self.routing])
        _distinct("family", [tuning.family for tuning in self.tuning])
        needed = [*self.tasks, *(part for task in self.mixed for part in (task.first, task.second))]
        _known("task", needed, list(TASKS))
        families = [routing.family for routing in self.routing if routing.family is not None]
        _known("family", families, [tuning.family for tuning in self.tuning])
        for routing in self.routing:
            if routing.by_task is not None:
                _known(f"by_task of {routing.name!r}", needed, list(routing.by_task))
        return self

    def only(self, routings: Sequence[str], tasks: Sequence[str]) -> Suite:
        """The rows and tasks of these names; all where none is named. Raises BenchmarkError."""
        every = [*self.tasks, *(task.name for task in self.mixed)]
        for what, wanted, there in (
            ("routing", routings, [routing.name for routing in self.routing]),
            ("task", tasks, every),
        ):
            unknown = [name for name in wanted if name not in there]
            if unknown:
                raise BenchmarkError(
                    f"no such {what}: {', '.join(unknown)}; there are {'; '.join(there)}"
                )
        return self.model_copy(
            update={
                "tasks": [name for name in self.tasks if not tasks or name in tasks],
                "mixed": [task for task in self.mixed if not tasks or task.name in tasks],
                "routing": [r for r in self.routing if not routings or r.name in routings],
            }
        )

    def tuned(self, chosen: Mapping[str, Mapping[str, Any]]) -> Suite:
        """Every routing with the parameters of its family. Raises BenchmarkError."""
        unknown = set(chosen) - {tuning.family for tuning in self.tuning}
        if unknown:
            raise BenchmarkError(f"parameters for {', '.join(sorted(unknown))}: no such family")
        return self.model_copy(update={"routing": [r.tuned(chosen) for r in self.routing]})


def load_suite(path: Path | None) -> Suite:
    """The suite of a file, or the project's own. Raises BenchmarkError naming every problem."""
    source = path or BUILT_IN
    reader = _READERS.get(source.suffix)
    if reader is None:
        raise BenchmarkError(f"suite {source} must be a .toml or a .json file")
    try:
        return Suite.model_validate(reader(source.read_text(encoding="utf-8")))
    except ValidationError as error:
        told = [_told(detail) for detail in error.errors(include_url=False)]
        raise BenchmarkError(f"suite {source}: {'; '.join(told)}") from error
    except (ValueError, OSError) as error:
        raise BenchmarkError(f"suite {source} cannot be read: {error}") from error


def read_tuned(path: Path) -> dict[str, Params]:
    """{family: its parameters}; nothing where there is no file. Raises BenchmarkError."""
    if not path.exists():
        return {}
    try:
        families = json.loads(path.read_text(encoding="utf-8"))["families"]
        return {name: dict(family["chosen"]) for name, family in families.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchmarkError(
            f"{path} is no file of chosen parameters: write it with `adaptermix eval --tune`"
        ) from error


def _told(detail: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}: {detail['msg']}" if where else str(detail["msg"])


def _distinct(what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what} {', '.join(twice)} is there more than once")


def _known(what: str, names: Sequence[str], choices: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(choices))
    if unknown:
        raise ValueError(f"{what} {', '.join(unknown)} is not known: use {', '.join(choices)}")
