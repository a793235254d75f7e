"""The bar that shows how far a long batch is: on standard error, and on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_FEWEST = 2  # what a bar could tell of one prompt is its end


@contextmanager
def progress_bar(prompts: int, *, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A bar while the body runs; the value is told the tokens of each answer that has come."""
    console = Console(stderr=True)
    if not wanted or prompts < _FEWEST or not console.is_terminal:
        yield lambda tokens: None
        return
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("{task.fields[tokens]} tokens"), TimeRemainingColumn()),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("prompts", total=prompts, tokens=0)
        written = 0

        def answered(tokens: int) -> None:
            nonlocal written
            written += tokens
            progress.update(task, advance=1, tokens=written)

        yield answered
