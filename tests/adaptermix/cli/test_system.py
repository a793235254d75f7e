"""What the command line gets from its system: bytes, numbers, streams, files and hosts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import pytest

from adaptermix.cli.output import print_error
from adaptermix.client.connection import is_this_machine
from adapters_store.store import AdapterStore
from server.loopback import is_loopback
from server.settings import Settings, SettingsError, load_settings, variable_of
from tests.adaptermix.cli.test_edges import adaptermix, require_line, require_refused
from tests.adaptermix.cli.test_main import run
from tests.server.live import Live

NOWHERE = ("--url", "http://127.0.0.1:9")
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NO_TEXT = "a\udcffb"  # as Python reads the bytes a, 0xff, b


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", NO_TEXT),
        ("generate", "x", "--stop", NO_TEXT),
        ("generate", "x", "--adapter", NO_TEXT),
        ("generate", "x", "--router", NO_TEXT, "--candidates", "a"),
        ("generate", "x", "--router", "a", "--candidates", NO_TEXT),
        ("generate", "x", "--router", "a", "--candidates", "a", "--router-option", f"x={NO_TEXT}"),
        ("generate", "x", "--key", NO_TEXT),
        ("adapters", "show", NO_TEXT),
        ("adapters", "ls", "--tag", NO_TEXT),
        ("adapters", "ls", "--url", NO_TEXT),
        ("adapters", "alias", "a", NO_TEXT, "1"),
        ("adapters", "merge", "a", NO_TEXT),
        ("keys", "create", NO_TEXT),
        ("keys", "revoke", NO_TEXT),
        ("keys", "ls", "--database-url", NO_TEXT),
        ("serve", "--model", NO_TEXT),
        ("doctor", "--model", NO_TEXT),
        ("bench", "serve", "--url", NO_TEXT),
        ("train", "lora", "--base", NO_TEXT, "--data", "x", "--data-licence", "x", "--out", "x"),
    ],
)
def test_text_that_is_no_utf8_is_refused(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert "not UTF-8" in result.stderr


def test_bytes_of_the_command_line_are_utf8_or_refused_and_paths_as_they_are(
    tmp_path: Path,
) -> None:
    require_line(adaptermix("adapters", "show", b"\xff", *NOWHERE), "not UTF-8")
    require_refused(run("keys", "create", "x", "--kind", "\udcff"), "kind")
    require_refused(run("\udcff"), "No such command")
    store = os.fsencode(tmp_path) + b"/s\xff"
    done = adaptermix("keys", "ls", "--json", "--store", store)
    assert (done.returncode, done.stdout) == (0, b"[]\n"), done.stderr
    done = adaptermix("keys", "ls", "--json", environment={b"ADAPTERMIX_STORE": store})
    assert (done.returncode, done.stdout) == (0, b"[]\n"), done.stderr


def test_arguments_are_utf8_whatever_the_locale_says(tmp_path: Path) -> None:
    label, store = "schl\u00fcssel \U0001f511", tmp_path / "st\u00f6re"
    at = ("--store", str(store))
    done = adaptermix("keys", "create", label, *at, environment=ASCII)
    assert done.returncode == 0, done.stderr
    (key,) = json.loads(adaptermix("keys", "ls", "--json", *at, environment=ASCII).stdout)
    assert key["label"] == label
    assert store.is_dir()


@pytest.mark.parametrize(
    "name", ["MODEL", "HOST", "DATABASE_URL", "BLOBS_URL", "ENCODER", "ADMIN_KEY", "LOG_LEVEL"]
)
def test_a_variable_that_is_no_utf8_is_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ADAPTERMIX_{name}", f"sqlite:///{NO_TEXT}")
    with pytest.raises(SettingsError, match=f"ADAPTERMIX_{name}"):
        load_settings()


def test_variables_of_paths_may_be_of_any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [name for name, field in Settings.model_fields.items() if "Path" in str(field)]
    assert "store" in paths
    for name in paths:
        monkeypatch.setenv(variable_of(name), f"/{NO_TEXT}")
    settings = load_settings()
    assert all(os.fsencode(getattr(settings, name)) == b"/a\xffb" for name in paths)


@pytest.mark.parametrize("variable", ["URL", "KEY", "\udcff"])
def test_a_clients_variable_that_is_no_utf8_is_refused(variable: str) -> None:
    command = ("adapters", "ls") if variable.isascii() else ("keys", "ls")
    done = run(*command, environment={f"ADAPTERMIX_{variable}": NO_TEXT})
    require_refused(done, "error")


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "x", "--adapter", "a=nan"),
        ("generate", "x", "--adapter", "a=-inf"),
        ("generate", "x", "--adapter", "a=1e999"),
        ("adapters", "merge", "a=inf"),
        ("generate", "x", "--timeout", "nan"),
        ("generate", "x", "--timeout", "inf"),
        ("generate", "x", "--temperature", "nan"),
        ("generate", "x", "--top-p", "1e999"),
        ("adapters", "import", "moa-hf", ".", "--out", "x", "--gamma-max", "nan"),
        *(
            ("generate", "x", "--router", "r", "--candidates", "a", "--router-option", f"x={value}")
            for value in (
                *("NaN", "-Infinity", "1e999", "[1, [-1e999]]", "1" * 5000, "[" * 100_000),
                *('"\\ud800"', '{"\\udfff": 1}'),
            )
        ),
    ],
)
def test_what_json_cannot_say_is_refused(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, *(NOWHERE if arguments[0] == "generate" else ()))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    assert "Invalid value" in result.stderr


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "127.1", "0", "0x7f.1", "2130706433", "127.0.0.1."),
        *("localhost", "LOCALHOST", "localhost.", "foo.localhost", "a.b.localhost."),
        *("::1", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:7f00:1"),
    ],
)
def test_what_leads_to_this_machine_never_goes_to_a_proxy(host: str) -> None:
    written = f"[{host}]" if ":" in host else host
    assert is_this_machine(httpx.URL(f"http://{written}:8000").host)


@pytest.mark.parametrize(
    "host",
    ["10.1", "128.0.0.1", "example.org", "localhost.example", "notlocalhost", "::2", "", "1.2.3.4"],
)
def test_what_leads_elsewhere_may(host: str) -> None:
    assert not is_this_machine(host)
    assert not is_loopback(host)


def test_what_a_server_takes_for_itself_stays_narrow() -> None:
    assert not any(map(is_loopback, ("0.0.0.0", "127.1", "localhost.", "foo.localhost", "::")))


def test_odd_names_of_this_machine_are_reached_past_a_proxy(bare: Live) -> None:
    proxies = {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
    for host in ("127.1", "0.0.0.0", "[::ffff:127.0.0.1]"):
        at = f"http://{host}:{bare.port}"
        told = run("adapters", "ls", "--json", "--url", at, environment=proxies).stderr
        # The server may not know itself by that name, but it is the server that says so.
        assert "no server" not in told
        assert "proxy" not in told
    done = adaptermix("adapters", "ls", "--json", "--url", bare.url, environment=proxies)
    assert (done.returncode, done.stdout) == (0, b"[]\n"), done.stderr


def test_certificates_of_one_s_own_are_read_for_this_machine_too(tmp_path: Path) -> None:
    nothing = str(tmp_path / "none.pem")
    for host in ("localhost", "app.localhost", "127.1"):
        done = run(
            "adapters", "ls", "--url", f"https://{host}:9", environment={"SSL_CERT_FILE": nothing}
        )
        require_refused(done, "error:", "certificates")


@pytest.mark.parametrize(
    "url", ["http://a..b", f"http://{'a' * 64}", f"http://{'a' * 64}.org:80", "http://.a", "//a"]
)
def test_a_host_that_no_resolver_takes_is_refused(url: str) -> None:
    for command in (("adapters", "ls"), ("generate", "x")):
        result = run(*command, "--url", url)
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 1
        assert "error:" in result.stderr


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h:x/x",
        "postgresql://h:1x/x",
        "://",
        "sqlite://",
        "mysql://h/x",
        "postgresql://a..b/x",
    ],
)
def test_a_database_that_is_none_is_refused(url: str) -> None:
    result = run("keys", "ls", "--database-url", url)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert "database" in result.stderr


def test_output_that_goes_nowhere_is_said(tmp_path: Path) -> None:
    """Whatever writes it; and whether it is closed or full is the same once it is written to."""
    at = ("--store", str(tmp_path / "store"))
    for arguments in (("keys", "ls", *at), ("keys", "ls", "--json", *at), ("--version",), ("-h",)):
        require_line(adaptermix(*arguments, shell=">/dev/full"), "standard output")
    require_line(adaptermix("--version", shell=">&-"), "standard output")
    for shell in (">/dev/full", ">&-"):
        require_line(adaptermix("keys", "create", "x", *at, shell=shell), "standard output")
    store = AdapterStore.open(tmp_path / "store")
    try:
        assert store.list_keys() == []  # nobody got its secret
    finally:
        store.close()


def test_a_reader_that_has_gone_gets_no_key(tmp_path: Path) -> None:
    at = ("--store", str(tmp_path / "store"))
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = adaptermix("keys", "create", "x", *at, shell=f">/proc/{os.getpid()}/fd/{writing}")
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert json.loads(adaptermix("keys", "ls", "--json", *at).stdout) == []


def test_streams_that_are_closed_are_nobodys_files(tmp_path: Path, bare: Live) -> None:
    require_line(adaptermix("generate", "-", *NOWHERE, shell="<&-"), "standard input")
    file = tmp_path / "out"
    at = ("--store", str(tmp_path / "store"))
    done = adaptermix("keys", "ls", "--json", *at, shell=f"<&- 2>&- >{file}")
    assert (done.returncode, file.read_text()) == (0, "[]\n")
    assert adaptermix("adapters", "show", "x", "--url", bare.url, shell="2>&-").returncode == 1


def test_files_that_cannot_be_read_or_made_are_said(tmp_path: Path, bare: Live) -> None:
    require_line(adaptermix("pull", "--cache", "/dev/null/x"), "/dev/null/x")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").symlink_to("/proc/self/mem")  # EIO
    at = ("--url", bare.url)
    for source in (str(tmp_path), "/proc/self/mem"):
        require_refused(run("adapters", "publish", source, "--name", "a", *at), "error")
    require_refused(run("adapters", "texts", "a", "/proc/self/mem", *at), "/proc/self/mem")


def test_an_error_is_one_line_without_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_error("a\nb\r\x1b[31mc [d] \x07\udcff\u2028e\\")
    told = capsys.readouterr().err
    assert told == "error: a b \\x1b[31mc [d] \\x07\\udcff e\\\n"
