"""Another server at the address, or an answer that is cut: never a success, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import Result

from adaptermix.cli import adapters, output
from server.schemas.adapters import ADAPTER_EXAMPLE, CHECK_EXAMPLE, MERGED_EXAMPLE
from tests.adaptermix.cli.test_main import run
from tests.server.foreign import Foreign, foreign_server

COMMANDS = {
    "publish": ("FOLDER",),
    "check": ("FOLDER",),
    "ls": (),
    "show": ("a",),
    "rm": ("a",),
    "texts": ("a",),
    "alias": ("a", "b", "1"),
    "unalias": ("a", "b"),
    "load": ("a",),
    "pin": ("a",),
    "unload": ("a",),
    "merge": ("a",),
}
ODD = [
    b"",
    b"<html>hello</html>",
    b'{"a": 1}',
    b"\xff{",
    b"5",
    b"null",
    b'"text"',
    b"[1, [2]]",
    b"[" * 100_000,
    b"1" * 5000,
    b'{"adapters": 5, "deleted": null, "texts": {}, "name": [], "version": "x"}',
    b'{"adapters": [{}], "deleted": [5], "texts": [null], "weights": ["x"], "level": 3}',
    b'{"texts": ["\\ud800"], "name": "\\ud800", "deleted": ["\\ud800"]}',
]
TOKEN = {"id": 1, "text": "hi", "logprob": -1.0, "special": False}
FRAME = {"token": TOKEN, "generated_text": None, "details": None}
DETAILS = {
    "finish_reason": "length",
    "prompt_tokens": 1,
    "generated_tokens": 1,
    "cached_tokens": 0,
    "seed": None,
}


@pytest.fixture(scope="module")
def foreign() -> Iterator[Foreign]:
    with foreign_server() as server:
        yield server


def events(*frames: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(frame).encode() for frame in frames)


def require_error(result: Result, *words: str) -> None:
    """One line, and no success; what the program did not expect would come out as an exception."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    for word in words:
        assert word in line


def test_all_commands_that_ask_a_server_are_tried() -> None:
    command: Any = typer.main.get_command(adapters.app)
    named = {name for name, one in command.commands.items() if not hasattr(one, "commands")}
    assert named == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_of_another_server_is_said(
    foreign: Foreign, folders: dict[str, Path], command: str
) -> None:
    given = [str(folders["math"]) if one == "FOLDER" else one for one in COMMANDS[command]]
    for body in ODD:
        foreign.answer(body, "text/html" if body.startswith(b"<") else "application/json")
        result = run("adapters", command, *given, "--url", foreign.url)
        require_error(result, "does not answer as AdapterMix does", foreign.url)
        assert result.stdout.strip() == "", body


@pytest.mark.parametrize("status", [302, 404, 500, 503])
def test_an_error_of_another_server_is_one_line(foreign: Foreign, status: int) -> None:
    for body in [*ODD, b'{"error": 5}', b'{"error": ["a"]}', b"a\nb\x1b[31mc\x07"]:
        foreign.answer(body, status=status)
        for arguments in (("adapters", "ls"), ("generate", "x")):
            result = run(*arguments, "--url", foreign.url)
            require_error(result, f"answered {status}")
            assert "\x1b" not in result.stderr
            assert "\x07" not in result.stderr


@pytest.mark.parametrize(
    "charset", ["base64", "hex", "bz2", "zlib", "rot13", "idna", "punycode", "utf-16", "undefined"]
)
def test_an_error_in_a_charset_that_is_none_of_text_is_one_line(
    foreign: Foreign, charset: str
) -> None:
    foreign.answer(b"<html>no\xff", f"text/html; charset={charset}", status=502)
    for arguments in (("adapters", "ls"), ("generate", "x")):
        result = run(*arguments, "--url", foreign.url)
        require_error(result, "answered 502: <html>no\ufffd")


@pytest.mark.parametrize("body", [*ODD, events(FRAME, FRAME | {"details": DETAILS})])
def test_a_stream_that_is_none_is_no_answer(foreign: Foreign, body: bytes) -> None:
    foreign.answer(body, "text/html")
    require_error(run("generate", "x", "--url", foreign.url), "does not answer as AdapterMix does")


@pytest.mark.parametrize(
    "frames",
    [
        b"data: [DONE]\n\n",
        b"data: 5\n\n",
        b"data: null\n\n",
        b'data: {"error": 5}\n\n',
        b'data: {"choices": [{"text": "hi"}]}\n\n',
        b'data: {"token": 5}\n\n',
        b'data: {"token": {"text": 5}, "details": null}\n\n',
        b"data: \xff\n\n",
        events(FRAME) + b"data: <html>\n\n",
        events(FRAME | {"details": {"routing": {}}}),
        events(FRAME | {"token": TOKEN | {"text": "\ud800"}}),
    ],
)
def test_events_of_another_server_are_no_answer(foreign: Foreign, frames: bytes) -> None:
    foreign.answer(frames, "text/event-stream")
    for more in ((), ("--explain", "--show-weights")):
        result = run("generate", "x", *more, "--url", foreign.url)
        require_error(result, "does not answer as AdapterMix does")


