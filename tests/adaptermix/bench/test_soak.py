"""The checks of a soak find what they are there to find, and a short soak holds."""

import asyncio
import copy
import json
import math
import random
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adaptermix.bench.clients import http_client
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.soak.answers import (
    Comparison,
    Ended,
    MalformedError,
    Told,
    ask,
    compare,
    error_of,
    read_stream,
    read_whole,
)
from adaptermix.bench.soak.faults import LEAST_SAMPLES, Incarnation, Order, Watch
from adaptermix.bench.soak.questions import KINDS, Route, SoakRequest, questions
from adaptermix.bench.soak.record import Figures, SoakRecord
from adaptermix.bench.soak.report import MEMORY_GROWTH, markdown, verdicts
from adaptermix.bench.soak.settings import SoakSettings
from adaptermix.cli.main import app
from router_engine.model.tiny import save_tiny
from scripts.figures import RELIABILITY
from tests.support.waiting import HANG_SECONDS

TOLERANCE = 1e-3
TOLD = Told(("5", "6", "7"), (-1.0, -2.0, -3.0), (0.5, 1e-4, 0.5), "abc", ("a@1",))
QUESTION = SoakRequest("/generate", {"inputs": "x"}, "one adapter")


def differing(**changes: Any) -> Comparison:
    return compare(replace(TOLD, **changes), [TOLD], TOLERANCE)


def test_an_answer_that_is_the_reference_is_right() -> None:
    assert differing() == Comparison("right", 0.0)
    close = differing(logprobs=(-1.0, -2.0005, -3.0))
    assert close.match == "right"
    assert close.difference == pytest.approx(5e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": ("9", "6", "7")},
        {"tokens": ("5", "6"), "logprobs": (-1.0, -2.0)},
        {"tokens": ("5", "6", "7", "8"), "logprobs": (-1.0, -2.0, -3.0, -4.0)},
        {"logprobs": (-1.0, -2.0, -3.01)},
        {"logprobs": (-1.0, math.nan, -3.0)},
        {"text": "abd"},
        {"labels": ("a@2",)},
        {"labels": ()},
        {"tokens": (), "logprobs": (), "text": ""},
    ],
    ids=repr,
)
def test_any_other_answer_is_wrong(changes: dict[str, Any]) -> None:
    assert differing(**changes).match == "wrong"


def test_where_the_reference_was_in_doubt_another_token_is_a_tie() -> None:
    assert differing(tokens=("5", "9", "9"), text="ax").match == "tie"
    before = differing(tokens=("5", "9", "9"), logprobs=(-1.1, -2.0, -3.0))
    assert before.match == "wrong"


def test_an_answer_is_compared_with_the_reference_of_its_own_adapters() -> None:
    other = replace(TOLD, tokens=("1", "2", "3"), labels=("a@2",))
    assert compare(other, [TOLD, other], TOLERANCE).match == "right"
    assert compare(replace(other, labels=("a@1",)), [TOLD, other], TOLERANCE).match == "wrong"


def frame(logprob: float, text: str | None = None) -> dict[str, Any]:
    token = {"id": 5, "text": "a", "logprob": logprob, "special": False}
    details = {"routing": {"adapters": ["a@1"]}} if text is not None else None
    return {"token": token, "generated_text": text, "details": details}


def chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    logprobs = {"tokens": [text], "token_logprobs": [-1.0], "top_logprobs": [{text: -1.0}]}
    return {"choices": [{"text": text, "logprobs": logprobs, "finish_reason": finish}]}


def test_streams_are_read_as_whole_answers_are() -> None:
    native = read_stream("/generate", [frame(-1.0), frame(-2.0, "aa")])
    assert (native.logprobs, native.text, native.labels) == ((-1.0, -2.0), "aa", ("a@1",))
    openai = read_stream("/v1/completions", [chunk("a"), chunk("b", "stop"), None])
    assert (openai.tokens, openai.text) == (("a", "b"), "ab")


@pytest.mark.parametrize(
    ("route", "frames"),
    [
        ("/generate", []),
        ("/generate", [frame(-1.0)]),
        ("/generate", [frame(-1.0, "a"), frame(-2.0)]),
        ("/generate", [frame(-1.0, "a"), frame(-2.0, "aa")]),
        ("/generate", [{"surprise": 1}]),
        ("/v1/completions", [None]),
        ("/v1/completions", [chunk("a", "stop")]),
        ("/v1/completions", [chunk("a"), None]),
        ("/v1/completions", [chunk("a", "stop"), None, None]),
        ("/v1/completions", [chunk("a", "stop"), chunk("b"), None]),
        ("/v1/completions", [chunk("a", "stop"), chunk("b", "stop"), None]),
    ],
)
def test_a_stream_that_does_not_end_once_is_malformed(route: Route, frames: list[Any]) -> None:
    with pytest.raises(MalformedError):
        read_stream(route, frames)


