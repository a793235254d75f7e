"""What the commands share that talk to a running server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import httpx
import typer
from rich.console import Console, ConsoleDimensions
from rich.markup import escape

from server.settings import CLIENT_KEY, CLIENT_URL, client_defaults, is_loopback

TIMEOUT = httpx.Timeout(600.0, connect=10.0)

_PIPED = 10_000  # columns: what reads a pipe wants whole lines, uncut and unfolded


class _Output(Console):
    """Standard output: as wide as the terminal, if it is one."""

    @property
    def size(self) -> ConsoleDimensions:
        """See Console."""
        size = super().size
        return size if self.is_terminal else ConsoleDimensions(_PIPED, size.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size


console = _Output()
errors = Console(stderr=True)

UrlOption = Annotated[
    str | None,
    typer.Option("--url", help=f"The server [dim]\\[{CLIENT_URL}; http://127.0.0.1:8000][/]"),
]
KeyOption = Annotated[
    str | None, typer.Option("--key", help=f"An API key [dim]\\[{CLIENT_KEY}][/]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


class CommandError(Exception):
    """Something that the user is told in one line; the exit status is 1."""


@contextmanager
def connect(url: str | None, key: str | None) -> Iterator[httpx.Client]:
    """A client of the server; what goes wrong inside ends the command with status 1.

    Proxies that the environment names are for other machines, never for this one.
    """
    default_url, default_key = client_defaults()
    address = url or default_url
    key = key or default_key
    try:
        with _client(address, key) as client:
            yield client
    except httpx.ConnectError as error:
        fail(f"no server at {address}: start one with `adaptermix serve`, or use --url", error)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"{address}: {error or type(error).__name__}", error)
    except CommandError as error:
        fail(str(error), error)


def _client(address: str, key: str | None) -> httpx.Client:
    if key and not (key.isascii() and key.isprintable()):
        raise CommandError("the API key holds characters that no key has")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    is_near = is_loopback(httpx.URL(address).host)
    try:
        return httpx.Client(
            base_url=address, headers=headers, timeout=TIMEOUT, trust_env=not is_near
        )
    except (ImportError, ValueError) as error:  # of a proxy's scheme
        raise CommandError(f"a proxy that the environment names cannot be used: {error}") from error


def adapter_path(reference: str, *parts: str) -> str:
    """The admin route of an adapter, whatever characters the reference holds."""
    return "/".join(("/admin/adapters", *(quote(part, safe="@:") for part in (reference, *parts))))


def events(response: httpx.Response) -> Iterator[Any]:
    """The JSON of each server-sent event.

    A line ends at a line feed and nowhere else: JSON may hold what else Python ends lines at.
    """
    waiting = b""
    for chunk in response.iter_bytes():
        *lines, waiting = (waiting + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield json.loads(line.removeprefix(b"data:"))


def write_text(text: str) -> None:
    """Text on standard output, byte for byte, in UTF-8 whatever the locale."""
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:  # what stands in for it takes text alone
        sys.stdout.write(text)
    else:
        sys.stdout.flush()
        binary.write(text.encode())
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """JSON on standard output, for programs."""
    write_text(json.dumps(value, indent=2) + "\n")


def print_error(message: object) -> None:
    """One line on standard error; brackets in the message are text, not markup."""
    errors.print(f"[red]error:[/] {escape(str(message))}", soft_wrap=True, highlight=False)


def fail(message: str, cause: Exception) -> NoReturn:
    """Print an error and end the command."""
    print_error(message)
    raise typer.Exit(1) from cause


def check(response: httpx.Response) -> httpx.Response:
    """The response, where it is a success. Raises CommandError with what the server says."""
    if response.is_success:
        return response
    response.read()
    raise CommandError(_message(response))


def body_of(response: httpx.Response) -> Any:
    """The JSON of a successful response."""
    return check(response).json()


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return f"the server answered {response.status_code}: {response.text[:200]}"


def size(number: int) -> str:
    """Bytes for people."""
    value = float(number)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
