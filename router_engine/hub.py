"""Models of the hub: one revision brought whole into Hugging Face's cache, and read from there.

A model that was brought is loaded from its one commit, and nothing is asked of the network any
more: what a branch points to by now is another model than the one that was checked.
"""

from __future__ import annotations

import errno
import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapters_store.home import expanded
from router_engine.assets import AssetError, AssetProgress, OnProgress, is_hub_id
from router_engine.errors import EngineError, UnsupportedModelError
from router_engine.model.checkpoint import check_model, one_line, read_json

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"
# All that is read of a repository but its weights. What else lies there is the same weights again
# in other formats, code that is never run, or pages for people.
_SMALL = (
    *(_CONFIG, "generation_config.json", _INDEX),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt"),
    *("chat_template.json", "*.jinja", "additional_chat_templates/*.jinja"),
)
_TOKEN = "a token in HF_TOKEN, or the name of a file with one in HF_TOKEN_PATH"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def check_revision(model: str, revision: str | None) -> None:
    """Raises UnsupportedModelError for a revision of what is no model of the hub."""
    if revision is not None and not is_hub_id(model):
        raise UnsupportedModelError(
            f"revision is {revision!r}, which only a hub id (owner/name) has, and the model is "
            f"{model}: leave revision out"
        )


def place_of(model: str, revision: str | None = None) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for a model: where it is, and options for that.

    A hub id that is in the cache as a whole is the folder of its commit there. Raises
    UnsupportedModelError as `check_revision` does.
    """
    check_revision(model, revision)
    if not is_hub_id(model):
        path = expanded(model)
        return str(path) if path.exists() else model, {}
    folder = kept(model, revision)
    if folder is None:
        return model, {} if revision is None else {"revision": revision}
    return str(folder), {}


def kept(model: str, revision: str | None = None) -> Path | None:
    """The folder of one commit in the cache, with all that serving reads; None: it isn't whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        here = snapshot_download(
            model, revision=revision, allow_patterns=list(_SMALL), local_files_only=True
        )
        check_model(Path(here))
    except (HFValidationError, LocalEntryNotFoundError, UnsupportedModelError):
        return None
    return Path(here)


def bring_model(
    model: str, revision: str | None = None, on_progress: OnProgress = lambda progress: None
) -> Path:
    """The folder of a hub id's revision in the cache, brought where it isn't there as a whole.

    Its config is looked at before gigabytes of weights are asked for. After a download that failed
    the files that had come whole are kept. Raises AssetError, and UnsupportedModelError as
    `load_model` does.
    """
    folder = kept(model, revision)
    if folder is None:
        on_progress(AssetProgress(model, "checking"))
        with _in_a_line(model, revision):
            folder = _bring(model, revision, on_progress)
    on_progress(AssetProgress(model, "done"))
    return folder


def _bring(model: str, revision: str | None, on_progress: OnProgress) -> Path:
    from huggingface_hub import snapshot_download

    from router_engine.model.loader import described_by

    config = snapshot_download(
        model, revision=revision, allow_patterns=[_CONFIG], tqdm_class=_bar(lambda size: None)
    )
    commit = Path(config).name  # what a branch means may change from here on
    if not (Path(config) / _CONFIG).is_file():
        raise AssetError(f"{model} has no {_CONFIG}: it is no model that transformers reads")
    described_by(model, commit)
    folder = Path(_fetch(model, commit, _SMALL, on_progress))
    _fetch(model, commit, _weights(folder), on_progress)
    check_model(folder)
    return folder


def _weights(folder: Path) -> list[str]:
    """The names of the files that hold the weights, by the index where there is one."""
    index = folder / _INDEX
    if not index.is_file():
        return [_WEIGHTS]
    parts = read_json(index).get("weight_map")
    return sorted({str(part) for part in parts.values()}) if isinstance(parts, dict) else []


def _fetch(model: str, commit: str, files: Sequence[str], on_progress: OnProgress) -> str:
    """Bring files of a commit, as far as it has them; returns the commit's folder."""
    from huggingface_hub import snapshot_download

    patterns = list(files)
    listed = snapshot_download(
        model,
        revision=commit,
        allow_patterns=patterns,
        dry_run=True,
        tqdm_class=_bar(lambda size: None),
    )
    total = sum(file.file_size or 0 for file in listed)
    done = sum(file.file_size or 0 for file in listed if not file.will_download)
    for file in listed[:1]:
        _check_room(Path(file.local_path), total - done)
    lock = threading.Lock()

    def advance(size: int) -> None:
        nonlocal done
        with lock:  # several files come at once
            done += size
            on_progress(AssetProgress(model, "downloading", done, total))

    return snapshot_download(
        model, revision=commit, allow_patterns=patterns, tqdm_class=_bar(advance)
    )


def _check_room(file: Path, needed: int) -> None:
    """Raises OSError (ENOSPC) where a disk cannot hold what is yet to be written."""
    place = next(folder for folder in file.parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed} bytes are needed and {free} are free")


def _bar(advance: Any) -> Any:
    """A class of bars for the hub's library that show nothing, and tell of bytes that have come."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, name: str | None = None, **options: Any) -> None:
            # There is one of bytes written, one of bytes received and one of files.
            self._counts = name == "huggingface_hub.snapshot_download"
            begin: Any = super().__init__  # untyped in tqdm
            begin(*args, **options | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._counts and n:
                advance(int(n))

    return Bar


@contextmanager
def _in_a_line(model: str, revision: str | None) -> Iterator[None]:
    """Raises AssetError for whatever the hub, its library or the disk say."""
    from huggingface_hub.utils import logging as hub_logging

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)  # its warnings say what the error says again
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise AssetError(_explain(model, revision, error)) from error
    finally:
        hub_logging.set_verbosity(before)


def _explain(model: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants, errors

    cache = constants.HF_HUB_CACHE
    if isinstance(error, errors.HFValidationError):
        return f"{model!r} is no id on the hub: an id is owner/name"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{model} has no revision {revision!r}: name one of its branches, tags or commits"
    if isinstance(error, errors.GatedRepoError):
        return f"{model} is behind a licence: accept it on the hub's page of it, and give {_TOKEN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub shows no model {model}: correct the name or, if it is private, give {_TOKEN}"
        )
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return (
            f"there is no room for {model} in {cache} ({one_line(error)}): make room there, or "
            "name another folder in HF_HOME"
        )
    if isinstance(error, errors.LocalEntryNotFoundError | errors.DryRunError):
        cause = one_line(error.__cause__ or error)
        return (
            f"{model} is not whole in {cache}, and the hub cannot be asked for it ({cause}): run "
            "`adaptermix pull` on a connected machine and copy that folder, or name a directory"
        )
    return f"{model} could not be brought ({one_line(error)}): try again: whole files are kept"
