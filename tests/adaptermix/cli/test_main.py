"""The program `adaptermix` against a live server, and without one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adaptermix.cli.generate import weights_table
from adaptermix.cli.main import app
from server.settings import Settings, variable_of
from tests.server.live import Live, serving, tiny_settings

Folders = dict[str, Path]


def run(
    *arguments: str, input: str | None = None, environment: Mapping[str, str] | None = None
) -> Result:
    """A command in this process, past the proxies of its environment."""
    proxies = {name: None for name in os.environ if "PROXY" in name.upper()}
    plain = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    given: dict[str, str | None] = {**proxies, **plain, **(environment or {})}
    return CliRunner().invoke(app, list(arguments), input=input, env=given)


def ok(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def printable(text: str) -> str:
    """Without control characters, which the terminal doesn't get."""
    return "".join(character for character in text if character.isprintable())


COMMANDS = ("serve", "pull", "doctor", "train", "adapters", "generate", "keys")


def test_help_names_every_command_and_every_setting() -> None:
    assert all(command in ok("--help") for command in COMMANDS)
    page = ok("serve", "--help")
    for name in Settings.model_fields:
        assert variable_of(name) in page
        assert f"--{name.replace('_', '-')}" in page


def test_a_command_that_is_none_is_told_the_near_ones() -> None:
    result = run("serv")
    assert result.exit_code == 2
    assert "Did you mean 'serve'?" in result.stderr


def test_publish_show_alias_list_and_remove(bare: Live, folders: Folders) -> None:
    at = ("--url", bare.url)
    said = ok("adapters", "publish", str(folders["math"]), "--tag", "task", *at)
    assert "published math@1" in said
    assert "published other@1" in ok(
        "adapters", "publish", str(folders["code"]), "--name", "other", *at
    )
    assert "math@stable is math@1" in ok("adapters", "alias", "math", "stable", "1", *at)
    listed = ok("adapters", "ls", *at)
    assert "math@1" in listed
    assert "stable" in listed
    assert "other@1" not in ok("adapters", "ls", "--tag", "task", *at)
    assert "sha256:" in ok("adapters", "show", "math@stable", *at)
    assert run("adapters", "rm", "math@1", *at).exit_code == 1
    assert "deleted math@1" in ok("adapters", "rm", "math@1", "--force", *at)
    missing = run("adapters", "show", "math", *at)
    assert missing.exit_code == 1
    assert "does not exist" in missing.output


def test_check_tells_what_it_costs_or_what_is_wrong(
    bare: Live, folders: Folders, tmp_path: Path
) -> None:
    assert "would load: rank 8" in ok("adapters", "check", str(folders["wide"]), "--url", bare.url)
    (tmp_path / "adapter_config.json").write_text("{}")
    wrong = run("adapters", "check", str(tmp_path), "--url", bare.url)
    assert wrong.exit_code == 1
    assert "adapter_config.json" in wrong.output


def test_generate_streams_under_a_fixed_mixture(live: Live) -> None:
    said = ok(
        *("generate", "hello", "--adapter", "math=0.7", "--adapter", "code=0.3", "-n", "8"),
        *("--show-weights", "--url", live.url),
    )
    expected = live.answer(
        parameters={"max_new_tokens": 8},
        mixture={"adapters": [{"name": "math", "weight": 0.7}, {"name": "code", "weight": 0.3}]},
    )
    assert printable(expected["generated_text"]) in printable(said)
    assert "math@1" in said
    assert "0.700" in said


def test_generate_under_a_router_from_standard_input(live: Live) -> None:
    result = run(
        *("generate", "-", "--router", "similarity", "--candidates", "math,code"),
        *("--level", "token", "--every", "2", "--lag", "1", "--router-option", "temperature=0.5"),
        *("-n", "4", "--show-weights", "--url", live.url),
        input="hello",
    )
    assert result.exit_code == 0, result.output
    assert "code@1" in result.output


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--adapter", "maht"), 1, "near names: math"),
        (("--router", "similarity"), 2, "--candidates"),
        (("--router", "x", "--candidates", "math", "--adapter", "math"), 2, "either"),
        (("--adapter", "math=heavy"), 2, "NAME=0.7"),
        (("--router", "x", "--candidates", "tag:t", "--router-option", "a"), 2, "KEY=VALUE"),
    ],
)
def test_what_generate_cannot_do_is_said_with_a_status(
    live: Live, arguments: tuple[str, ...], status: int, said: str
) -> None:
    result = run("generate", "hello", *arguments, "--url", live.url)
    assert result.exit_code == status
    assert said in result.output


def test_without_a_server_it_says_how_to_start_one() -> None:
    result = run("adapters", "ls", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "adaptermix serve" in result.output


def test_a_weights_table_shows_first_and_last() -> None:
    assert weights_table({"adapters": ["a"], "weights": [[0.5]] * 100}).row_count <= 14
    assert weights_table({"adapters": ["a"], "weights": []}).row_count == 0


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    at = ("--cache", str(tmp_path))
    secret = run("keys", "create", "me", "--kind", "admin", *at).stdout.strip().splitlines()[-1]
    assert "me" in ok("keys", "ls", *at)
    with serving(tiny_settings(tmp_path)) as server:
        assert "math" not in ok("adapters", "ls", "--url", server.url, "--key", secret)
        assert run("adapters", "ls", "--url", server.url).exit_code == 1
        key_id = secret.split("_")[1]
        assert "revoked" in ok("keys", "revoke", key_id, *at)
        # The last one: whoever asked for keys goes on asking.
        assert run("adapters", "ls", "--url", server.url, "--key", secret).exit_code == 1
    assert run("keys", "revoke", "nothing", *at).exit_code == 1
    assert run("keys", "create", "x", "--kind", "owner", *at).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--port", "70000"), "ADAPTERMIX_PORT"), (("--policy", "random"), "policy")],
)
def test_serve_refuses_a_setting_by_name(arguments: tuple[str, ...], said: str) -> None:
    result = run("serve", *arguments)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--host", "0.0.0.0", "--model", "tiny-random"), 2, "keys create"),
        ((), 1, "adaptermix pull"),
    ],
)
def test_serve_says_why_it_does_not_start(
    tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "adaptermix.cli.main",
            "serve",
            "--cache",
            str(tmp_path),
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert said in done.stderr
