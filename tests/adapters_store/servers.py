"""Real servers for the slow leg of the suites: PostgreSQL, and an S3 endpoint (moto)."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import create_engine, make_url, text

INSTALLED = Path("/usr/lib/postgresql")


def _programs() -> Path:
    """Where `initdb` and `pg_ctl` are: on the PATH, or where Debian puts them."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    versions = sorted(INSTALLED.glob("*/bin/initdb"))
    assert versions, "PostgreSQL is missing: apt-get install postgresql (make test does)"
    return versions[-1].parent


@dataclass(frozen=True)
class Postgres:
    """A server that can be stopped and started."""

    url: str
    start: Callable[[], None]
    stop: Callable[[], None]


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a fresh database on a Unix socket; the server is gone afterwards."""
    with postgres_server() as server:
        yield server.url


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """The same, with the server's switches."""
    programs = _programs()
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    # Not under pytest's folders: those are closed to other users, and too long for a socket.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    if os.geteuid() == 0:
        shutil.chown(folder, user, user)

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), *arguments]
        done = subprocess.run(
            command, user=user, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        assert done.returncode == 0, done.stderr.decode()

    data = str(folder / "data")
    try:
        run("initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
        log = str(folder / "log")
        start = partial(run, "pg_ctl", "start", "-w", "-D", data, "-l", log, "-o", options)
        stop = partial(run, "pg_ctl", "stop", "-w", "-m", "immediate", "-D", data)
        start()
        try:
            yield Postgres(f"postgresql://tester@/postgres?host={folder}", start, stop)
        finally:
            stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def s3() -> Iterator[dict[str, Any]]:
    """Options for a client of an S3 endpoint."""
    from moto.server import ThreadedMotoServer  # heavy, and only the slow leg needs it

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield {
            "endpoint": f"http://{host}:{port}",
            "region": "us-east-1",
            "access_key_id": "test",
            "secret_access_key": "test",
            "client_options": {"allow_http": True},
        }
    finally:
        server.stop()


def make_schema(url: str) -> str:
    """The URL of a new, empty schema of a database."""
    name = f"t_{uuid.uuid4().hex}"
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    engine.dispose()
    scoped = make_url(url).update_query_dict({"options": f"-csearch_path={name}"})
    return scoped.render_as_string(hide_password=False)


def make_bucket(options: dict[str, Any]) -> str:
    """The name of a new bucket."""
    name = f"adapters-{uuid.uuid4().hex}"
    assert httpx.put(f"{options['endpoint']}/{name}").status_code == 200
    return name
