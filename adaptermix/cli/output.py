"""Output of the program: text and JSON on standard output, errors on standard error."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, ConsoleDimensions
from rich.text import Text

from server.printable import printable

_PIPED = 10_000  # columns: what reads a pipe wants whole lines, uncut and unfolded


class _Output(Console):
    """Standard output: as wide as the terminal, if it is one."""

    @property
    def size(self) -> ConsoleDimensions:
        """See Console."""
        size = super().size
        return size if self.file.isatty() else ConsoleDimensions(_PIPED, size.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size


# A digest is one piece, and a:b:c may be a name: no smiley is meant by it.
console = _Output(highlight=False, emoji=False)
errors = Console(stderr=True, emoji=False)

JsonOption = Annotated[bool, typer.Option("--json", help="As JSON, for programs.")]


def write_text(text: str) -> None:
    """Text on standard output, byte for byte, in UTF-8 whatever the locale."""
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:  # what stands in for it takes text alone
        sys.stdout.write(text)
    else:
        sys.stdout.flush()
        binary.write(text.encode())
    sys.stdout.flush()


def write_json(value: Any) -> None:
    """JSON on standard output, for programs."""
    write_text(json.dumps(value, indent=2) + "\n")


def print_error(message: object) -> None:
    """One line on standard error.

    What is no character to be seen, such as a terminal's escape, is shown by its number.
    """
    line = printable(str(message).strip())
    errors.print(Text.assemble(("error:", "red"), f" {line}"), soft_wrap=True)


def fail(message: str, cause: Exception) -> NoReturn:
    """Print an error and end the command."""
    print_error(message)
    raise typer.Exit(1) from cause


def moment(seconds: float, form: str = "%Y-%m-%d %H:%M") -> str:
    """A time for people, of seconds since 1970; the number where no calendar has it."""
    try:
        return datetime.fromtimestamp(seconds).strftime(form)
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def size(number: int) -> str:
    """Bytes for people."""
    value = float(number)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
