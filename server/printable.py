"""Somebody else's text as a terminal may be given it."""

from __future__ import annotations

from rich.markup import escape


def printable(text: str) -> str:
    """A text with what is no character to be seen, such as a terminal's escape, by its number."""
    return "".join(map(_printable, text))


def as_markup(text: str) -> str:
    """The `printable` text as rich's markup, for a line or a cell of a table."""
    return escape(printable(text))


def _printable(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode()
