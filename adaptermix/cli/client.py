"""What the commands share that talk to a running server."""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer
from pydantic import BaseModel

from adaptermix.cli.output import fail
from server.settings import CLIENT_KEY, CLIENT_URL, client_defaults

TIMEOUT = httpx.Timeout(600.0, connect=10.0)

UrlOption = Annotated[
    str | None,
    typer.Option("--url", help=f"The server [dim]\\[{CLIENT_URL}; http://127.0.0.1:8000][/]"),
]
KeyOption = Annotated[
    str | None, typer.Option("--key", help=f"An API key [dim]\\[{CLIENT_KEY}][/]")
]


class CommandError(Exception):
    """Something that the user is told in one line; the exit status is 1."""


class ForeignAnswerError(Exception):
    """What answers is another program than AdapterMix."""


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
    except ForeignAnswerError as error:
        fail(f"{address} does not answer as AdapterMix does: is it another server's?", error)
    except CommandError as error:
        fail(str(error), error)


def _client(address: str, key: str | None) -> httpx.Client:
    if key and not (key.isascii() and key.isprintable()):
        raise CommandError("the API key holds characters that no key has")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        parsed = httpx.URL(address)
        # As a connection will encode it.
        parsed.raw_host.decode("ascii").encode("idna")
    except UnicodeError as error:
        raise CommandError(f"{address} is no address: {error}") from error
    is_near = is_this_machine(parsed.host)
    try:
        return httpx.Client(
            base_url=address,
            headers=headers,
            timeout=TIMEOUT,
            trust_env=not is_near,
            # One of its own goes to no proxy, and still reads which certificates are trusted.
            transport=httpx.HTTPTransport(verify=_trusted(parsed)) if is_near else None,
        )
    except OSError as error:  # of SSL_CERT_FILE
        raise CommandError(f"the certificates that are trusted cannot be read: {error}") from error
    except (ImportError, ValueError) as error:  # of a proxy's scheme
        raise CommandError(f"a proxy that the environment names cannot be used: {error}") from error


def _trusted(address: httpx.URL) -> ssl.SSLContext | bool:
    """What httpx verifies certificates by; they take long to read, and plain HTTP shows none."""
    return True if address.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def is_this_machine(host: str) -> bool:
    """Whether a client that connects to a host, as a URL has it, comes out on this machine.

    Wider than what a server may take for itself: 127.1, 0.0.0.0 and *.localhost mean it too.
    """
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        try:  # short forms, such as 127.1 and 0x7f000001
            address = ipaddress.IPv4Address(socket.inet_aton(name))
        except (OSError, UnicodeError):
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def adapter_path(reference: str, *parts: str) -> str:
    """The admin route of an adapter, whatever characters the reference holds."""
    return "/".join(("/admin/adapters", *(quote(part, safe="@:") for part in (reference, *parts))))


def events(response: httpx.Response) -> Iterator[Any]:
    """The JSON of each server-sent event.

    A line ends at a line feed and nowhere else: JSON may hold what else Python ends lines at.
    Raises ForeignAnswerError where one is no JSON.
    """
    waiting = b""
    for chunk in response.iter_bytes():
        *lines, waiting = (waiting + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield _json(line.removeprefix(b"data:"))


def check(response: httpx.Response) -> httpx.Response:
    """The response, where it is a success. Raises CommandError with what the server says."""
    if response.is_success:
        return response
    response.read()
    raise CommandError(_message(response))


def body_of(response: httpx.Response, shape: type[BaseModel]) -> Any:
    """The JSON of a successful response, which has at least the fields of a shape.

    Raises CommandError where it is no success, ForeignAnswerError where its shape is another.
    """
    value = _json(check(response).content)
    require_shape(value, shape)
    return value


def require_shape(value: Any, shape: type[BaseModel]) -> None:
    """Raises ForeignAnswerError where JSON lacks what a shape has; it may have more."""
    try:
        shape.model_validate_json(json.dumps(value), strict=True, extra="ignore")
    except (ValueError, RecursionError) as error:
        raise ForeignAnswerError from error


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # of bytes that are no UTF-8 too
        raise ForeignAnswerError from error


def _message(response: httpx.Response) -> str:
    try:
        message = _json(response.content)["error"]
    except (ForeignAnswerError, LookupError, TypeError):
        message = None
    if isinstance(message, str):
        return message
    # In UTF-8, whatever it says: there are charsets that are none of text.
    told = response.content[:200].decode(errors="replace")
    return f"the server answered {response.status_code}: {told}"
