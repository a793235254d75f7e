"""`adaptermix generate --explain`: which adapter was the strongest at each token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rich.color import ColorSystem
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from server.generation.weight_statistics import strongest
from server.printable import as_markup

# Okabe and Ito's set, which the colour-blind can tell apart; their black is the base's.
PALETTE = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2", "#f0e442")
_TURNS = ("", "underline ", "reverse ")  # when there are more adapters than colours
_ROWS = 12  # of the legend
_SYSTEMS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
    "windows": ColorSystem.WINDOWS,
}


def style_of(adapter: int | None) -> str:
    """How rich shows an adapter's tokens, by its place in the mixture; None is the base."""
    if adapter is None:
        return ""
    turn, colour = divmod(adapter, len(PALETTE))
    return f"{_TURNS[turn % len(_TURNS)]}{PALETTE[colour]}"


def painted(frame: Mapping[str, Any]) -> Text:
    """A streamed token in the colour of its strongest adapter, bold above half of all weight."""
    weights = (frame.get("routing") or {}).get("weights", ())
    winner = strongest(weights)
    style = style_of(winner)
    if winner is not None and 2 * abs(weights[winner]) > sum(map(abs, weights)):
        style = f"bold {style}"
    return Text(frame["token"]["text"], style=style)


def verbatim(frame: Mapping[str, Any], console: Console) -> str:
    """A painted token byte for byte, between escape codes where the console shows colours."""
    style = console.get_style(painted(frame).style)
    if console.no_color:
        style = style.without_color
    system = _SYSTEMS.get(console.color_system or "")
    return style.render(frame["token"]["text"], color_system=system)


def silence(routing: Mapping[str, Any] | None) -> str | None:
    """Why an answer has no weights to show; None where it has some."""
    if routing is None:
        return "no weights to show: the base model answered alone"
    if routing["weights"]:
        return None
    if routing["level"] == "layer":
        return f"no weights to show: {routing['router']} has others in each layer, not reported"
    return "no weights to show: the answer has no tokens"


def summary(routing: Mapping[str, Any]) -> str:
    """One line: who chose the weights, how spread they are and how often they changed sides."""
    chosen = "fixed weights" if routing["router"] is None else f"router {routing['router']}"
    level = "" if routing["router"] is None else f", level {routing['level']}"
    return (
        f"{chosen}{level}: {_count(len(routing['weights']), 'token')}, "
        f"{_count(routing['switches'], 'switch', 'switches')}, "
        f"mean entropy {routing['entropy']:.2f} nats"
    )


def legend(routing: Mapping[str, Any] | None) -> RenderableType:
    """Each adapter's colour, the share of tokens it was the strongest at, and its mean weight.

    Without weights, why there are none.
    """
    why = silence(routing)
    if routing is None or why is not None:
        return as_markup(str(why))
    names, rows = routing["adapters"], routing["weights"]
    means = [fmean(column) for column in zip(*rows, strict=True)]
    wins = Counter(strongest(row) for row in rows)
    order = sorted(range(len(names)), key=lambda i: (-wins[i], -abs(means[i])))
    table = Table("", "adapter", box=None, pad_edge=False)
    table.add_column("strongest at", justify="right")
    table.add_column("mean weight", justify="right")
    for index in order[:_ROWS]:
        share = f"{wins[index] / len(rows):.0%}"
        table.add_row(
            Text("■", style_of(index)), as_markup(names[index]), share, f"{means[index]:.2f}"
        )
    if order[_ROWS:]:
        won = sum(wins[index] for index in order[_ROWS:])
        table.add_row("", f"{len(order) - _ROWS} others", f"{won / len(rows):.0%}", "")
    if wins[None]:
        table.add_row("■", "the base alone", f"{wins[None] / len(rows):.0%}", "")
    return Group(table, as_markup(summary(routing)))


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
