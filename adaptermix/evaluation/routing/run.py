"""`adaptermix eval`: a server of its own, every cell asked of it, and the result."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import uvloop
from rich.console import Console

from adaptermix.bench.clients import http_client
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import default_kernels, describe_machine, describe_software
from adaptermix.bench.process import info, started
from adaptermix.bench.serve import server_options
from adaptermix.bench.settings import ModelSettings
from adaptermix.bench.subject import Subject, resolve
from adaptermix.evaluation.routing.asking import Asking
from adaptermix.evaluation.routing.journal import Journal
from adaptermix.evaluation.routing.leaks import find_leak
from adaptermix.evaluation.routing.plan import EvaluationCell, adapters_of, plan_cells, waves
from adaptermix.evaluation.routing.results import comparisons_of, measures_of
from adaptermix.evaluation.routing.rows import Rows, Words
from adaptermix.evaluation.routing.series import columns_of, mixed_weights
from adaptermix.evaluation.routing.settings import EvaluationSettings
from adaptermix.evaluation.routing.speed import measure_speed, relative
from adaptermix.evaluation.routing.suite import Suite, load_suite
from adaptermix.evaluation.routing.tuned import read_tuned

_RUNNING = 64  # requests that run at once, at least: a choice scores its options together
_OPTIONS = 5  # of a choice, at most


@dataclass(frozen=True, slots=True)
class EvaluationServer:
    """A server that is ready. `identity` is what its answers depend on beside a request."""

    url: str
    serving: dict[str, Any]
    identity: dict[str, Any]


def run_evaluation(settings: EvaluationSettings, model: ModelSettings) -> dict[str, Any]:
    """Measure every cell and return the result as written to JSON. Raises BenchmarkError."""
    console = Console(stderr=True)
    tuned = read_tuned(settings.tuned)
    suite = load_suite(settings.suite).tuned(tuned).only(settings.routing, settings.task)
    subject = resolve(model.model)
    rows = Rows(settings.data, "test")
    cells = plan_cells(suite, settings, rows, words_of(subject))
    with (
        site(subject, suite, settings, model) as at,
        Journal(settings.journal, restart=settings.restart) as journal,
    ):
        measured = uvloop.run(_measure(at, suite, cells, settings, subject, journal, console))
    return {
        "kind": "eval",
        "model": subject.name,
        "machine": describe_machine(),
        "software": describe_software(),
        "serving": at.serving,
        "settings": asdict(settings) | {"data": None},
        "files": rows.files,
        "suite": suite.model_dump(exclude={"tuning"}, exclude_none=True),
        "tuned": tuned,
        **measured,
    }


async def _measure(
    at: EvaluationServer,
    suite: Suite,
    cells: Sequence[EvaluationCell],
    settings: EvaluationSettings,
    subject: Subject,
    journal: Journal,
    console: Console,
) -> dict[str, Any]:
    async with http_client(at.url) as http:
        asking = Asking(http, journal, at.identity, settings.concurrency, console)
        # What the server refuses, it refuses now and not in an hour.
        leaks = [await find_leak(asking, r) for r in suite.routing if r.by_task is None]
        await asking.ask_all(list(waves(cells)))
        speed: dict[str, Any] = {}
        singles = [routing.name for routing in suite.routing if routing.is_single]
        if settings.speed_rounds and singles:
            rates = await measure_speed(
                http, suite.routing, settings.speed_rounds, subject.count_tokens, console
            )
            speed = relative(rates, singles[0])
    columns = columns_of(cells, asking.answer)
    return {
        "measures": measures_of(columns, suite),
        "comparisons": comparisons_of(columns, suite),
        "weights": mixed_weights(cells, asking.answer),
        "leaks": leaks,
        "speed": speed,
    }


@contextlib.contextmanager
def site(
    subject: Subject, suite: Suite, settings: EvaluationSettings, model: ModelSettings
) -> Iterator[EvaluationServer]:
    """A server of its own with the adapters that the suite names. Raises BenchmarkError."""
    folders = _folders(settings.adapters, suite)
    kernels = model.kernels or default_kernels()
    threads = model.threads or describe_machine()["cores"]
    with tempfile.TemporaryDirectory(prefix="adaptermix-eval-") as temporary:
        folder = Path(temporary)
        options = server_options(subject, model.dtype, kernels, model.threads)
        options += ["--store", str(folder / "store")]
        options += ["--max-running", str(max(_RUNNING, settings.concurrency))]
        options += ["--encoder-threads", str(threads)]
        options += ["--max-waiting", str(_OPTIONS * settings.concurrency + _RUNNING)]
        if folders:
            chosen = folder / "adapters"
            chosen.mkdir()
            for path in folders:
                (chosen / path.name).symlink_to(path.resolve(), target_is_directory=True)
            options += ["--adapters", str(chosen)]
        with started(options, folder / "server.log") as running:
            known = info(running.url)
            serving = {"dtype": known["dtype"], "kernels": kernels, "threads": threads}
            identity = {
                "model": subject.name,
                "dtype": known["dtype"],
                "kernels": kernels,
                "adapters": _digests(running.url, folders),
            }
            yield EvaluationServer(running.url, serving, identity)


def words_of(subject: Subject) -> Words:
    """The subject's tokenizer, without special tokens."""
    tokenizer = subject.tokenizer

    def ids(text: str) -> Sequence[int]:
        found: Sequence[int] = tokenizer.encode(text, add_special_tokens=False)
        return found

    def text(given: Sequence[int]) -> str:
        return str(tokenizer.decode(given, clean_up_tokenization_spaces=False))

    return Words(ids, text)


def _folders(adapters: Path, suite: Suite) -> list[Path]:
    """One folder for each adapter that the suite names."""
    folders = [adapters / name for name in sorted(adapters_of(suite))]
    missing = [path.name for path in folders if not (path / "adapter_config.json").is_file()]
    if missing:
        raise BenchmarkError(
            f"{adapters} has no adapter {', '.join(missing)}, which the suite names"
        )
    return folders


def _digests(url: str, folders: Sequence[Path]) -> Mapping[str, list[str]]:
    """Of each adapter: its digest on the server, and that of its sample texts."""
    answer = httpx.get(f"{url}/admin/adapters", timeout=60, trust_env=False)
    if answer.status_code != httpx.codes.OK:
        raise BenchmarkError(f"{url}/admin/adapters answered {answer.status_code}: {answer.text}")
    known = {adapter["name"]: adapter["digest"] for adapter in answer.json()["adapters"]}
    missing = [path.name for path in folders if path.name not in known]
    if missing:
        raise BenchmarkError(f"the server did not take the adapter {', '.join(missing)}")
    return {path.name: [known[path.name], _texts_digest(path)] for path in folders}


def _texts_digest(folder: Path) -> str:
    texts = folder / "texts.jsonl"
    return hashlib.sha256(texts.read_bytes()).hexdigest() if texts.is_file() else ""
