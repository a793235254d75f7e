"""A hub of models on loopback: what huggingface_hub asks of one, and nothing more."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants


@dataclass(slots=True)
class Repository:
    """A model's commits by their hash, each a folder, and what its branches and tags mean."""

    commits: dict[str, Path]
    refs: dict[str, str]
    token: str | None = None  # of those who may read it; None: everybody may
    sizes: dict[str, int] = field(
        default_factory=dict
    )  # that it tells, where not those of the files


@dataclass(slots=True)
class Hub:
    """What it holds, and what was asked of it."""

    url: str = ""
    models: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  # "GET /path", and "from n" after it
    cut: int | None = None  # bytes of a file after which its connection ends
    broken: bool = False  # whether files are answered with an error

    def publish(self, model: str, folder: Path, *refs: str) -> str:
        """A commit of a folder as it is now, which main and `refs` mean from here on."""
        digest = hashlib.sha1(usedforsecurity=False)
        for file in _files(folder):
            digest.update(file.encode() + (folder / file).read_bytes())
        commit = digest.hexdigest()
        repository = self.models.setdefault(model, Repository({}, {}))
        repository.commits[commit] = folder
        repository.refs |= dict.fromkeys(("main", *refs), commit)
        return commit

    def fetched(self) -> list[str]:
        """The names of the files whose bytes were asked for, in order, each once."""
        gets = (one.split()[1] for one in self.asked if one.startswith("GET"))
        names = (path.partition("/resolve/")[2].partition("/")[2] for path in gets)
        return list(dict.fromkeys(name for name in names if name))


def _files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def ask_it(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process ask it, and keep models in `cache`: HF_ENDPOINT and HF_HOME, which the
    library reads when it is imported.
    """
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # so that small files come in parts
    for name in [*filter(_is_outside, os.environ)]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # of another test's hub
    close_session()  # another test's, maybe by way of a proxy


def _is_outside(variable: str) -> bool:
    """Whether a variable says how to get to the hub on the internet, or as whom."""
    return variable.upper().endswith("_PROXY") or variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@contextmanager
def hub_server() -> Iterator[Hub]:
    """One on a free port of loopback."""

    class Handler(_Handler):
        hub: ClassVar[Hub] = Hub()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Handler.hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Handler.hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def _answer(self) -> None:
        start = self._start()
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}" + (f" from {start}" if start else ""))
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        model, rest = "/".join(parts[2:4] if is_api else parts[:2]), parts[4 if is_api else 2 :]
        repository = self.hub.models.get(model)
        if repository is None:
            return self._refuse(HTTPStatus.UNAUTHORIZED, "RepoNotFound")
        bearer = None if repository.token is None else f"Bearer {repository.token}"
        if bearer not in (None, self.headers["authorization"]):
            return self._refuse(HTTPStatus.UNAUTHORIZED, "GatedRepo")
        what, revision, *names = rest
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        if what == "resolve":
            name = "/".join(names)
            size = repository.sizes.get(name)
            return self._file(repository.commits[commit] / name, commit, start, size)
        files = {
            name: repository.commits[commit] / name for name in _files(repository.commits[commit])
        }
        sizes = {name: file.stat().st_size for name, file in files.items()} | repository.sizes
        listed = [
            {"type": "file", "path": name, "size": size, "oid": _etag(files[name])}
            for name, size in sizes.items()
        ]
        if names:  # a folder's, of which nobody has one here
            return self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
        told: object = {"id": model, "sha": commit} if what == "revision" else listed
        return self._send(HTTPStatus.OK, json.dumps(told).encode(), {})

    def _start(self) -> int:
        """The first byte that is wanted of a file."""
        return int((self.headers["range"] or "bytes=0-").removeprefix("bytes=").partition("-")[0])

    def _file(self, file: Path, commit: str, start: int, size: int | None) -> None:
        if not file.is_file():
            return self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound", {"X-Repo-Commit": commit})
        if self.hub.broken and self.command == "GET":
            return self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "Broken")
        content = file.read_bytes()
        headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if size is not None:  # as of a file that another machine keeps
            headers["X-Linked-Size"] = str(size)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        status = HTTPStatus.PARTIAL_CONTENT if start else HTTPStatus.OK
        return self._send(status, content[start:], headers, self.hub.cut)

    def _refuse(self, status: HTTPStatus, code: str, headers: Mapping[str, str] = {}) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, **headers})

    def _send(
        self, status: HTTPStatus, body: bytes, headers: Mapping[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
