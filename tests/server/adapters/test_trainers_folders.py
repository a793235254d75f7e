"""Folders as trainers leave them: the adapter goes up, the rest stays, nothing is sent in vain."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from adaptermix.cli.main import app
from server.settings import SettingsError
from tests.adapters_store.folders import zipped
from tests.server.live import Live, serving, tiny_settings
from tests.support.tiny import make_lora_folder

TENSORS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
LEFTOVERS = (
    *("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth"),
    *("scaler.pt", "trainer_state.json", "tokenizer.json", "tokenizer_config.json", "vocab.bpe"),
    *("special_tokens_map.json", "tokenizer.model", "added_tokens.json", "chat_template.jinja"),
    *("adapter_model.bin", "README.md", ".DS_Store", ".gitattributes", "events.out.tfevents.1.x"),
    *("latest", "zero_to_fp32.py", "trainer_log.jsonl", "loss.png", "pytorch_model.bin"),
    *("model.safetensors", "train.sh", "all_results.json", "wandb-summary.json", "nohup.out"),
)
DEEPER = (
    *("checkpoint-10/adapter_model.safetensors", "checkpoint-10/adapter_config.json"),
    *("checkpoint-10/optimizer.pt", "checkpoint-20/adapter_config.json", "runs/Nov29/events.out"),
    *(".git/config", ".git/objects/pack/x.pack", "global_step10/mp_rank_00_model_states.pt"),
    *("__MACOSX/._adapter_config.json", ".ipynb_checkpoints/x.ipynb", "wandb/run-1/x.wandb"),
    *(".cache/huggingface/download/x.metadata", "logs/x.log"),
)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def left(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A sound adapter among everything that trainers write."""
    folder = tmp_path / "out"
    shutil.copytree(folders["math"], folder)
    for name in (*LEFTOVERS, *DEEPER):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\x80\x04 not for you")
    return folder


@pytest.fixture(scope="module")
def sent(bare: Live) -> Iterator[list[bytes]]:
    """What every upload to the server has sent since."""
    bodies: list[bytes] = []
    before = httpx.Client.send

    def send(client: httpx.Client, request: httpx.Request, **more: Any) -> httpx.Response:
        if request.method == "POST" and "/admin/adapters" in request.url.path:
            bodies.append(request.read())
        return before(client, request, **more)

    patch = pytest.MonkeyPatch()
    patch.setattr(httpx.Client, "send", send)
    yield bodies
    patch.undo()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["adapters", *arguments])


def test_the_command_sends_the_adapter_and_names_the_rest(
    bare: Live, left: Path, sent: list[bytes]
) -> None:
    said = run("publish", str(left), "--name", "left", "--url", bare.url)
    assert said.exit_code == 0, said.output
    assert "left out, as no part of the adapter" in said.output
    for name in (*LEFTOVERS, *(name.partition("/")[0] + "/" for name in DEEPER)):
        assert name in said.output
    assert b"not for you" not in sent[-1]
    (record,) = bare.client.get("/admin/adapters/left").json()["adapters"]
    assert record["num_texts"] == 4


