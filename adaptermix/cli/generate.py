"""`adaptermix generate`: one prompt under one mixture, streamed to the terminal."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from adaptermix.cli.adapters import weighted
from adaptermix.cli.client import CommandError, KeyOption, UrlOption, connect
from adaptermix.cli.explain import legend, silence, verbatim
from adaptermix.cli.options import command_with
from adaptermix.cli.output import console, errors, write_text
from adaptermix.client import Client, generation
from adaptermix.system_errors import reason
from server.printable import as_markup

_ROWS = 12  # of the weights table


def register(program: typer.Typer) -> None:
    """Mount the command on the program."""
    program.command("generate")(command_with(Options, generate))


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    prompt: Annotated[str, typer.Argument(help="The prompt; - reads standard input.")]
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME=WEIGHT; may be repeated: a fixed mixture."),
    ] = None
    combination: Annotated[str | None, typer.Option(help="sum (default) or linear.")] = None
    router: Annotated[str | None, typer.Option(help="A router, such as similarity.")] = None
    candidates: Annotated[
        str | None, typer.Option(help="Adapters for the router: a,b,c or tag:TAG.")
    ] = None
    level: Annotated[str, typer.Option(help="Of the router: request, token or layer.")] = "request"
    every: Annotated[int | None, typer.Option(help="Tokens between two renewals.")] = None
    lag: Annotated[
        int | None, typer.Option(help="Tokens by which weights may be old, so that none waits.")
    ] = None
    context: Annotated[str | None, typer.Option(help="keep or recompute (level token).")] = None
    router_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for the router; may be repeated.")
    ] = None
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", "-n", min=1, help="Longest answer in tokens.")
    ] = None
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.")] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same text.")] = None
    stop: Annotated[list[str] | None, typer.Option(help="A stop string; may be repeated.")] = None
    timeout: Annotated[
        float | None, typer.Option(help="Seconds after which the server gives the request up.")
    ] = None
    chat: Annotated[bool, typer.Option("--chat", help="Use the chat template.")] = False
    show_weights: Annotated[
        bool, typer.Option("--show-weights", help="Print the weights at each token.")
    ] = False
    explain: Annotated[
        bool, typer.Option("--explain", help="Colour each token by its strongest adapter.")
    ] = False
    heatmap: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="Write the weights at each token as a picture."),
    ] = None
    gates: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Write the mean gates of experts in each layer as a picture."
        ),
    ] = None
    url: UrlOption = None
    key: KeyOption = None


@dataclass(slots=True)
class Streamed:
    """What came back: the text of each token, and the details of the last frame."""

    texts: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def generate(options: Options) -> None:
    """Generate text on a running server, under the base, a fixed mixture or a router."""
    body = body_of(options)
    with connect(options.url, options.key) as client:
        _check_picture("--heatmap", options.heatmap)
        _check_picture("--gates", options.gates)
        streamed = _stream(client, body, in_colour=options.explain)
        routing = streamed.details.get("routing")
        if options.show_weights and routing is not None:
            errors.print(weights_table(routing))
        if options.explain:
            errors.print(legend(routing), highlight=False)
        if options.heatmap is not None:
            _draw(options.heatmap, routing, streamed.texts)
        if options.gates is not None:
            _draw_gates(options.gates, streamed.details.get("gates"))


def body_of(options: Options) -> dict[str, Any]:
    """The request that the options mean. Raises typer.BadParameter."""
    if options.adapter and options.router:
        raise typer.BadParameter("give either --adapter or --router")
    parameters = {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop": options.stop or [],
        "apply_chat_template": options.chat,
        "details": True,
        "gates": True if options.gates is not None else None,
    }
    body: dict[str, Any] = {
        "inputs": _prompt(options.prompt),
        "parameters": _given(parameters),
    }
    if options.timeout is not None:
        body["timeout"] = options.timeout
    if options.adapter:
        items = [weighted(text) for text in options.adapter]
        body["mixture"] = {"adapters": items} | _given({"combination": options.combination})
    elif options.router:
        body["mixture"] = {"router": _router(options.router, options)}
    return body


def _prompt(argument: str) -> str:
    if argument != "-":
        return argument
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"the prompt is not UTF-8: {error}") from error
    except OSError as error:
        raise typer.BadParameter(f"standard input cannot be read: {reason(error)}") from error


def weights_table(routing: Mapping[str, Any]) -> Table:
    """Weights at evenly spaced tokens, the first and the last among them."""
    weights = routing["weights"]
    table = Table("token", *map(as_markup, routing["adapters"]))
    step = max(1, -(-len(weights) // _ROWS))
    for index in sorted({*range(0, len(weights), step), *range(len(weights))[-1:]}):
        table.add_row(str(index), *(f"{weight:.3f}" for weight in weights[index]))
    return table


def _router(name: str, options: Options) -> dict[str, Any]:
    candidates = options.candidates
    if candidates is None:
        raise typer.BadParameter("--router needs --candidates a,b,c or --candidates tag:TAG")
    tag = candidates.removeprefix("tag:")
    spec: dict[str, Any] = {
        "name": name,
        "level": options.level,
        "candidates": candidates.split(",") if tag == candidates else {"tag": tag},
    }
    spec |= _given(
        {
            "every": options.every,
            "lag": options.lag,
            "context": options.context,
            "combination": options.combination,
        }
    )
    for text in options.router_option or []:
        key, separator, value = text.partition("=")
        if not separator:
            raise typer.BadParameter(f"--router-option {text!r}: use KEY=VALUE")
        spec[key] = _json_or_text(text, value)
    return spec


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _stream(client: Client, body: Mapping[str, Any], *, in_colour: bool) -> Streamed:
    """Print tokens as they come."""
    streamed = Streamed()
    for frame in client.open(generation.stream_body(body).raw()):
        write_text(verbatim(frame, console) if in_colour else frame["token"]["text"])
        streamed.texts.append(frame["token"]["text"])
        streamed.details = frame.get("details") or streamed.details
    write_text("\n")
    return streamed


def _check_picture(option: str, path: Path | None) -> None:
    """Before the work is done: can the picture be drawn?"""
    if path is None:
        return
    if path.suffix.lower() != ".png":
        raise typer.BadParameter(f"{option} {str(path)!r}: it is a PNG, use FILE.png")
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError(
            f"{option} draws with matplotlib, which is missing: run "
            "`pip install 'adaptermix[bench]'`"
        )


def _draw(path: Path, routing: Mapping[str, Any] | None, texts: list[str]) -> None:
    from adaptermix.cli.heatmap import write_heatmap

    why = silence(routing)
    if routing is None or why is not None:
        errors.print(as_markup(f"{why}; {path} is not written"), soft_wrap=True, highlight=False)
        return
    with _written("--heatmap", path):
        # An end-of-text token closes the stream; it has no row of weights.
        write_heatmap(path, routing, texts[: len(routing["weights"])])


def _draw_gates(path: Path, gates: Sequence[Mapping[str, Any]] | None) -> None:
    from adaptermix.cli.heatmap import write_gates

    if not gates:
        why = "no adapter that acted has routers inside its layers"
        errors.print(as_markup(f"{why}; {path} is not written"), soft_wrap=True, highlight=False)
        return
    with _written("--gates", path):
        write_gates(path, gates)


@contextmanager
def _written(option: str, path: Path) -> Iterator[None]:
    """Names the file that the body writes."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{option} {path}: {error.strerror or error}") from error
    errors.print(as_markup(str(path)), soft_wrap=True, highlight=False)


def _json_or_text(option: str, text: str) -> Any:
    """A value as JSON, or as the text that it is.

    Raises typer.BadParameter for what cannot be sent: numbers that JSON lacks or Python does not
    read, and nesting without end.
    """
    try:
        value = json.loads(text, parse_constant=_no_number)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except json.JSONDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        told = f"{option[:80]!r}{'...' if option[80:] else ''}"
        raise typer.BadParameter(f"--router-option {told}: {error}") from error
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number in JSON")
