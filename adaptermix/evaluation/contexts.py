"""`context: keep` beside `recompute`: how far the next token's distribution moves.

Both are given the same text, the prompts and completions of test rows. The weights of each token
come from that text alone, so they are the same in both; what differs is the weights that the cached
keys and values of earlier tokens were computed under.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.machine import default_kernels
from adaptermix.bench.offline import Offline, Sizes, offline
from adaptermix.bench.settings import ModelSettings, RoutingSettings
from adaptermix.bench.subject import Subject
from adaptermix.evaluation.scoring import bootstrap
from adaptermix.evaluation.scoring.tasks import TASKS, task_named
from adaptermix.training.errors import TrainingError
from adapters_store.texts import TEXTS_FILE, parse_texts
from router_engine.events import TokenEvent
from router_engine.request import Context, EngineRequest, SamplingSpec, TokenRouting
from router_engine.routers.centroids import centroid
from router_engine.routers.encoder.encoder_client import EncoderClient

TOP = 20  # tokens of a distribution that are compared one by one
MOST_TOKENS = 32  # of a completion
_AT_ONCE = 8  # requests
_LEAST = 1e-9  # of a probability, where rounding leaves nothing

TopTokens = Sequence[tuple[int, float]]  # (id, log probability)
ALL = "all"


@dataclass(frozen=True, slots=True)
class Text:
    """A test row in tokens."""

    task: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ContextRow:
    """The difference that the context makes in one text, a value for each token of it."""

    task: str
    kl: tuple[float, ...]  # nats
    is_equal: tuple[bool, ...]  # whether the most likely token is the same


def bucketed_kl(ours: TopTokens, theirs: TopTokens) -> float:
    """KL(ours || theirs) in nats over the tokens in both lists, all others as one bucket.

    That is at most the whole KL (the data processing inequality).
    """
    p, q = dict(ours), dict(theirs)
    shared = p.keys() & q.keys()
    rest_p, rest_q = (
        max(_LEAST, 1 - sum(math.exp(part[token]) for token in shared)) for part in (p, q)
    )
    common = sum(math.exp(p[token]) * (p[token] - q[token]) for token in shared)
    return common + rest_p * math.log(rest_p / rest_q)


def task_folders(adapters: Path) -> list[Path]:
    """The adapter folders that are named as tasks; raises BenchmarkError for fewer than two."""
    folders = [adapters / name for name in sorted(TASKS) if (adapters / name).is_dir()]
    if len(folders) < 2:
        raise BenchmarkError(
            f"{adapters} must hold two adapter folders or more that are named as tasks: "
            f"{', '.join(TASKS)}"
        )
    return folders


async def compare_contexts(
    settings: RoutingSettings,
    model: ModelSettings,
    subject: Subject,
    endpoint: str,
    folder: Path,
) -> dict[str, Any]:
    """Token-level `similarity` between the adapters of `settings.adapters`, on their test rows."""
    assert settings.data is not None
    folders = task_folders(settings.adapters)
    try:
        texts = [text for path in folders for text in _texts(subject, path.name, settings)]
    except TrainingError as error:
        raise BenchmarkError(str(error)) from error
    longest = max(len(text.prompt) for text in texts) + MOST_TOKENS
    sizes = Sizes(_AT_ONCE, 2 * _AT_ONCE * longest)
    kernels = model.kernels or default_kernels()
    with offline(
        subject,
        folders,
        sizes,
        folder / "examples",
        dtype=model.dtype,
        kernels=kernels,
        encoder=endpoint,
    ) as system:
        async with EncoderClient(endpoint) as client:
            await _put_centroids(client, system, folders)
        return summary(_compare(system, texts))


def _texts(subject: Subject, task: str, settings: RoutingSettings) -> list[Text]:
    assert settings.data is not None
    rows = task_named(task).rows(settings.data, settings.rows, settings.seed)

    def encode(text: str) -> tuple[int, ...]:
        return tuple(subject.tokenizer.encode(text, add_special_tokens=False))

    return [Text(task, encode(r.prompt), encode(r.completion)[:MOST_TOKENS]) for r in rows]


async def _put_centroids(client: EncoderClient, system: Offline, folders: Sequence[Path]) -> None:
    for digest, path in zip(system.digests, folders, strict=True):
        file = path / TEXTS_FILE
        if not file.is_file():
            raise BenchmarkError(f"{path} has no {TEXTS_FILE} to make a centroid of")
        texts, problems = parse_texts(file.read_bytes())
        if problems:
            raise BenchmarkError(f"{file}: {problems[0].message}")
        await client.put_centroids({digest: centroid(await client.embed(texts, window="head"))})


def _compare(system: Offline, texts: Sequence[Text]) -> list[ContextRow]:
    def requests(context: Context) -> list[EngineRequest]:
        routing = TokenRouting("similarity", context=context)
        return [
            EngineRequest(
                f"{context} {index}",
                text.prompt,
                SamplingSpec(
                    len(text.completion), top_n_tokens=TOP, given_token_ids=text.completion
                ),
                adapters=system.digests,
                routing=routing,
            )
            for index, text in enumerate(texts)
        ]

    answers = system.run(requests("keep")) | system.run(requests("recompute"))
    return [
        _row(text.task, answers[f"keep {i}"].tokens, answers[f"recompute {i}"].tokens)
        for i, text in enumerate(texts)
    ]


def _row(task: str, keep: Sequence[TokenEvent], again: Sequence[TokenEvent]) -> ContextRow:
    pairs = [(a.top_tokens, b.top_tokens) for a, b in zip(keep, again, strict=True)]
    return ContextRow(
        task,
        tuple(bucketed_kl(ours, theirs) for ours, theirs in pairs),
        tuple(ours[0][0] == theirs[0][0] for ours, theirs in pairs),
    )


def summary(rows: Sequence[ContextRow]) -> dict[str, Any]:
    """Means over tokens with 95 % intervals over rows, by task and in all; and by position."""
    tasks = [*dict.fromkeys(row.task for row in rows), ALL]
    positions = []
    for index in range(max(len(row.kl) for row in rows)):
        there = [row for row in rows if len(row.kl) > index]
        kl = sum(row.kl[index] for row in there) / len(there)
        equal = sum(row.is_equal[index] for row in there) / len(there)
        positions.append({"rows": len(there), "kl": kl, "equal": equal})
    return {
        "top": TOP,
        "tasks": [_estimates(task, [r for r in rows if task in (ALL, r.task)]) for task in tasks],
        "positions": positions,
    }


def _estimates(task: str, rows: Sequence[ContextRow]) -> dict[str, Any]:
    counts = [float(len(row.kl)) for row in rows]
    return {
        "task": task,
        "rows": len(rows),
        "kl": asdict(bootstrap.ratio([sum(row.kl) for row in rows], counts)),
        "equal": asdict(bootstrap.ratio([float(sum(row.is_equal)) for row in rows], counts)),
    }
