"""Pictures of the weights at each token and of gates in each layer. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray

from adaptermix.cli.explain import summary

_TOKENS = 48  # a panel holds so many; longer answers go on in the next one
_ADAPTERS = 24  # rows at most
_CELL = 0.24  # inches
_GATED = 6  # adapters with gates at most, side by side
_LABEL = 12  # characters of a token
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_SEEN = str.maketrans({"\n": "⏎", "\t": "⇥"})


def write_heatmap(path: Path, routing: Mapping[str, Any], texts: Sequence[str]) -> None:
    """Weights [adapters x tokens] as PNG; `texts` are the tokens'. A dot marks the strongest.

    Of very many adapters those of the largest mean |weight| are shown. Raises OSError.
    """
    weights = np.array(routing["weights"], dtype=float).T  # [adapters, tokens]
    shown = np.argsort(-np.abs(weights).mean(axis=1), kind="stable")[:_ADAPTERS]
    shown.sort()
    names = [routing["adapters"][index] for index in shown]
    labels = _labels(texts)
    starts = range(0, weights.shape[1], _TOKENS)
    width = min(_TOKENS, weights.shape[1])
    height = len(starts) * (len(names) * _CELL + 1.1) + 0.6
    figure = Figure(figsize=(max(width, 16) * _CELL + 2.4, height), layout="constrained")
    panels = figure.subplots(len(starts), 1, squeeze=False)[:, 0]
    low, high, colours = _scale(weights)
    for panel, start in zip(panels, starts, strict=True):
        part = weights[:, start : start + _TOKENS]
        image = panel.imshow(part[shown], cmap=colours, vmin=low, vmax=high, aspect="auto")
        panel.set_xlim(-0.5, width - 0.5)  # the last panel's cells are as wide as the others'
        panel.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
        panel.set_xticks(
            range(part.shape[1]),
            labels[start : start + _TOKENS],
            rotation=90,
            fontsize=7,
            parse_math=False,
        )
        panel.spines[:].set_visible(False)
        panel.tick_params(length=0)
        _mark_strongest(panel, part, shown)
    figure.colorbar(image, ax=list(panels), label="weight", fraction=0.03, pad=0.01)
    omitted = len(weights) - len(shown)
    more = f" ({omitted} adapters with less weight are left out)" if omitted else ""
    figure.suptitle(summary(routing) + more, fontsize=9, parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def write_gates(path: Path, gates: Sequence[Mapping[str, Any]]) -> None:
    """Mean gates [layers x experts] of each adapter as PNG; grey where a layer has no such gate.

    gates: `details.gates` of an answer, at least one. Raises OSError.
    """
    shown = gates[:_GATED]
    columns = [max(4, len(each["experts"])) for each in shown]
    layers = len(shown[0]["mean"])
    size = (sum(columns) * 0.36 + 0.8 * len(shown) + 1.2, layers * _CELL + 2.2)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, width_ratios=columns)[0]
    for panel, each in zip(panels, shown, strict=True):
        mean = np.array(each["mean"], dtype=float)  # null becomes NaN
        panel.set_facecolor("lightgrey")
        image = panel.imshow(mean, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        experts = [_short(label) for label in each["experts"]]
        panel.set_xticks(range(len(experts)), experts, rotation=90, fontsize=8, parse_math=False)
        panel.tick_params(length=0, labelsize=8)
        panel.set_title(
            f"{each['adapter']}\nspread {each['spread']:.2f}, {each['closed']:.0%} closed",
            fontsize=8,
            parse_math=False,
        )
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=list(panels), label="mean gate", fraction=0.05, pad=0.02)
    omitted = len(gates) - len(shown)
    if omitted:
        figure.suptitle(f"{omitted} more adapters are left out", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def _scale(weights: NDArray[np.float64]) -> tuple[float, float, str]:
    """Limits and colours: from 0 up, or to both sides of 0 where there are negative weights."""
    largest = float(np.abs(weights).max()) or 1.0
    return (-largest, largest, "PuOr") if weights.min() < 0 else (0.0, largest, "cividis")


def _mark_strongest(panel: Any, part: NDArray[np.float64], shown: NDArray[np.intp]) -> None:
    winners = np.abs(part).argmax(axis=0)  # the first of equal ones, as everywhere
    for token, winner in enumerate(winners):
        if part[winner, token] and winner in shown:
            row = int(np.searchsorted(shown, winner))
            panel.plot(token, row, "o", color="white", markeredgecolor="black", markersize=3.5)


def _labels(texts: Sequence[str]) -> list[str]:
    """Tokens as an axis can show them: short, without the blank before a word, no lone blanks."""
    glyphs = FT2Font(findfont("DejaVu Sans")).get_charmap()

    def label(text: str) -> str:
        text = (text.strip(" ") or "␣" * len(text)).translate(_SEEN)
        text = "".join(c if ord(c) in glyphs else _UNKNOWN for c in text)
        return _short(text)

    return [label(text) for text in texts]


def _short(text: str) -> str:
    return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"
