"""The clients against a real server, and `bench serve` on a server that runs already."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adaptermix.bench.clients import GenerateClient, LoadClient, OpenAIClient, http_client
from adaptermix.bench.errors import BenchmarkError
from adaptermix.bench.load import Load, Round
from adaptermix.bench.rounds import Driven
from adaptermix.bench.serve import merging
from adaptermix.bench.server import info, server
from adaptermix.bench.workload import Job, Population, Traffic, parse_lengths
from adaptermix.cli.main import app
from server.logging import configure
from tests.server.live import Live, serving, tiny_settings
from tests.support.tiny import make_lora_folder

NAMES = ("a", "b", "c", "d")
TWO = Load(clients=2)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with four adapters."""
    configure("error", "console")
    root = tmp_path_factory.mktemp("live")
    for seed, name in enumerate(NAMES):
        make_lora_folder(root / "adapters" / name, seed=seed)
    with serving(tiny_settings(root, adapters=root / "adapters")) as running:
        yield running


def jobs(case: str, count: int = 3) -> list[Job]:
    lengths = parse_lengths("uniform:20:40"), parse_lengths("fixed:5")
    population = Population(NAMES, mixtures=4, mixture_size=2)
    return Traffic(population, *lengths, len).jobs(case, count, "test")


def measure(live: Live, case: str, *, openai: bool = False, load: Load = TWO) -> Round:
    async def run() -> Round:
        async with http_client(live.url) as http:
            client: LoadClient = GenerateClient(http)
            if openai:
                client = OpenAIClient(http, info(live.url)["model_id"])
            system = Driven(client.send, merging(http))
            return await system.round(case, load, jobs(case), lambda: None)

    return asyncio.run(run())


@pytest.mark.parametrize("case", ["base", "one", "many", "mixtures", "given", "merged"])
def test_every_case_is_answered(live: Live, case: str) -> None:
    one = measure(live, case)
    assert one.output_tokens == 15
    for sample in one.samples:
        assert 10 < sample.prompt_tokens <= 41
        assert 0 < sample.ttft <= sample.seconds
    assert live.client.get("/admin/merged").json()["mode"] == "unmerged"


@pytest.mark.parametrize("case", ["base", "one", "many"])
def test_the_openai_route_counts_the_same_tokens(live: Live, case: str) -> None:
    ours, theirs = measure(live, case), measure(live, case, openai=True)
    assert theirs.output_tokens == ours.output_tokens == 15
    prompts = [sorted(sample.prompt_tokens for sample in one.samples) for one in (ours, theirs)]
    assert prompts[0] == prompts[1]
    assert all(0 < sample.ttft <= sample.seconds for sample in theirs.samples)


def test_an_open_loop(live: Live) -> None:
    assert measure(live, "many", load=Load(rate=500)).output_tokens == 15


def test_an_adapter_that_is_not_there_is_an_error(live: Live) -> None:
    async def run() -> None:
        async with http_client(live.url) as http:
            population = Population(("nowhere",), mixture_size=1)
            lengths = parse_lengths("fixed:8"), parse_lengths("fixed:5")
            (job,) = Traffic(population, *lengths, len).jobs("one", 1, "test")
            await GenerateClient(http).send(job, 0.0)

    with pytest.raises(BenchmarkError, match="nowhere"):
        asyncio.run(run())


def bench(*arguments: str) -> Result:
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return CliRunner().invoke(app, ["bench", *arguments], env=environment)


@pytest.mark.parametrize("target", ["generate", "openai"])
def test_the_command_measures_a_server_that_runs(live: Live, tmp_path: Path, target: str) -> None:
    at = ["serve", "--model", "tiny-random", "--url", live.url, "--target", target]
    if target == "openai":
        at += ["--served", str(info(live.url)["model_id"])]
    adapters = [word for name in NAMES for word in ("--adapter", name)]
    work = ["--case", "base", "--case", "many", "--concurrency", "2", "--rounds", "2"]
    work += ["--prompt", "fixed:8", "--output", "fixed:4", "--slo-ttft", "60000", "--zipf", "1.0"]
    done = bench(*at, *adapters, *work, "--out", str(tmp_path / "serve"))
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "serve.json").read_text())
    assert [cell["case"] for cell in result["cells"]] == ["base", "many"]
    assert all(cell["goodput"]["share"] == 1 for cell in result["cells"])
    assert "goodput" in (tmp_path / "serve.md").read_text()
    assert (tmp_path / "serve.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--case", "bass"), "no such case: bass"),
        (("--target", "openai", "--case", "mixtures"), "case mixtures cannot be asked"),
        (("--url", "http://127.0.0.1:9", "--case", "one"), "--adapter"),
        (("--adapter", "a"), "give its url too"),
        (("--target", "openai", "--url", "http://127.0.0.1:9"), "needs served"),
        (("--output", "fixed:1"), "needs two tokens"),
        (("--rounds", "0"), "rounds is 0"),
        (("--rate", "0"), "rate is 0"),
        (("--mixture-size", "9"), "mixture_size is 9"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: tuple[str, ...], message: str) -> None:
    done = bench("serve", "--model", "tiny-random", *arguments)
    assert done.exit_code == 1
    assert message in done.output


def test_a_server_that_does_not_start_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with pytest.raises(BenchmarkError, match="nothing-here"), server(["--nothing-here"], log):
        pytest.fail("a server with an unknown option became ready")
