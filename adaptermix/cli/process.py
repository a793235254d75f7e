"""The program's surroundings: its encoding, its standard streams, and their errors."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from math import isfinite
from typing import TYPE_CHECKING, Any

import typer

from adaptermix.cli.output import print_error
from adaptermix.system_errors import reason

if TYPE_CHECKING:
    from typing_extensions import Buffer


def speak_utf8() -> None:
    """Start the program again in UTF-8 mode where the locale is of another encoding.

    Arguments and variables are UTF-8 whatever the locale says, as what goes out is.
    """
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def prepare_streams() -> None:
    """Standard streams that can be used, and fail when they are used where they are closed.

    A closed one's descriptor is taken: no file that is opened later becomes standard output.
    """
    for number, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDWR)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)
    # With descriptors of the wrong mode, each use is an error as if they were closed; what
    # standard error is told is lost.
    sys.stdin = sys.stdin or TextIOWrapper(
        BufferedReader(FileIO(0, closefd=False)), encoding="utf-8"
    )
    sys.stderr = sys.stderr or TextIOWrapper(
        BufferedWriter(FileIO(2, "w", closefd=False)), encoding="utf-8"
    )
    sys.stdout = TextIOWrapper(
        BufferedWriter(_Output(1, "w", closefd=False)),
        encoding=getattr(sys.stdout, "encoding", "utf-8"),
        errors="backslashreplace",  # a character that the encoding lacks is shown by its number
        line_buffering=os.isatty(1),
    )


class _Output(FileIO):
    """Standard output, whose errors name it."""

    def write(self, data: Buffer, /) -> int:
        """See FileIO."""
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from error


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """What goes wrong with files and streams ends the program with one line and status 1.

    A reader of standard output that has gone away is no error worth a line.
    """
    try:
        try:
            yield
        finally:
            _flush()
    except BrokenPipeError as error:
        raise SystemExit(1) from error
    except (OSError, UnicodeError) as error:
        print_error(reason(error))
        raise SystemExit(1) from error


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # the interpreter tries once more as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise


def check_arguments(program: typer.Typer) -> None:
    """Have every command refuse text that is no UTF-8, paths excepted, and numbers that are none.

    Neither could be sent to a server, nor kept.
    """
    for command in program.registered_commands:
        if command.callback is not None:
            command.callback = _checking(command.callback)
    for group in program.registered_groups:
        if group.typer_instance is not None:
            check_arguments(group.typer_instance)


def _checking(command: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(command)
    def checking(**options: Any) -> Any:
        for name, values in options.items():
            for value in values if isinstance(values, list | tuple) else (values,):
                _check(name, value)
        return command(**options)

    return checking


def _check(name: str, value: Any) -> None:
    if isinstance(value, float) and not isfinite(value):
        raise typer.BadParameter(f"{name.replace('_', '-')}: use a finite number, not {value}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise typer.BadParameter(f"{name.replace('_', '-')}: {value!r} is not UTF-8") from error