@pytest.mark.parametrize("reply", [None, [], {}, {"error": 5}, {"error": {}}, {"error": "text"}])
def test_what_is_no_documented_error_and_no_answer_is_malformed(reply: Any) -> None:
    with pytest.raises(MalformedError):
        error_of(reply)
    with pytest.raises(MalformedError):
        read_whole("/generate", reply)


def test_errors_of_both_apis_are_told_by_their_kind() -> None:
    assert error_of({"error": "gone", "error_type": "not_found"}) == "not_found"
    assert error_of({"error": {"message": "gone", "code": "not_found"}}) == "not_found"


def noted(question: SoakRequest, *ends: Ended, calm: bool = False) -> SoakRecord:
    ledger = SoakRecord(TOLERANCE)
    for end in ends:
        ledger.begun += 1
        ledger.note(question, [TOLD], end, calm=calm)
    return ledger


def test_every_end_is_counted_once() -> None:
    wrong = replace(TOLD, text="no")
    ends = [
        Ended(1.0, told=TOLD),
        Ended(1.0, told=wrong),
        Ended(1.0, lost="cut"),
        Ended(1, left=True),
    ]
    ledger = noted(QUESTION, *ends, Ended(1.0, status=503, error="engine_died"))
    counts = (ledger.num_answers, ledger.num_wrong, ledger.num_lost, ledger.left)
    assert (counts, sum(ledger.errors.values()), ledger.unaccounted) == ((1, 1, 1, 1), 1, 0)
    ledger.begun += 1  # of which nothing was ever heard
    assert ledger.unaccounted == 1


@pytest.mark.parametrize("kind", ["internal", "engine", "integrity", "validation", "not_found"])
def test_errors_that_faults_do_not_explain_are_found(kind: str) -> None:
    assert noted(QUESTION, Ended(1.0, status=500, error=kind)).num_undocumented == 1


def test_an_adapter_may_be_gone_where_it_comes_and_goes() -> None:
    gone = Ended(1.0, status=404, error="not_found")
    assert noted(replace(QUESTION, comes_and_goes="fresh-0"), gone).num_undocumented == 0
    again = Ended(1.0, told=replace(TOLD, labels=("a@7",)))
    assert noted(replace(QUESTION, comes_and_goes="a"), again).num_answers == 1
    assert noted(QUESTION, again).num_wrong == 1


def test_one_in_a_hurry_may_be_late() -> None:
    late = Ended(1.0, status=408, error="timeout")
    assert noted(QUESTION, late).num_undocumented == 1
    assert noted(QUESTION, replace(late, hurried=True), calm=True).num_undocumented == 0


def test_while_nothing_is_broken_the_engine_is_there() -> None:
    died = Ended(1.0, status=503, error="engine_died")
    assert noted(QUESTION, died).num_undocumented == 0
    assert noted(QUESTION, died, calm=True).num_undocumented == 1


def held() -> dict[str, Any]:
    """A result in which everything was kept."""
    counts = {"wrong": 0, "lost": 0, "unaccounted": 0, "undocumented": 0}
    fault = {"role": "engine", "what": "SIGKILL", "recovered": True, "ready_lost": True}
    after = {"pools": {"rank_rows_used": 0.0}, "processes": [], "files": [], "exceptions": 0}
    return {
        "requests": counts,
        "faults": [fault],
        "counters": {"preemptions": 3, "evictions": 2, "merges": 1},
        "memory": [{"role": "server", "growth": 0.01, "judged": True}],
        "after": after | {"exit": 0},
    }


def set_at(result: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    inner: Any = copy.deepcopy(result)
    changed = inner
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return dict(changed)


def test_a_run_that_kept_everything_is_told_so() -> None:
    assert all(verdict["holds"] for verdict in verdicts(held()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("requests", "wrong"), 1),
        (("requests", "lost"), 1),
        (("requests", "unaccounted"), 1),
        (("requests", "undocumented"), 1),
        (("faults", 0, "recovered"), False),
        (("faults", 0, "ready_lost"), False),
        (("counters", "preemptions"), 0),
        (("counters",), {}),
        (("memory", 0, "growth"), 1.1 * MEMORY_GROWTH),
        (("after", "pools"), {"rank_rows_used": 8.0}),
        (("after", "processes"), [17]),
        (("after", "files"), ["adaptermix-x"]),
        (("after", "exceptions"), 1),
        (("after", "exit"), None),
    ],
    ids=str,
)
def test_each_promise_can_be_broken(path: tuple[Any, ...], value: Any) -> None:
    broken = [one for one in verdicts(set_at(held(), path, value)) if one["holds"] is False]
    assert len(broken) == 1


def test_what_a_short_run_cannot_say_is_left_open() -> None:
    result = set_at(set_at(held(), ("memory", 0, "growth"), None), ("faults",), [])
    assert [verdict["holds"] for verdict in verdicts(result)].count(None) == 2


def test_memory_that_grows_after_the_warm_up_is_found() -> None:
    warm, steady = list(range(1, 61)), [100] * 400
    assert Incarnation("server", 1, warm + steady).growth() == 0
    grows = Incarnation("server", 1, [1000 + one for one in range(LEAST_SAMPLES)]).growth()
    assert grows is not None
    assert grows > MEMORY_GROWTH
    assert Incarnation("server", 1, [1, 2, 3]).growth() is None


