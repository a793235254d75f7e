"""An HTTP server that is none of ours, and answers every request alike."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar


@dataclass(slots=True)
class Foreign:
    """What it answers, and the bodies that it got."""

    url: str = ""
    status: int = 200
    kind: str = "application/json"
    body: bytes = b""
    got: list[bytes] = field(default_factory=list)

    def answer(self, body: bytes, kind: str = "application/json", status: int = 200) -> None:
        """From now on."""
        self.body, self.kind, self.status = body, kind, status
        self.got.clear()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client may go away as soon as it knows enough."""


@contextmanager
def foreign_server() -> Iterator[Foreign]:
    """One on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        told: ClassVar[Foreign] = Foreign()

        def answer(self) -> None:
            told = self.told
            told.got.append(self.rfile.read(int(self.headers.get("content-length") or 0)))
            self.send_response(told.status)
            self.send_header("content-type", told.kind)
            self.send_header("content-length", str(len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    for method in ("GET", "POST", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.answer)
    with _Server(("127.0.0.1", 0), Handler) as server:
        Handler.told.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Handler.told
        finally:
            server.shutdown()
            thread.join()
