"""`adaptermix generate --explain` and `--heatmap`: colours, words and a picture."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray
from rich.console import Console

from adaptermix.cli.explain import PALETTE, legend, painted, silence, style_of, verbatim
from adaptermix.cli.heatmap import write_heatmap
from tests.adaptermix.cli.test_main import ok, printable, run
from tests.server.live import Live

ROWS = [[1.0, 0.0], [0.25, 0.75], [0.5, 0.5], [0.0, 0.0]] * 6
GIVEN = ("--router", "given", "--candidates", "math,code", "--level", "token")
BY_HAND = (*GIVEN, "--router-option", f"weights={json.dumps(ROWS)}", "-n", str(len(ROWS)))
ROUTING = {
    "adapters": ["math@1", "code@1"],
    "weights": ROWS,
    "router": "given",
    "level": "token",
    "entropy": 0.31,
    "switches": 23,
}


def shown(routing: dict[str, Any]) -> list[str]:
    """The lines of the legend, blanks squeezed."""
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(legend(routing))
    return [" ".join(line.split()) for line in capture.get().splitlines()]


def coloured(output: str) -> list[tuple[str | None, str]]:
    """(colour as #rrggbb or None, printable character) of what a terminal gets."""
    colour: str | None = None
    found: list[tuple[str | None, str]] = []
    for code, text in re.findall(r"\x1b\[([\d;]*)m|([^\x1b]+|\x1b)", output):
        if text:
            found += [(colour, character) for character in printable(text)]
        elif parts := re.search(r"38;2;(\d+);(\d+);(\d+)", code):
            colour = "#{:02x}{:02x}{:02x}".format(*map(int, parts.groups()))
        else:
            colour = None
    return found


def pixels(path: Path) -> NDArray[np.uint8]:
    """[height, width, rgb]"""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return np.round(imread(path)[..., :3] * 255).astype(np.uint8)


def area(image: NDArray[np.uint8], colours: str, value: float) -> int:
    """How many pixels have the colour of a value between 0 and 1."""
    wanted = np.array(matplotlib.colormaps[colours](value)[:3])
    near = np.abs(image.astype(int) - np.round(wanted * 255)).max(axis=-1) <= 1
    return int(near.sum())


def test_a_terminal_gets_each_token_in_the_colour_of_its_strongest_adapter(live: Live) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    environment |= {"FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "adaptermix.cli.main", "generate", "hello", *BY_HAND]
    done = subprocess.run(
        [*command, "--explain", "--url", live.url],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    mixture = {"router": {"name": "given", "level": "token", "weights": ROWS}}
    mixture["router"]["candidates"] = ["math", "code"]
    frames = live.frames(parameters={"max_new_tokens": len(ROWS), "details": True}, mixture=mixture)
    order = (PALETTE[0], PALETTE[1], PALETTE[0], None)  # by hand, from ROWS
    expected = [
        (order[index % 4], character)
        for index, frame in enumerate(frames)
        for character in printable(frame["token"]["text"])
    ]
    assert coloured(done.stdout) == expected
    assert {colour for colour, _ in expected} == {PALETTE[0], PALETTE[1], None}
    assert {colour for colour, _ in coloured(done.stderr)} == {PALETTE[0], PALETTE[1], None}


@pytest.mark.parametrize(
    "text",
    ["a\tb", "a\rb", "a\x1b[1mb", "\n", "  ", "a\n\n", "a\x85b", "x" * 20_000, "a\x00\x08[b]"],
)
def test_a_painted_token_keeps_its_bytes(text: str) -> None:
    frame = {"token": {"text": text}, "routing": {"weights": [1.0, 0.0]}}
    plain = Console(file=io.StringIO(), color_system=None)
    assert verbatim(frame, plain) == text
    for system in ("standard", "256", "truecolor"):
        colours = Console(file=io.StringIO(), force_terminal=True, color_system=system)
        shown = verbatim(frame, colours)
        assert re.fullmatch(rf"\x1b\[[\d;]+m{re.escape(text)}\x1b\[0m", shown)


def test_a_pipe_gets_the_answer_byte_for_byte(live: Live) -> None:
    answer = live.answer(parameters={"max_new_tokens": 24, "temperature": 2.0, "seed": 5})
    command = [sys.executable, "-m", "adaptermix.cli.main", "generate", "hello", "-n", "24"]
    more = ["--temperature", "2", "--seed", "5", "--explain", "--url", live.url]
    done = subprocess.run([*command, *more], capture_output=True, check=True)
    assert done.stdout == answer["generated_text"].encode() + b"\n"


def test_the_legend_counts_tokens_and_averages_weights() -> None:
    lines = shown(ROUTING)
    assert lines[0] == "adapter strongest at mean weight"
    assert lines[1] == "■ math@1 50% 0.44"  # (1 + 0.25 + 0.5 + 0) / 4
    assert lines[2] == "■ code@1 25% 0.31"
    assert lines[3] == "■ the base alone 25%"
    assert lines[4] == "router given, level token: 24 tokens, 23 switches, mean entropy 0.31 nats"


def test_a_long_legend_shows_the_adapters_that_matter() -> None:
    weights = [0.01] * 30
    weights[20] = 0.9
    names = [f"a{index}@1" for index in range(30)]
    fixed = {"router": None, "level": "fixed", "entropy": 1.0, "switches": 1}
    lines = shown({"adapters": names, "weights": [weights], **fixed})
    assert lines[1] == "■ a20@1 100% 0.90"
    assert lines[13:] == [
        "18 others 0%",
        "fixed weights: 1 token, 1 switch, mean entropy 1.00 nats",
    ]


def test_styles_differ_until_all_are_used() -> None:
    assert style_of(None) == ""
    assert len({style_of(adapter) for adapter in range(21)}) == 21
    assert style_of(7) == f"underline {PALETTE[0]}"


@pytest.mark.parametrize(
    ("weights", "style"),
    [
        ([0.6, 0.4], f"bold {PALETTE[0]}"),
        ([0.1, -0.6, 0.2], f"bold {PALETTE[1]}"),
        ([0.5, 0.5], PALETTE[0]),
        ([0.3, 0.4, 0.3], PALETTE[1]),
        ([0.0, 0.0], ""),
    ],
)
def test_more_than_half_of_all_weight_is_bold(weights: list[float], style: str) -> None:
    text = painted({"token": {"text": "[x]"}, "routing": {"weights": weights}})
    assert (text.plain, text.style) == ("[x]", style)


def test_a_token_without_weights_is_plain() -> None:
    assert painted({"token": {"text": "x"}}).style == ""


@pytest.mark.parametrize(
    ("routing", "said"),
    [
        (None, "base model answered alone"),
        ({**ROUTING, "weights": []}, "the answer has no tokens"),
        ({**ROUTING, "level": "layer", "weights": []}, "given has others in each layer"),
        (ROUTING, None),
    ],
)
def test_an_answer_without_weights_says_why(routing: Any, said: str | None) -> None:
    why = silence(routing)
    assert why is None if said is None else said in str(why)


FIXED = ("--adapter", "math=0.7", "--adapter", "code=-0.3")
SIMILARITY = ("--router", "similarity", "--candidates", "math,code,wide")


@pytest.mark.parametrize(
    ("mixture", "said"),
    [
        (FIXED, r"fixed weights: 6 tokens, 0 switches, mean entropy 0\.61 nats"),
        (SIMILARITY, r"router similarity, level request: \d tokens?, 0 switches"),
        ((*SIMILARITY, "--level", "token"), r"router similarity, level token: \d tokens?, \d"),
    ],
    ids=["fixed", "request", "token"],
)
def test_every_kind_of_mixture_is_explained_and_drawn(
    live: Live, tmp_path: Path, mixture: Sequence[str], said: str
) -> None:
    picture = tmp_path / "new" / "weights.png"
    options = ("-n", "6", "--explain", "--heatmap", str(picture), "--url", live.url)
    result = run("generate", "hello", *mixture, *options)
    assert result.exit_code == 0, result.output
    assert re.search(said, result.output)
    assert str(picture) in result.output
    assert "math@1" in result.output
    height, width, _ = pixels(picture).shape
    assert width > height > 100


def test_the_base_alone_is_told_and_not_drawn(live: Live, tmp_path: Path) -> None:
    picture = tmp_path / "weights.png"
    said = ok("generate", "hello", "-n", "4", "--heatmap", str(picture), "--url", live.url)
    assert f"the base model answered alone; {picture} is not written" in said
    assert not picture.exists()
    assert "answered alone" in ok("generate", "hello", "-n", "4", "--explain", "--url", live.url)


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ("--url", live.url, "-n", "2", *FIXED)
    wrong = run("generate", "hello", *at, "--heatmap", "weights.jpg")
    assert wrong.exit_code == 2
    assert "FILE.png" in wrong.output
    (tmp_path / "folder.png").mkdir()
    taken = run("generate", "hello", *at, "--heatmap", str(tmp_path / "folder.png"))
    assert taken.exit_code == 1
    assert "directory" in taken.output
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as Python marks what is not there
    missing = run("generate", "hello", *at, "--heatmap", str(tmp_path / "weights.png"))
    assert missing.exit_code == 1
    assert "pip install 'adaptermix[bench]'" in missing.output
    assert missing.stdout == ""
    assert not (tmp_path / "weights.png").exists()


def test_the_picture_shows_the_weights(tmp_path: Path) -> None:
    picture = tmp_path / "weights.png"
    names = ["a@1", "b@1", "c@1"]
    weights = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.5]] * 4
    routing = {**ROUTING, "adapters": names, "weights": weights}
    write_heatmap(picture, routing, ["token"] * 16)
    image = pixels(picture)
    ones, zeros, halves = (area(image, "cividis", value) for value in (1.0, 0.0, 0.5))
    assert ones > 2 * halves > 5000  # 12, 4 and 32 cells, less the dots on the first two
    assert zeros > 2 * ones


def test_negative_weights_have_colours_of_their_own(tmp_path: Path) -> None:
    picture = tmp_path / "weights.png"
    write_heatmap(picture, {**ROUTING, "weights": [[1.0, -1.0]] * 16}, ["token"] * 16)
    image = pixels(picture)
    assert min(area(image, "PuOr", 0.0), area(image, "PuOr", 1.0)) > 5000


def test_long_answers_and_many_adapters_stay_readable(tmp_path: Path) -> None:
    short, long, wide = (tmp_path / f"{name}.png" for name in ("short", "long", "wide"))
    write_heatmap(short, {**ROUTING, "weights": [[0.5, 0.5]] * 48}, ["a"] * 48)
    write_heatmap(long, {**ROUTING, "weights": [[0.5, 0.5]] * 100}, ["a"] * 100)
    names = [f"adapter-{index}@1" for index in range(60)]
    many = {**ROUTING, "adapters": names, "weights": [[0.1] * 60] * 48}
    write_heatmap(wide, many, ["a"] * 48)
    heights = [pixels(path).shape[0] for path in (short, long, wide)]
    widths = [pixels(path).shape[1] for path in (short, long, wide)]
    assert heights[1] > 2 * heights[0]  # three panels
    assert widths[0] == widths[1]
    assert heights[2] < 24 * 60


def test_texts_that_matplotlib_would_trip_over_are_drawn(tmp_path: Path) -> None:
    texts = ["$x^$", " ", "\n", "\x00", "日本", "", "_" * 40, "\U0001f600"]
    write_heatmap(
        tmp_path / "weights.png",
        {**ROUTING, "adapters": ["$a$@1", "b_c@1"], "weights": [[0.0, 0.0]] * 8},
        texts,
    )
    assert pixels(tmp_path / "weights.png").size
