"""Folders for the sockets between processes, whose paths may only be short."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import zmq

_PREFIX = "adaptermix-"
_LONGEST = f"/{_PREFIX}12345678/encoder.sock"  # below the temporary directory
_SHORT = "/tmp"


def socket_folder() -> tempfile.TemporaryDirectory[str]:
    """A new folder, mode 0700, for sockets with names of at most 12 letters.

    In the temporary directory, or in /tmp where the path of that one can be no socket's. Raises
    OSError where none can be made.
    """
    temporary = tempfile.gettempdir()
    fits = _can_be_an_address(temporary + _LONGEST)
    try:
        # A start that is cut off may leave a thread that still writes there.
        return tempfile.TemporaryDirectory(
            prefix=_PREFIX, dir=temporary if fits else _SHORT, ignore_cleanup_errors=True
        )
    except OSError as error:
        if fits:
            raise
        raise OSError(
            f"the temporary directory has a path too long for sockets, {temporary!a}, and none can "
            f"be made in {_SHORT} ({error.strerror}): set TMPDIR to a shorter one"
        ) from error


def make_again(folder: Path) -> None:
    """Make such a folder where a cleaner of temporary files took it.

    Raises OSError where that fails, or where somebody else has made one of its name.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.lstat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")


def _can_be_an_address(path: str) -> bool:
    """Whether ZeroMQ takes it: it has to be UTF-8, and to fit into `sockaddr_un`."""
    try:
        return len(path.encode()) <= zmq.IPC_PATH_MAX_LEN
    except UnicodeEncodeError:
        return False