def test_a_process_that_is_left_is_found() -> None:
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        watch = Watch(process.pid)
        watch.look()
        assert watch.left() == [process.pid]
        assert watch.seen[process.pid].samples[0] > 0
        process.send_signal(signal.SIGSTOP)  # one that is stopped is there too
        assert watch.left_after(0) == [process.pid]
        process.kill()
        assert watch.left_after(HANG_SECONDS) == []


def test_each_fault_comes_before_any_comes_again() -> None:
    order = Order(random.Random(0))
    first, second = [order.take() for _ in range(4)], [order.take() for _ in range(4)]
    assert len(set(first)) == 4
    assert order.left == 0
    assert set(first) == set(second)


def test_counters_are_summed_over_engines() -> None:
    figures = Figures()
    for value in (3.0, 5.0, 2.0, 2.0, 4.0):  # the third is another engine's
        figures.add({"adaptermix_preemptions_total": value})
    assert figures.totals == {"preemptions": 9.0}


def asked_of(reply: bytes | None, bound: float) -> Ended:
    """What a client notes of a server that says just this, and closes; None: it says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as heard:
                if reply is None:
                    heard.read()  # until the client gives up
                    return
                length = 0
                while (line := heard.readline()) != b"\r\n":
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                heard.read(length)
                connection.sendall(reply)

        async def run() -> Ended:
            async with http_client(f"http://127.0.0.1:{listener.getsockname()[1]}") as http:
                return await ask(http, QUESTION, QUESTION.body, "stream", bound)

        server = threading.Thread(target=serve)
        server.start()
        ended = asyncio.run(run())
        server.join(HANG_SECONDS)
        return ended


def test_a_request_without_an_end_is_lost() -> None:
    assert "no end within" in str(asked_of(None, 0.05).lost)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ndata: {}",
        'HTTP/1.1 200 OK\r\n\r\ndata: {"error": "x", "error_type": "y"}\n\ndata: {"token": 1}\n\n',
        "HTTP/1.1 200 OK\r\n\r\ndata: {half",
        "HTTP/1.1 500 Internal Server Error\r\n\r\nInternal Server Error",
    ],
)
def test_what_is_cut_off_or_no_json_is_lost(text: str) -> None:
    assert asked_of(text.encode(), HANG_SECONDS).lost


def test_an_error_in_a_stream_is_an_end_of_its_own() -> None:
    last = 'data: {"error": "it died", "error_type": "engine_died"}\n\n'
    ended = asked_of(f"HTTP/1.1 200 OK\r\n\r\n{last}".encode(), HANG_SECONDS)
    assert (ended.error, ended.status, ended.lost) == ("engine_died", None, None)


def test_questions_cover_every_kind_on_every_route() -> None:
    settings = SoakSettings(questions=40)
    found = questions(settings, [f"a{index}" for index in range(6)], "base", len)
    assert len({(one.kind, one.route) for one in found}) == 4 * len(KINDS) == 40
    assert found == questions(settings, [f"a{index}" for index in range(6)], "base", len)


@pytest.mark.parametrize(
    "wrong",
    [
        {"clients": 0},
        {"minutes": 0},
        {"calm": 1.0},
        {"adapters": 3},
        {"on_device": 7},
        {"every": 0},
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BenchmarkError):
        SoakSettings(**wrong)


@pytest.mark.slow
def test_a_short_soak_holds(tmp_path: Path, tiny_encoder: Path) -> None:
    """Counted in answers; each of the four faults comes once, whatever the machine's speed."""
    model = ["--model", str(save_tiny(tmp_path / "model")), "--kernels", "reference"]
    size = ["--threads", "1", "--clients", "12", "--questions", "20", "--new-tokens", "16"]
    pools = ["--kv-blocks", "48", "--bound", str(HANG_SECONDS), "--minutes", str(HANG_SECONDS)]
    length = ["--answers", "60", "--every", "8", "--calm", "0.3"]
    out = tmp_path / "soak"
    done = CliRunner().invoke(
        app,
        ["bench", "soak", *model, *size, *pools, *length, "--out", str(out)],
        env={"ADAPTERMIX_ENCODER": str(tiny_encoder)},
    )
    assert done.exit_code == 0, done.output + out.with_suffix(".md").read_text()
    result = json.loads(out.with_suffix(".json").read_text())
    assert {(one["role"], one["what"]) for one in result["faults"]} == {
        (role, what) for role in ("engine", "encoder") for what in ("SIGKILL", "SIGSTOP")
    }
    assert result["requests"]["answers"] >= 60
    assert result["counters"]["preemptions"] > 0
    assert result["counters"]["evictions"] > 0
    assert result["requests"]["left"] > 0
    page = "<!-- figures: soak -->\nold\n<!-- end of figures -->"
    assert "no wrong answers | 0 | yes" in RELIABILITY.fill(page, tmp_path, ".")
    assert "engine, SIGSTOP" in markdown(result)
