"""`make demo`: one server, adapters of every kind, and every kind of mixture in one batch."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.server import server

ADAPTERS = Path(__file__).resolve().parent.parent / "examples" / "adapters"
COLOURS = ("blue", "green", "dark_orange", "magenta", "cyan", "yellow", "red", "white")
NEW_TOKENS = 40

MATH = "Question: Tom has 3 boxes with 12 pencils each and gives away 9. How many are left?"
CODE = "Question: Write a Python function that returns the sum of a list of numbers."
SCIENCE = "Question: Why does ice float on water, and how would you compute its density in Python?"
RECORD = "name : The Blue Heron | food : Italian | price range : cheap | area : riverside"
ROUTED = ("math", "code", "science", "reading")
GATED = "moa-math"  # with routers in its layers
KEPT = "restaurants"  # with its copies kept apart
DRAWS = {"mode": "ensemble", "members": 4, "seed": 0}

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Shown:
    """One request of the demonstration."""

    title: str
    prompt: str
    mixture: dict[str, Any]
    parameters: dict[str, Any] = field(default_factory=dict)
    ending: str = "\n\nAnswer:"  # of prompts, as the adapter has learnt them


def requests(names: Collection[str]) -> list[Shown]:
    """What is asked of the adapters that are there."""
    chosen = routed([name for name in ROUTED if name in names])
    if GATED in names:
        chosen.append(Shown("gates inside every layer (MoA)", MATH, _alone(GATED), {"gates": True}))
    if KEPT in names:
        title = "four draws of an adapter's copies, averaged (AdaMix)"
        chosen.append(Shown(title, RECORD, _alone(KEPT, copies=DRAWS), ending=" ||"))
    return chosen


def routed(names: Sequence[str]) -> list[Shown]:
    """A fixed mixture, two that a router chooses for the request, one that it renews."""
    fixed = {"adapters": [{"name": names[0], "weight": 0.7}, {"name": names[1], "weight": 0.3}]}
    router = {
        "name": "similarity",
        "candidates": list(names),
        "scoring": "softmax",
        "temperature": 0.1,
    }
    for_request = {"router": {**router, "level": "request"}}
    for_tokens = {"router": {**router, "level": "token", "every": 2}}
    return [
        Shown("fixed weights", MATH, fixed),
        Shown("weights from the prompt", MATH, for_request),
        Shown("weights from the prompt", CODE, for_request),
        Shown("weights renewed every second token", SCIENCE, for_tokens),
    ]


def _alone(name: str, **options: Any) -> dict[str, Any]:
    return {"adapters": [{"name": name, **options}]}


async def generate(client: httpx.AsyncClient, shown: Shown) -> dict[str, Any]:
    """The server's answer to one request."""
    body = {
        "inputs": f"{shown.prompt}{shown.ending}",
        "parameters": {
            "max_new_tokens": NEW_TOKENS,
            "min_new_tokens": NEW_TOKENS // 2,  # enough of them to see the weights move
            "temperature": 0,
            "details": True,
            **shown.parameters,
        },
        "mixture": shown.mixture,
    }
    response = await client.post("/generate", json=body)
    if response.status_code != httpx.codes.OK:
        raise BenchmarkError(f"the server answered {response.status_code}: {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


async def generate_all(url: str, chosen: Sequence[Shown]) -> list[dict[str, Any]]:
    """All answers, asked for at the same time: they share the server's batch."""
    # A slow machine may take what it takes; a server that dies breaks the connection.
    async with httpx.AsyncClient(base_url=url, timeout=None, trust_env=False) as client:
        return await asyncio.gather(*(generate(client, shown) for shown in chosen))


def weights_table(routing: Mapping[str, Any], rows: int = 8) -> Table:
    """Weights by adapter at up to `rows` tokens of the answer, evenly spaced; equal ones once."""
    weights: list[list[float]] = routing["weights"]
    chosen = range(0, len(weights), max(1, len(weights) // rows))
    if weights and all(row == weights[0] for row in weights):
        chosen = range(1)
    table = Table("token", box=None, pad_edge=False)
    for name in routing["adapters"]:
        table.add_column(name, justify="right")
    table.add_column("")
    for index in chosen:
        row = weights[index]
        label = "all" if len(chosen) == 1 else str(index)
        table.add_row(label, *(f"{weight:.2f}" for weight in row), bar(row))
    return table


def bar(weights: Sequence[float], width: int = 40) -> Text:
    """Weights as lengths of colour, the size of each its share of the whole."""
    whole = sum(abs(weight) for weight in weights) or 1.0
    text = Text()
    for number, weight in enumerate(weights):
        length = round(width * abs(weight) / whole)
        text.append("█" * length, style=COLOURS[number % len(COLOURS)])
    return text


def show(console: Console, shown: Shown, answer: Mapping[str, Any]) -> None:
    """Print one request with its answer and weights."""
    console.rule(f"[bold]{shown.title}", align="left")
    console.print(shown.prompt, style="bold", markup=False)
    console.print(answer["generated_text"].strip(), markup=False)
    details = answer["details"]
    console.print(weights_table(details["routing"]))
    for gates in details.get("gates") or ():
        console.print(gates_table(gates))
    doubts = [token["uncertainty"] for token in details["tokens"] if token.get("uncertainty")]
    if doubts:
        console.print(doubt_line(doubts))
    console.print()


def gates_table(gates: Mapping[str, Any]) -> Table:
    """How far open the gates of an adapter are, in the mean of tokens, at layers low to high."""
    table = Table("layer", box=None, pad_edge=False)
    for label in gates["experts"]:
        table.add_column(label, justify="right")
    means: list[list[float]] = gates["mean"]
    for layer in sorted({0, len(means) // 2, len(means) - 1}):
        table.add_row(str(layer), *(f"{mean:.2f}" for mean in means[layer]))
    return table


def doubt_line(doubts: Sequence[Mapping[str, float]]) -> str:
    """What the draws disagree about, beside what they all leave open."""
    entropy, mutual = (
        sum(doubt[name] for doubt in doubts) / len(doubts)
        for name in ("entropy", "mutual_information")
    )
    return f"a token: entropy {entropy:.2f} nats, of which the draws disagree about {mutual:.3f}"


@app.command()
def demo(
    model: Annotated[str, typer.Option(help="As for `adaptermix serve`.")] = "default",
    adapters: Annotated[Path, typer.Option(help="A folder of adapter folders.")] = ADAPTERS,
) -> None:
    """Serve a model with its adapters, send all requests at once, print the answers, stop."""
    console = Console()
    names = [name for name in (*ROUTED, GATED, KEPT) if (adapters / name).is_dir()]
    if len([name for name in names if name in ROUTED]) < 2:
        console.print(f"[red]{adapters} has none of the example adapters[/red]")
        raise typer.Exit(1)
    chosen = requests(names)
    with tempfile.TemporaryDirectory(prefix="adaptermix-demo-") as temporary:
        folder = Path(temporary)
        options = ["--model", model, "--adapters", str(adapters), "--store", str(folder / "store")]
        console.print(f"starting a server with the adapters {', '.join(names)}")
        try:
            with server(options, folder / "server.log") as url:
                answers = asyncio.run(generate_all(url, chosen))
        except (BenchmarkError, httpx.HTTPError) as error:
            console.print(error, style="red", markup=False)
            raise typer.Exit(1) from error
    for shown, answer in zip(chosen, answers, strict=True):
        show(console, shown, answer)


if __name__ == "__main__":
    app()