@pytest.mark.parametrize("name", [*LEFTOVERS, *DEEPER])
def test_each_by_itself(bare: Live, folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    shutil.copytree(folders["math"], folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    said = run("check", str(folder), "--url", bare.url)
    assert said.exit_code == 0, said.output
    assert (name if "/" not in name else name.partition("/")[0] + "/") in said.output


def test_the_server_says_which_files_to_leave_out(bare: Live, left: Path) -> None:
    names = [path.relative_to(left).as_posix() for path in left.rglob("*") if path.is_file()]
    kept = {name: (left / name).read_bytes() for name in names if not name.startswith("checkpoint")}
    answer = bare.client.post(
        "/admin/adapters",
        data={"name": "x"},
        files=[("files", ("x.zip", zipped(kept)))],
    )
    assert answer.status_code == 422
    told = answer.json()["error"]
    assert "adapter_model.bin, global_step10/, optimizer.pt" in told
    assert "leave" in told
    assert ".git/" in told
    nested = bare.client.post(
        "/admin/adapters",
        data={"name": "x"},
        files=[("files", ("x.zip", zipped({n: (left / n).read_bytes() for n in names})))],
    )
    assert "leave out checkpoint-10/, checkpoint-20/" in nested.json()["error"]


def test_an_operator_s_folder_is_published_without_the_rest(left: Path, tmp_path: Path) -> None:
    with serving(tiny_settings(tmp_path / "cache", adapters=left.parent)) as live:
        (record,) = live.client.get("/admin/adapters").json()["adapters"]
        assert (record["name"], record["num_texts"]) == ("out", 4)


Spoil = Callable[[Path], object]


def config(**changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / CONFIG
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return spoil


def only(name: str | None) -> Spoil:
    """The adapter's files in a folder of this name, or its tensors in a pickle."""

    def spoil(folder: Path) -> None:
        (folder / (name or ".")).mkdir(exist_ok=True)
        target = f"{name}/{TENSORS}" if name else "adapter_model.bin"
        (folder / TENSORS).rename(folder / target)
        (folder / CONFIG).rename(folder / (f"{name}/{CONFIG}" if name else "config.yaml"))

    return spoil


def dangling(folder: Path) -> None:
    (folder / TENSORS).unlink()
    (folder / TENSORS).symlink_to(folder / "gone")


def piped(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


def folded(folder: Path) -> None:
    (folder / TENSORS).unlink()
    (folder / TENSORS).mkdir()


def without(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()

    return spoil


SPOILT: dict[str, tuple[Spoil, str]] = {
    "no tensors": (without(TENSORS), "is missing beside"),
    "no config": (without(CONFIG), "is missing beside"),
    "only pickles": (only(None), "save the adapter as safetensors"),
    "only checkpoints": (only("checkpoint-10"), "checkpoint-10/ below it"),
    "pointer for tensors": (lambda f: (f / TENSORS).write_bytes(POINTER), "git lfs pull"),
    "pointer for config": (lambda f: (f / CONFIG).write_bytes(POINTER), "git lfs pull"),
    "another type": (config(peft_type="IA3", feedforward_modules=["x"]), 'supported is "LORA"'),
    "cut tensors": (
        lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:-9]),
        "truncated",
    ),
    "DoRA": (config(use_dora=True), "DoRA"),
    "broken config": (lambda f: (f / CONFIG).write_text("{"), "not JSON"),
    "bad texts": (lambda f: (f / "texts.jsonl").write_text("x"), "texts, line 1"),
    "a link to nothing": (dangling, "link to nothing"),
    "a pipe": (piped, "no plain file"),
    "a folder for a file": (folded, "no plain file"),
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("command", ["publish", "check"])
def test_nothing_is_sent_in_vain(
    bare: Live,
    folders: dict[str, Path],
    tmp_path: Path,
    sent: list[bytes],
    kind: str,
    command: str,
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(folders["math"], folder)
    spoil, reason = SPOILT[kind]
    spoil(folder)
    before = len(sent)
    said = run(command, str(folder), "--url", bare.url)
    assert said.exit_code == 1
    assert said.output.startswith("error: ") or "\nerror: " in said.output
    assert reason in said.output
    assert len(sent) == before


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.zip", zipped({CONFIG: b"{}", "optimizer.pt": b"x"}), "optimizer.pt: is a pickle"),
        ("a.zip", zipped({CONFIG: b'{"peft_type": "LOHA"}', TENSORS: b""}), "LOHA"),
        ("a.tar", b"nope", "cannot be read"),
        ("a.zip", zipped({"README.md": b"x"}), "holds no adapter"),
        ("adapter_model.bin", b"x", "is a pickle"),
    ],
)
def test_nor_an_archive(
    bare: Live, tmp_path: Path, sent: list[bytes], name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    before = len(sent)
    said = run("publish", str(tmp_path / name), "--url", bare.url)
    assert said.exit_code == 1
    assert reason in said.output
    assert len(sent) == before


def test_links_of_a_cache_are_followed(
    bare: Live, folders: dict[str, Path], tmp_path: Path
) -> None:
    """As Hugging Face's cache keeps what it downloads."""
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    shutil.copytree(folders["math"], blobs)
    for index, file in enumerate(sorted(blobs.iterdir())):
        blob = file.rename(blobs / str(index))
        (snapshot / file.name).symlink_to(blob)
    said = run("publish", str(snapshot), "--name", "linked", "--url", bare.url)
    assert "published linked@1" in said.output


@pytest.mark.parametrize("peft_type", ["IA3", "ADALORA", "PROMPT_TUNING", "", None, 7, ["LORA"]])
def test_another_type_is_one_sentence_and_the_first(
    bare: Live, folders: dict[str, Path], tmp_path: Path, peft_type: object
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(folders["math"], folder)
    config(peft_type=peft_type, zebra=1, bias="all", use_dora=True)(folder)
    report = bare.upload("/admin/adapters/check", folder, "x").json()
    (problem,) = report["problems"]
    assert problem["where"] == "adapter_config.json: peft_type"
    assert problem["message"].startswith(f'is {json.dumps(peft_type)}: supported is "LORA"')
    assert "remove" not in problem["message"]
    assert report["unknown_keys"] == []


@pytest.mark.parametrize("changed", [0.0, 1.0])
def test_publish_and_check_say_the_same_of_embeddings(
    bare: Live, tmp_path: Path, changed: float
) -> None:
    folder = make_lora_folder(
        tmp_path / "out", targets=("q_proj", "lm_head"), save_embedding_layers=True
    )
    (folder / "README.md").unlink()  # PEFT's
    file = folder / TENSORS
    tensors = load_file(file)
    own = sorted(key for key in tensors if "lora_" not in key)
    assert own, "PEFT saves the embeddings"
    tensors[own[-1]][0, 0] += torch.tensor(changed)
    save_file(tensors, file)
    checked = bare.upload("/admin/adapters/check", folder, "copies").json()
    published = bare.publish(folder, "copies")
    by_command = run("check", str(folder), "--name", "copies", "--url", bare.url)
    if changed:
        assert [problem["where"] for problem in checked["problems"]] == [own[-1]]
        assert published.status_code == 422
        assert own[-1] in published.json()["error"]
        assert own[-1] in by_command.output
    else:
        assert published.json()["notes"] == checked["notes"]
        assert any(all(key in note for key in own) for note in checked["notes"])
        assert all(note in by_command.output for note in checked["notes"])
        again = run("publish", str(folder), "--name", "copies", "--url", bare.url)
        assert all(note in again.output for note in checked["notes"])


def test_a_folder_that_holds_none_ends_the_start_by_name(tmp_path: Path) -> None:
    (tmp_path / "adapters" / "x").mkdir(parents=True)
    (tmp_path / "adapters" / "x" / CONFIG).write_bytes(POINTER)
    with (
        pytest.raises((SettingsError, RuntimeError)),
        serving(tiny_settings(tmp_path / "cache", adapters=tmp_path / "adapters")),
    ):
        pass


def test_equal_bytes_of_two_names_are_one_candidate(bare: Live, folders: dict[str, Path]) -> None:
    for name in ("twin-b", "twin-a", "other"):
        source = folders["code" if name == "other" else "math"]
        assert bare.publish(source, name, tags=["shared"]).status_code == 201
    candidates = {"level": "request", "candidates": {"tag": "shared"}}
    for router in ({"name": "uniform"}, {"name": "random", "seed": 1}):
        answer = bare.client.post(
            "/generate",
            json={
                "inputs": "a",
                "parameters": {"max_new_tokens": 2, "details": True},
                "mixture": {"router": router | candidates},
            },
        )
        assert answer.status_code == 200, answer.text
        assert "twin-a@1" in answer.text
        assert "twin-b@1" not in answer.text
