"""The command line gives back what the model said, and every trouble is one line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import Result

from adaptermix.client.adapters import adapter_path
from tests.adaptermix.cli.test_main import ok, run
from tests.server.live import Live

ODD = "a\x85b\u2028c\td\r\ne\x0bf\x1cg \x00h"


def adaptermix(
    *arguments: str | bytes,
    environment: Mapping[Any, Any] | None = None,
    stdin: bytes = b"",
    shell: str = "",
) -> subprocess.CompletedProcess[bytes]:
    """`shell`: what a shell does with the program's streams, such as `>&-`."""
    clean = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
    program: list[Any] = [sys.executable, "-m", "adaptermix.cli.main", *arguments]
    if shell:
        program = ["bash", "-c", f'exec "$0" "$@" {shell}', *program]
    return subprocess.run(
        program, input=stdin, capture_output=True, env=clean | dict(environment or {}), check=False
    )


def require_line(done: subprocess.CompletedProcess[bytes], *words: str) -> None:
    """One line that says what is wrong, and a status that is no success."""
    told = done.stderr.decode()
    assert done.returncode in (1, 2), told
    assert "Traceback" not in told
    assert done.stdout == b""
    for word in words:
        assert word in told


def require_refused(result: Result, *words: str) -> None:
    """The same of a command that ran in this process: nothing came out as an exception."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2), result.output
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


def test_text_comes_out_byte_for_byte(bare: Live) -> None:
    body = {"max_new_tokens": 40, "temperature": 2.0, "seed": 3}
    answer: dict[str, Any] = bare.answer(ODD, parameters=body)
    arguments = ("-n", "40", "--temperature", "2", "--seed", "3", "--url", bare.url)
    for environment in ({}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}):
        done = adaptermix("generate", "-", *arguments, stdin=ODD.encode(), environment=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout == answer["generated_text"].encode() + b"\n"


@pytest.mark.parametrize(
    ("variable", "proxy"),
    [
        ("HTTP_PROXY", "http://127.0.0.1:9"),
        ("http_proxy", "gopher://x"),
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("all_proxy", "http://127.0.0.1:9"),
    ],
)
def test_a_server_on_this_machine_is_reached_past_every_proxy(
    bare: Live, variable: str, proxy: str
) -> None:
    done = run("adapters", "ls", "--json", "--url", bare.url, environment={variable: proxy})
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "gopher://127.0.0.1"])
def test_a_proxy_that_cannot_be_used_is_named(proxy: str) -> None:
    done = run("adapters", "ls", "--url", "http://far.example", environment={"ALL_PROXY": proxy})
    require_refused(done, "proxy")


def test_a_prompt_that_is_no_utf8_is_refused(bare: Live) -> None:
    require_line(adaptermix("generate", "-", "--url", bare.url, stdin=b"\xff\xfe"), "not UTF-8")
    done = subprocess.run(
        [sys.executable, "-m", "adaptermix.cli.main", "generate", b"\xff", "--url", bare.url],
        capture_output=True,
        check=False,
    )
    require_line(done, "not UTF-8")


@pytest.mark.parametrize("key", ["schl\u00fcssel", "a\nb", "\U0001f511"])
def test_a_key_that_none_can_be_is_refused(bare: Live, key: str) -> None:
    require_refused(run("adapters", "ls", "--url", bare.url, "--key", key), "API key")


@pytest.mark.parametrize("url", ["http://[::1", "nonsense", "http://", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    require_refused(run("adapters", "ls", "--url", url), "error")


def test_a_store_that_is_a_file_is_said(tmp_path: Path) -> None:
    file = tmp_path / "store"
    file.write_text("no folder")
    for store in (file, file / "below"):
        require_refused(run("keys", "ls", "--store", str(store)), "error", str(file))
    done = adaptermix("serve", "--model", "tiny-random", "--store", str(file))
    require_line(done, "error", str(file))


@pytest.mark.parametrize("name", ["a/b", "a?b", "a#b", "..", "%00", "a b", "\u00fc"])
def test_a_name_stays_one_part_of_the_path(bare: Live, name: str) -> None:
    assert httpx.URL(adapter_path(name)).raw_path.count(b"/") == 3
    require_refused(run("adapters", "show", name, "--url", bare.url), "error")


def test_the_version() -> None:
    done = adaptermix("--version")
    assert done.stdout.decode().split() == ["adaptermix", version("adaptermix")]


def test_a_digest_is_whole_in_a_pipe(bare: Live, folders: dict[str, Path]) -> None:
    at = ("--url", bare.url)
    narrow = {"COLUMNS": "40", "FORCE_COLOR": "1"}
    done = adaptermix("adapters", "publish", str(folders["math"]), *at, environment=narrow)
    assert done.returncode == 0, done.stderr
    (digest,) = re.findall(r"sha256:[0-9a-f]*", done.stdout.decode())
    assert len(digest) == len("sha256:") + 64
    (listed,) = json.loads(adaptermix("adapters", "show", "math", "--json", *at).stdout)
    assert listed["digest"] == digest
    assert digest in adaptermix("adapters", "show", "math", *at, environment=narrow).stdout.decode()


def test_load_pin_merge_unload_and_unalias(bare: Live, folders: dict[str, Path]) -> None:
    at = ("--url", bare.url)

    def said(*arguments: str) -> str:
        return ok("adapters", *arguments, *at)

    said("publish", str(folders["code"]))
    assert "on device" in said("load", "code")
    assert "device, pinned" in said("pin", "code")
    assert "pinned" not in said("pin", "code", "--off")
    said("alias", "code", "stable", "1")
    assert "code@stable" in said("unalias", "code", "stable")
    assert "0.5 code@1" in said("merge", "code=0.5")
    assert json.loads(said("merge", "--json"))["mode"] == "merged"
    assert "nothing" in said("merge", "--off")
    assert "code@1" in said("unload", "code")
    require_refused(run("adapters", "merge", "code=x", *at), "NAME=0.7")
    require_refused(run("adapters", "unalias", "code", "stable", *at), "does not exist")


def test_keys_and_machine_as_json(tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "store"))
    secret = run("keys", "create", "someone", *store).stdout.strip()
    (key,) = json.loads(run("keys", "ls", "--json", *store).stdout)
    assert key["label"] == "someone"
    assert key["id"] in secret
