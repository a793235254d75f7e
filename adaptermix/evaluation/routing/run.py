"""`adaptermix eval`: a server of its own, every cell asked of it, and the result."""

from __future__ import annotations

import contextlib
import hashlib
import math
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
from adaptermix.bench.machine import origin
from adaptermix.bench.server import own_server
from adaptermix.bench.settings import ModelSettings
from adaptermix.bench.subject import Subject, resolve
from adaptermix.evaluation.asking import Ask, Asking
from adaptermix.evaluation.journal import Journal
from adaptermix.evaluation.routing.plan import (
    EvaluationCell,
    Rows,
    Words,
    adapters_of,
    plan_cells,
    waves,
)
from adaptermix.evaluation.routing.results import (
    columns_of,
    comparisons_of,
    measures_of,
    mixed_weights,
)
from adaptermix.evaluation.routing.suite import Suite, SuiteRouting, load_suite, read_tuned
from adaptermix.evaluation.settings import EvaluationSettings
from adaptermix.evaluation.speed import measure_speed, relative
from router_engine.processors import usable_cores

_PROMPT = "Question: Tom has 3 boxes with 12 pencils each. How many pencils are there?\n\nAnswer:"
_ALIKE = " There are 3 boxes with 12 pencils in each of them, so"
_ENDS = (
    " 3 * 12 = <<3*12=36>>36 pencils in all.\n#### 36",
    "\ndef count(boxes, pencils):\n    return boxes * pencils",
)


@dataclass(frozen=True, slots=True)
class Leak:
    """Two completions that begin alike, compared: differences should be 0 where the text is."""

    routing: str  # its name
    alike: int  # tokens that have the same text before them in both completions
    logprobs: float  # the largest difference there, in nats
    weights: float | None  # the same of weights; None where the routing reports none
    later: float | None  # of weights afterwards: whether they follow the text at all


async def find_leak(asking: Asking, routing: SuiteRouting) -> dict[str, Any]:
    """Score both completions. Raises BenchmarkError where the server refuses the routing."""
    texts = [_ALIKE + end for end in _ENDS]
    body: dict[str, Any] = {"inputs": _PROMPT, "completions": texts}
    if routing.mixture is not None:
        body["mixture"] = routing.mixture
    reply = await asking.post(Ask(routing.name, "/score", body))
    return asdict(leak_of(routing.name, *reply["scores"]))


def leak_of(routing: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> Leak:
    """Compare two scored completions that begin alike."""
    ids = [[token["id"] for token in score["tokens"]] for score in (one, two)]
    pairs = list(zip(*ids, strict=False))
    same = next((i for i, (left, right) in enumerate(pairs) if left != right), len(pairs))
    logprobs = [[token["logprob"] for token in score["tokens"]] for score in (one, two)]
    weights = [(score.get("routing") or {}).get("weights") or [] for score in (one, two)]
    apart = _largest([[value] for value in logprobs[0][:same]], [[v] for v in logprobs[1][:same]])
    if not all(len(w) == len(own) for w, own in zip(weights, ids, strict=True)):
        return Leak(routing, same + 1, apart, None, None)
    # The first token that differs still has the same text before it.
    alike = same + 1
    before, after = ([w[:alike] for w in weights], [w[alike:] for w in weights])
    return Leak(routing, alike, apart, _largest(*before), _largest(*after))


def _largest(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> float:
    """Of the rows that both have."""
    rows = zip(left, right, strict=False)
    gaps = [abs(a - b) for one, two in rows for a, b in zip(one, two, strict=True)]
    return max((gap for gap in gaps if not math.isnan(gap)), default=0.0)


_RUNNING = 64  # requests that run at once, at least: a choice scores its options together
_OPTIONS = 5  # of a choice, at most


@dataclass(frozen=True, slots=True)
class EvaluationSite:
    """A server with the suite's adapters."""

    url: str
    serving: dict[str, Any]  # how it computes, as a result tells it
    identity: dict[str, Any]  # all that its answers depend on beside a request


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
        **origin("eval", subject.name, at.serving, asdict(settings) | {"data": None}),
        "files": rows.files,
        "suite": suite.model_dump(exclude={"tuning"}, exclude_none=True),
        "tuned": tuned,
        **measured,
    }


async def _measure(
    at: EvaluationSite,
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
) -> Iterator[EvaluationSite]:
    """A server of its own with the adapters that the suite names. Raises BenchmarkError."""
    folders = _folders(settings.adapters, suite)
    with tempfile.TemporaryDirectory(prefix="adaptermix-eval-") as temporary:
        folder = Path(temporary)
        options: dict[str, object] = {
            "max-running": max(_RUNNING, settings.concurrency),
            "encoder-threads": model.threads or usable_cores(),
            "max-waiting": _OPTIONS * settings.concurrency + _RUNNING,
        }
        if folders:
            chosen = folder / "adapters"
            chosen.mkdir()
            for path in folders:
                (chosen / path.name).symlink_to(path.resolve(), target_is_directory=True)
            options["adapters"] = chosen
        with own_server(subject.model, model, folder, options) as own:
            identity = {
                "model": subject.name,
                "dtype": own.info["dtype"],
                "kernels": own.kernels,
                "adapters": _digests(own.url, folders),
            }
            yield EvaluationSite(own.url, own.serving, identity)


def words_of(subject: Subject) -> Words:
    """The subject's tokenizer, without special tokens."""
    tokenizer = subject.tokenizer

    def ids(text: str) -> Sequence[int]:
        token_ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=False)
        return token_ids

    def text(token_ids: Sequence[int]) -> str:
        return str(tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))

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
    digests = {adapter["name"]: adapter["digest"] for adapter in answer.json()["adapters"]}
    missing = [path.name for path in folders if path.name not in digests]
    if missing:
        raise BenchmarkError(f"the server did not take the adapter {', '.join(missing)}")
    return {path.name: [digests[path.name], _texts_digest(path)] for path in folders}


def _texts_digest(folder: Path) -> str:
    texts = folder / "texts.jsonl"
    return hashlib.sha256(texts.read_bytes()).hexdigest() if texts.is_file() else ""
