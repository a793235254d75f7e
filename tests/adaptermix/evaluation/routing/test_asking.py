"""Answers of a real server are kept as they come, and asked for once."""

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adaptermix.bench.clients import http_client
from adaptermix.bench.errors import BenchmarkError
from adaptermix.evaluation.asking import Ask, Asking
from adaptermix.evaluation.journal import Journal
from adaptermix.evaluation.routing.run import find_leak, leak_of
from adaptermix.evaluation.routing.suite import SuiteRouting
from server.logging import configure
from tests.server.live import Live, serving, tiny_settings
from tests.support.tiny import make_lora_folder

IDENTITY = {"model": "tiny"}
ONE = {"adapters": [{"name": "one"}]}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    configure("error", "console")
    root = tmp_path_factory.mktemp("live")
    make_lora_folder(root / "adapters" / "one", seed=1)
    with serving(tiny_settings(root, adapters=root / "adapters")) as running:
        yield running


def asks(mixture: dict[str, Any] | None = None) -> list[list[Ask]]:
    """Three waves of three asks."""
    under = {} if mixture is None else {"mixture": mixture}
    return [
        [
            Ask("x", "/score", {"inputs": f"{wave}{n}", "completions": [" yes"], **under}, (2,))
            for n in range(3)
        ]
        for wave in range(3)
    ]


def ask_all(
    live: Live, journal: Journal, waves: list[list[Ask]], identity: Mapping[str, Any] = IDENTITY
) -> list[float]:
    """NLL of the two parts of each ask, one after the other."""

    async def run() -> list[float]:
        async with http_client(live.url) as http:
            asking = Asking(http, journal, identity, 4, Console(quiet=True))
            await asking.ask_all(waves)
            kept = [asking.answer(ask)["scores"][0] for wave in waves for ask in wave]
            return [nll for score in kept for nll, _ in score["parts"]]

    return asyncio.run(run())


class Mortal(Journal):
    """Dies when it has kept so many answers."""

    left = 5

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        if self.left == 0:
            raise InterruptedError("killed")
        self.left -= 1
        super().put(key, answer)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_an_interrupted_run_goes_on_where_it_ended(live: Live, tmp_path: Path) -> None:
    path = tmp_path / "out" / "journal.jsonl"
    with Mortal(path) as journal, pytest.raises(InterruptedError):
        ask_all(live, journal, asks())
    before = lines(path)
    assert len(before) == 5
    with path.open("a") as file:
        file.write('{"key": "cut off in mid-li')
    with Journal(path) as journal:
        went_on = ask_all(live, journal, asks())
    assert lines(path)[:5] == before
    assert len(lines(path)) == 5 + 1 + 4
    with Journal(tmp_path / "anew.jsonl") as journal:
        assert ask_all(live, journal, asks()) == pytest.approx(went_on, rel=1e-4)


def test_nothing_is_asked_twice_but_what_has_changed_is(live: Live, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        base = ask_all(live, journal, [*asks(), *asks()])
        assert len(lines(path)) == 9
        assert ask_all(live, journal, asks()) == base[:18]
        assert len(lines(path)) == 9
        other = ask_all(live, journal, asks(ONE))
        assert len(lines(path)) == 18
        assert other != pytest.approx(base[:18], rel=1e-3)
        ask_all(live, journal, asks(ONE), {"model": "another"})
        assert len(lines(path)) == 27
    with Journal(path, restart=True):
        assert lines(path) == []


def test_parts_sum_to_what_the_server_says(live: Live, tmp_path: Path) -> None:
    (ask,) = asks(ONE)[0][:1]
    reply = live.client.post("/score", json=ask.body).json()
    with Journal(tmp_path / "journal.jsonl") as journal:
        parts = ask_all(live, journal, [[ask]])
    assert sum(parts) == pytest.approx(-reply["scores"][0]["logprob"], rel=1e-4)
    logprobs = [token["logprob"] for token in reply["scores"][0]["tokens"]]
    assert parts[0] == pytest.approx(-sum(logprobs[:2]), rel=1e-4)


def test_a_refusal_names_the_routing_and_the_reason(live: Live, tmp_path: Path) -> None:
    gone = {"adapters": [{"name": "gone"}]}
    with (
        Journal(tmp_path / "journal.jsonl") as journal,
        pytest.raises(BenchmarkError, match=r"routing 'x'.*404.*gone"),
    ):
        ask_all(live, journal, asks(gone))


def leak(live: Live, router: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with http_client(live.url) as http:
            with Journal(tmp_path / "journal.jsonl") as journal:
                asking = Asking(http, journal, IDENTITY, 1, Console(quiet=True))
                return await find_leak(asking, SuiteRouting(name="x", mixture={"router": router}))

    return asyncio.run(run())


def test_given_weights_know_nothing_of_what_follows(live: Live, tmp_path: Path) -> None:
    rows = [[0.1 * (n % 7)] for n in range(128)]
    given = {"name": "given", "level": "token", "candidates": ["one"], "weights": rows}
    found = leak(live, given, tmp_path)
    assert found["routing"] == "x"
    assert found["alike"] > 40
    assert found["weights"] == 0
    assert found["logprobs"] < 1e-3


def test_a_routing_that_the_server_refuses_is_named(live: Live, tmp_path: Path) -> None:
    odd = {"name": "given", "level": "token", "candidates": ["one"], "weights": [[1]], "hot": True}
    with pytest.raises(BenchmarkError, match=r"routing 'x': the server answered 422.*hot"):
        leak(live, odd, tmp_path)


def test_a_leak_is_found() -> None:
    def score(ids: list[int], weights: list[float]) -> dict[str, Any]:
        tokens = [{"id": i, "logprob": -float(n)} for n, i in enumerate(ids)]
        return {"tokens": tokens, "routing": {"weights": [[w] for w in weights]}}

    one = score([1, 2, 3, 4], [0.5, 0.5, 0.5, 0.1])
    kept = leak_of("x", one, score([1, 2, 9, 9], [0.5, 0.5, 0.5, 0.9]))
    assert (kept.alike, kept.weights) == (3, 0.0)
    assert kept.later == pytest.approx(0.8)
    leaking = leak_of("x", one, score([1, 2, 9, 9], [0.5, 0.2, 0.5, 0.9]))
    assert leaking.weights == pytest.approx(0.3)
    silent = {"tokens": one["tokens"]}
    assert leak_of("x", silent, silent).weights is None


def test_each_answer_is_on_disk_at_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.put("k", {"text": "x"})
        assert json.loads((tmp_path / "journal.jsonl").read_text()) == {
            "key": "k",
            "answer": {"text": "x"},
        }
        assert "k" in journal
