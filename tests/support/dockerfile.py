"""A Dockerfile's steps, run as they stand in a plain root directory: a build without a builder.

Root alone may do it: each step has mounts of its own and its root changed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

# $0: the new root; then the folder to start in, "user:group", places to share; "--"; the command.
_ENTER = """
set -e
cd "$1"; user=$2; shift 2
mount -t proc proc proc
mount --rbind /dev dev
while [ "$1" != -- ]; do mount --bind "$1" "./shared$1"; shift; done
shift
exec chroot --userspec="$user" . sh -c 'cd "$0"; exec "$@"' "$FOLDER" env -u FOLDER "$@"
"""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::-([^}]*))?\})")


class Instruction(NamedTuple):
    keyword: str
    text: str


def instructions(dockerfile: str) -> Iterator[Instruction]:
    """Its instructions in order, without comments, continued lines joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    for whole in re.findall(r"^\w+ (?:.*\\\n)*.*$", "\n".join(lines), re.MULTILINE):
        keyword, _, text = whole.partition(" ")
        yield Instruction(keyword, text.replace("\\\n", ""))


@dataclass(eq=False)
class Stage:
    """A root that grows by instructions, and what a container of it would start with."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0"
    volumes: list[str] = field(default_factory=list)
    health_check: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)

    def expand(self, text: str) -> str:
        """`text` with the values of its variables."""
        known = self.arguments | self.environment
        return _VARIABLE.sub(lambda m: known.get(m[1] or m[2]) or m[3] or "", text)

    def command(
        self, *command: str, variables: Mapping[str, str], shared: Sequence[Path] = ()
    ) -> tuple[list[str], dict[str, str]]:
        """What `subprocess` takes to run `command` inside, as the stage's user, and its variables.

        variables: beside those of the stage.
        shared: files and folders of this machine that lie inside below /shared.
        """
        for place in shared:
            inside = self.root / f"shared{place}"
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.mkdir(exist_ok=True) if place.is_dir() else inside.touch()
        enter = ["unshare", "--mount", "sh", "-c", _ENTER, "enter", str(self.root)]
        places = map(str, shared)
        environment = {"HOME": self._home(), **self.environment, **variables, "FOLDER": self.folder}
        return [*enter, f"{self.user}:{self.user}", *places, "--", *command], environment

    def _home(self) -> str:
        lines = (self.root / "etc/passwd").read_text().splitlines()
        homes = {fields[2]: fields[5] for fields in (line.split(":") for line in lines)}
        return homes[self.user]


class Build:
    """A build of a Dockerfile; `base`, a root, stands for its base image."""

    def __init__(
        self, base: Path, context: Path, scratch: Path, arguments: Mapping[str, str]
    ) -> None:
        self._base = base
        self._context = context
        self._scratch = scratch
        self._given = dict(arguments)
        self._global: dict[str, str] = {}
        self._stages: dict[str, Stage] = {}
        self._pip, self._shared = pip_settings()

    def run(self, dockerfile: str) -> Stage:
        """The last stage. Raises AssertionError with its output when a step fails."""
        stage: Stage | None = None
        for keyword, text in instructions(dockerfile):
            if keyword == "FROM":
                stage = self._from(text)
            elif stage is None:
                assert keyword == "ARG", f"{keyword} before FROM"
                self._argument(self._global, text)
            else:
                getattr(self, f"_{keyword.lower()}")(stage, text)
        assert stage is not None
        return stage

    def _from(self, text: str) -> Stage:
        name = text.partition(" AS ")[2] or f"stage {len(self._stages)}"
        root = self._scratch / name
        subprocess.run(["cp", "-a", "--reflink=auto", self._base, root], check=True)
        self._stages[name] = Stage(root)
        return self._stages[name]

    def _argument(self, known: dict[str, str], text: str) -> None:
        name, _, default = text.partition("=")
        known[name] = self._given.get(name, known.get(name, default))

    def _arg(self, stage: Stage, text: str) -> None:
        self._argument(stage.arguments, text)

    def _env(self, stage: Stage, text: str) -> None:
        for pair in shlex.split(text):
            name, _, value = pair.partition("=")
            stage.environment[name] = stage.expand(value)

    def _run(self, stage: Stage, text: str) -> None:
        text = re.sub(r"^(--mount=\S+\s+)+", "", text)
        variables = self._pip | stage.arguments
        command, environment = stage.command(
            "sh", "-c", text, variables=variables, shared=self._shared
        )
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"RUN {text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def _copy(self, stage: Stage, text: str) -> None:
        *sources, target = text.split()
        origin = self._context
        if sources[0].startswith("--from="):
            origin = self._stages[sources.pop(0).removeprefix("--from=")].root
        place = stage.root / os.path.join(stage.folder, target).lstrip("/")
        for source in sources:
            given = origin / source.lstrip("/")
            into = place / given.name if target.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            if origin != self._context:  # by links: what was built is large, and isn't changed
                subprocess.run(["cp", "-al", given, into], check=True)
            elif given.is_dir():
                skipped = shutil.ignore_patterns("__pycache__", "*.py[cod]", ".env", "lib")
                shutil.copytree(given, into, ignore=skipped)
            else:
                shutil.copy(given, into)

    def _workdir(self, stage: Stage, text: str) -> None:
        stage.folder = text
        (stage.root / text.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _user(self, stage: Stage, text: str) -> None:
        stage.user = text

    def _volume(self, stage: Stage, text: str) -> None:
        stage.volumes.append(text)

    def _expose(self, stage: Stage, text: str) -> None:
        assert text.isdigit()

    def _healthcheck(self, stage: Stage, text: str) -> None:
        stage.health_check = _listed(text.partition("CMD ")[2])

    def _entrypoint(self, stage: Stage, text: str) -> None:
        stage.entrypoint = _listed(text)


def _listed(text: str) -> list[str]:
    parsed: list[str] = json.loads(text)
    return parsed


def pip_settings() -> tuple[dict[str, str], list[Path]]:
    """This machine's settings of pip as variables, and the places on it that they name.

    The variables say where those places are shared (`Stage.command`).
    """
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    found = re.findall(r"^(?:global|install)\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE)
    variables = {
        f"PIP_{name.upper().replace('-', '_')}": value.replace("\\n", " ") for name, value in found
    }
    variables |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    words = " ".join(variables.values()).split()
    # An index in a folder may name files that lie beside it.
    words = [str(Path(w.removeprefix("file://")).parent) if "://" in w else w for w in words]
    places = sorted({word for word in words if word[0] == "/" and Path(word).exists()})
    named = re.compile("|".join(map(re.escape, places)) or "$^")
    within = {name: named.sub(lambda m: f"/shared{m[0]}", text) for name, text in variables.items()}
    return within, [Path(place) for place in places]