@pytest.mark.parametrize(
    "frames",
    [b"", b": ping\n\n", events(FRAME), events(FRAME, FRAME), events(FRAME)[:-1] + b"\ndata: {"],
)
def test_a_cut_answer_is_no_whole_one(foreign: Foreign, frames: bytes) -> None:
    foreign.answer(frames, "text/event-stream; charset=utf-8")
    result = run("generate", "x", "--url", foreign.url)
    require_error(result, "cut")
    assert result.stdout == "hi" * frames.count(b'"hi"')


def test_a_server_of_a_later_version_may_say_more(foreign: Foreign) -> None:
    frame = FRAME | {"details": DETAILS | {"later": 1}, "later": {"a": 1}}
    foreign.answer(events(frame | {"token": TOKEN | {"later": 1}}), "text/event-stream")
    result = run("generate", "x", "--url", foreign.url)
    assert (result.exit_code, result.stdout) == (0, "hi\n")
    listed = [ADAPTER_EXAMPLE | {"later": [1], "created_at": 1e300}]
    foreign.answer(json.dumps({"adapters": listed, "later": 2}).encode())
    for arguments in (("ls",), ("show", "a")):
        assert run("adapters", *arguments, "--url", foreign.url).exit_code == 0
        said = run("adapters", *arguments, "--json", "--url", foreign.url)
        assert json.loads(said.stdout) == listed


def test_brackets_in_an_answer_are_text(foreign: Foreign, folders: dict[str, Path]) -> None:
    odd = {"name": "[/x]", "digest": "[red]", "aliases": ["[/]"], "tags": ["[/y]"]}
    adapter = ADAPTER_EXAMPLE | odd | {"warnings": ["[/z]"], "notes": ["[/n]"]}
    commands = (("ls",), ("show", "a"), ("publish", str(folders["math"])), ("alias", "a", "b", "1"))
    for command in commands:
        answer = {"adapters": [adapter]} if command[0] in ("ls", "show") else adapter
        foreign.answer(json.dumps(answer).encode())
        result = run("adapters", *command, "--url", foreign.url)
        assert result.exit_code == 0, result.output
        assert "[/x]" in result.stdout


ODD_TEXT = "a:smile:b\x1b[31mc\x07[/red]\td"
SEEN_TEXT = "a:smile:b\\x1b[31mc\\x07[/red] d"


def test_texts_of_a_server_are_shown_as_they_are_and_act_on_no_terminal(
    foreign: Foreign, folders: dict[str, Path]
) -> None:
    odd = dict.fromkeys(("name", "digest", "base_model"), ODD_TEXT)
    lists = {key: [ODD_TEXT] for key in ("aliases", "tags", "notes", "warnings")}
    adapter = ADAPTER_EXAMPLE | odd | lists | {ODD_TEXT: "later"}
    problem = {"where": ODD_TEXT, "message": ODD_TEXT}
    report = CHECK_EXAMPLE | {
        "loads": False,
        "problems": [problem],
        "unknown_keys": [ODD_TEXT],
        "notes": [ODD_TEXT],
    }
    folder = str(folders["math"])
    merged = {"mode": "merged", "adapters": [ODD_TEXT], "weights": [1.0]}
    answers: dict[tuple[str, ...], Any] = {
        ("ls",): {"adapters": [adapter]},
        ("show", "a"): {"adapters": [adapter]},
        ("publish", folder): adapter,
        ("alias", "a", "b", "1"): adapter,
        ("rm", "a"): {"deleted": [ODD_TEXT]},
        ("unalias", "a", "b"): {"deleted": [ODD_TEXT]},
        ("check", folder): report,
        ("merge",): MERGED_EXAMPLE | merged,
    }
    for command, answer in answers.items():
        foreign.answer(json.dumps(answer).encode())
        result = run("adapters", *command, "--url", foreign.url)
        assert isinstance(result.exception, SystemExit | None), (command, result.exception)
        assert SEEN_TEXT in result.stdout, (command, result.output)
        assert "\x1b" not in result.output
        assert "\x07" not in result.output


def test_a_label_is_shown_as_it_was_given(tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "store"))
    made = run("keys", "create", ODD_TEXT, *store)
    assert SEEN_TEXT in made.stderr
    assert SEEN_TEXT in run("keys", "ls", *store).stdout
    (key,) = json.loads(run("keys", "ls", "--json", *store).stdout)
    assert key["label"] == ODD_TEXT
    assert SEEN_TEXT in run("keys", "revoke", key["id"], *store).stdout


def test_commands_write_by_the_common_console() -> None:
    """Which shows what it is given; train's error line is the one that escapes by itself."""
    folder = Path(output.__file__).parent
    for file in sorted(folder.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert "Console()" not in text, file
        if file.name not in ("output.py", "train.py"):
            assert "rich.markup" not in text, file
    assert output.console.size.width > 1000  # of no terminal: tables are whole


def test_a_check_for_programs(foreign: Foreign, folders: dict[str, Path]) -> None:
    for loads in (True, False):
        report = CHECK_EXAMPLE | {"loads": loads}
        foreign.answer(json.dumps(report).encode())
        said = run("adapters", "check", str(folders["math"]), "--json", "--url", foreign.url)
        assert (said.exit_code, json.loads(said.stdout)) == (0 if loads else 1, report)
