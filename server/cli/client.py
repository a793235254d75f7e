"""What the commands share that talk to a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.markup import escape

from server.settings import CLIENT_KEY, CLIENT_URL, client_defaults

TIMEOUT = httpx.Timeout(600.0, connect=10.0)

console = Console()
errors = Console(stderr=True)

UrlOption = Annotated[
    str | None,
    typer.Option("--url", help=f"The server [dim]\\[{CLIENT_URL}; http://127.0.0.1:8000][/]"),
]
KeyOption = Annotated[
    str | None, typer.Option("--key", help=f"An API key [dim]\\[{CLIENT_KEY}][/]")
]


class CommandError(Exception):
    """Something that the user is told in one line; the exit status is 1."""


@contextmanager
def connect(url: str | None, key: str | None) -> Iterator[httpx.Client]:
    """A client of the server; what goes wrong inside ends the command with status 1."""
    default_url, default_key = client_defaults()
    address = url or default_url
    key = key or default_key
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=address, headers=headers, timeout=TIMEOUT) as client:
            yield client
    except httpx.ConnectError as error:
        fail(f"no server at {address}: start one with `adaptermix serve`, or use --url", error)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"{address}: {error or type(error).__name__}", error)
    except CommandError as error:
        fail(str(error), error)


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
