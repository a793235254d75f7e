"""The connection to a server: address, key, proxies, certificates."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from adaptermix.client.reading import ForeignBodyError
from adaptermix.errors import (
    ConnectionFailedError,
    ForeignAnswerError,
    InvalidInputError,
    ServerUnreachableError,
    TimedOutError,
)

CONNECT_SECONDS = 10.0
H = TypeVar("H", httpx.Client, httpx.AsyncClient)


def address_and_key(url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """What is left out comes from the environment: ADAPTERMIX_URL and ADAPTERMIX_KEY."""
    if url and api_key:
        return url, api_key
    # Here, not above: most of it is the server's settings.
    from server.settings import client_defaults

    default_url, default_key = client_defaults()
    return url or default_url, api_key or default_key


def connected(
    client_class: type[H],
    transport_class: type[httpx.HTTPTransport] | type[httpx.AsyncHTTPTransport],
    address: str,
    key: str | None,
    timeout: float | None,
) -> H:
    """An HTTP client of the server. Raises InvalidInputError.

    Proxies that the environment names are for other machines, never for this one.
    timeout: seconds without a byte from the server; None waits for ever.
    """
    if key and not (key.isascii() and key.isprintable()):
        raise InvalidInputError("the API key holds characters that no key has")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = _parsed(address)
    is_near = is_this_machine(url.host)
    try:
        # One of its own goes to no proxy, and still reads which certificates are trusted.
        transport: Any = transport_class(verify=_trusted(url)) if is_near else None
        return client_class(
            base_url=address,
            headers=headers,
            timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS),
            trust_env=not is_near,
            transport=transport,
        )
    except OSError as error:  # of SSL_CERT_FILE
        raise InvalidInputError(
            f"the certificates that are trusted cannot be read: {error}"
        ) from error
    except (ImportError, ValueError) as error:  # of a proxy's scheme
        raise InvalidInputError(
            f"a proxy that the environment names cannot be used: {error}"
        ) from error


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


@contextmanager
def translated(address: str) -> Iterator[None]:
    """What goes wrong between here and the server, as this API's errors that name the address."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise TimedOutError(_line(address, error)) from error
    except httpx.ConnectError as error:
        raise ServerUnreachableError(
            f"no server at {address}: {str(error) or type(error).__name__}"
        ) from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InvalidInputError(_line(address, error)) from error
    except httpx.HTTPError as error:
        raise ConnectionFailedError(_line(address, error)) from error
    except ForeignBodyError as error:
        raise ForeignAnswerError(
            f"{address} does not answer as AdapterMix does: is it another server's?"
        ) from error


def _line(address: str, error: Exception) -> str:
    return f"{address}: {str(error) or type(error).__name__}"


def _parsed(address: str) -> httpx.URL:
    try:
        url = httpx.URL(address)
        # As a connection will encode it.
        url.raw_host.decode("ascii").encode("idna")
    except httpx.InvalidURL as error:
        raise InvalidInputError(_line(address, error)) from error
    except UnicodeError as error:
        raise InvalidInputError(f"{address} is no address: {error}") from error
    return url


def _trusted(url: httpx.URL) -> ssl.SSLContext | bool:
    """What httpx verifies certificates by; they take long to read, and plain HTTP shows none."""
    return True if url.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
