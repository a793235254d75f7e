"""Parts that commands share which talk to a running server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from adaptermix.cli.output import fail
from adaptermix.client import Client
from adaptermix.errors import AdapterMixError, ServerUnreachableError
from server.settings import CLIENT_KEY, CLIENT_URL, client_defaults

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
def connect(url: str | None, key: str | None) -> Iterator[Client]:
    """A client of the server; what goes wrong inside ends the command with status 1."""
    try:
        with Client(url, key) as client:
            yield client
    except ServerUnreachableError as error:
        address = url or client_defaults()[0]
        fail(f"no server at {address}: start one with `adaptermix serve`, or use --url", error)
    except (AdapterMixError, CommandError) as error:
        fail(str(error), error)
