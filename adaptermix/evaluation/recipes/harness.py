"""The runs of an experiment, each in a process of its own, written down as they end."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from rich.console import Console

from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.journal import Journal
from adaptermix.evaluation.recipes.arms import experiment_named
from adaptermix.evaluation.recipes.tasks import TASKS
from adaptermix.evaluation.settings import ExperimentSettings, ExperimentSizes


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """An arm on a task under a seed."""

    experiment: str
    arm: str
    task: str
    seed: int
    sizes: ExperimentSizes
    base_name: str

    @property
    def key(self) -> str:
        """Equal for equal runs."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def label(self) -> str:
        """For people and for the run's folder."""
        return f"{self.experiment}-{self.task}-{self.arm}-{self.seed}"


@dataclass(frozen=True, slots=True)
class Place:
    """Folders of a run's files."""

    base: str  # what transformers loads
    data: Path
    folder: Path  # of the adapter and the rows that it learns


def to_json(job: TrainingJob, place: Place) -> str:
    """The message to a run's process."""
    paths = {name: str(path) for name, path in asdict(place).items()}
    return json.dumps({"job": asdict(job), "place": paths})


def from_json(text: str) -> tuple[TrainingJob, Place]:
    """The job and place of `to_json`."""
    value: dict[str, Any] = json.loads(text)
    job, place = value["job"], value["place"]
    return (
        TrainingJob(**job | {"sizes": ExperimentSizes(**job["sizes"])}),
        Place(place["base"], Path(place["data"]), Path(place["folder"])),
    )


_LAST_LINES = 5  # of what a failed run said


def jobs_of(
    experiment: str, settings: ExperimentSettings, sizes: ExperimentSizes, base_name: str
) -> list[TrainingJob]:
    """Every run that is asked for: seeds one after another, so that the first is whole early.

    Raises BenchmarkError for an arm or task that the experiment doesn't have.
    """
    experiment_arms = experiment_named(experiment)
    arms = _chosen("arm", settings.only, list(experiment_arms.arms))
    tasks = _chosen("task", settings.task, list(TASKS), experiment_arms.tasks)
    return [
        TrainingJob(experiment, arm, task, seed, sizes, base_name)
        for seed in settings.seeds
        for task in tasks
        for arm in arms
    ]


def run_experiment(
    experiment: str, settings: ExperimentSettings, sizes: ExperimentSizes, base: str, base_name: str
) -> int:
    """Run what the journal lacks; the number of runs that failed.

    A failed run is written down with its last lines and not run again unless it is asked for.
    Other runs go on.
    """
    console = Console(stderr=True)
    jobs = jobs_of(experiment, settings, sizes, base_name)
    failed = 0
    processes = _Processes(settings, base)
    with Journal(settings.journal) as journal:
        missing = []
        for job in jobs:
            there = journal.get(job.key)
            if there is None or ("failed" in there and settings.retry_failed):
                missing.append(job)
            elif "failed" in there:
                console.print(f"{job.label} failed before: {there['failed']}", highlight=False)
        console.print(f"{len(missing)} of {len(jobs)} runs to do", highlight=False)
        for done, (job, result) in enumerate(processes.results(missing), start=1):
            journal.put(job.key, result)
            failed += "failed" in result
            told = result.get("failed") or f"{result['seconds']} s of training"
            console.print(f"{done}/{len(missing)} {job.label}: {told}", highlight=False)
    return failed


def _chosen(
    what: str, wanted: Sequence[str], choices: Sequence[str], default: Sequence[str] = ()
) -> Sequence[str]:
    unknown = [name for name in wanted if name not in choices]
    if unknown:
        raise BenchmarkError(f"{what} {unknown[0]!r} is not known: use {', '.join(choices)}")
    return wanted or default or choices


class _Processes:
    """At most `jobs` runs beside each other; all end where one of them, or we, can't go on."""

    def __init__(self, settings: ExperimentSettings, base: str) -> None:
        self._settings = settings
        self._base = base
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = Lock()
        self._ended = False

    def results(self, jobs: Sequence[TrainingJob]) -> Iterator[tuple[TrainingJob, dict[str, Any]]]:
        """(job, result) as runs end."""
        with ThreadPoolExecutor(self._settings.jobs) as pool:
            futures = {pool.submit(self._run, job): job for job in jobs}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                self._end(pool)
                raise

    def _end(self, pool: ThreadPoolExecutor) -> None:
        pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()

    def _run(self, job: TrainingJob) -> dict[str, Any]:
        short = hashlib.sha256(job.key.encode()).hexdigest()[:8]
        folder = (self._settings.work / f"{job.label}-{short}").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        result = folder / "result.json"
        result.unlink(missing_ok=True)
        place = Place(self._base, self._settings.data.resolve(), folder)
        with self._lock:
            if self._ended:
                return {"job": asdict(job), "failed": "ended before it began"}
            process = subprocess.Popen(
                [sys.executable, "-m", "adaptermix.evaluation.recipes", str(result)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            self._running.add(process)
        _, errors = process.communicate(to_json(job, place))
        with self._lock:
            self._running.discard(process)
        if process.returncode == 0:
            value: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
            return value
        last = " / ".join(errors.strip().splitlines()[-_LAST_LINES:])
        return {"job": asdict(job), "failed": f"exit code {process.returncode}: {last}"}
