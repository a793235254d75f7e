"""client.adapters and client.merged: what the command line does, from Python."""

from __future__ import annotations

import tarfile
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from adaptermix import InvalidInputError, Mixture, NotFoundError
from adaptermix.client.uploads import Watcher
from tests.adaptermix.client.asking import Asker


def test_a_folder_is_published_listed_named_and_deleted(
    ask: Asker, folders: dict[str, Path]
) -> None:
    name = f"mine-{ask.kind}"
    made = ask(lambda c: c.adapters.publish(folders["math"], name, tags=["task", name]))
    assert (made.name, made.version, made.tags) == (name, 1, [name, "task"])
    assert ask(lambda c: c.adapters.publish(str(folders["code"]), name)).version == 2
    assert [a.version for a in ask(lambda c: c.adapters.list(tag=name))] == [1]
    assert {"math", "code", name} <= {a.name for a in ask(lambda c: c.adapters.list())}
    aliased = ask(lambda c: c.adapters.set_alias(name, "stable", 1))
    assert (aliased.version, aliased.aliases) == (1, ["stable"])
    (meant,) = ask(lambda c: c.adapters.show(f"{name}@stable"))
    assert meant.digest == made.digest
    assert len(ask(lambda c: c.adapters.show(name))) == 2
    assert ask(lambda c: c.adapters.delete_alias(name, "stable")).deleted == [f"{name}@stable"]
    assert ask(lambda c: c.adapters.delete(f"{name}@2")).deleted == [f"{name}@2"]
    assert ask(lambda c: c.adapters.delete(name)).deleted == [f"{name}@1"]
    with pytest.raises(NotFoundError, match=name):
        ask(lambda c: c.adapters.show(name))


def test_a_folder_gives_its_name_and_so_does_an_archive(
    ask: Asker, folders: dict[str, Path], tmp_path: Path
) -> None:
    archive = tmp_path / "packed-1.2.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file in sorted(folders["code"].iterdir()):
            tar.add(file, file.name)
    assert ask(lambda c: c.adapters.check(folders["math"])).loads
    made = ask(lambda c: c.adapters.publish(archive))
    assert made.name == "packed-1.2"
    (code,) = ask(lambda c: c.adapters.show("code"))
    assert made.digest == code.digest


def test_files_of_memory(ask: Asker, folders: dict[str, Path]) -> None:
    files: dict[str, bytes | Path] = {
        "adapter_config.json": (folders["code"] / "adapter_config.json").read_bytes(),
        "adapter_model.safetensors": folders["code"] / "adapter_model.safetensors",
    }
    made = ask(lambda c: c.adapters.publish(files, "memory"))
    (code,) = ask(lambda c: c.adapters.show("code"))
    assert made.digest == code.digest
    with pytest.raises(InvalidInputError, match="name"):
        ask(lambda c: c.adapters.publish(files))


def test_texts(ask: Asker, folders: dict[str, Path], tmp_path: Path) -> None:
    ask(lambda c: c.adapters.publish(folders["math"], "texted", texts=["one", "two"]))
    assert ask(lambda c: c.adapters.texts("texted")) == ["one", "two"]
    file = tmp_path / "texts.jsonl"
    file.write_text('"three"\n')
    assert ask(lambda c: c.adapters.set_texts("texted", file)).num_texts == 1
    assert ask(lambda c: c.adapters.texts("texted")) == ["three"]
    assert ask(lambda c: c.adapters.set_texts("texted", [])).num_texts == 0
    with pytest.raises(InvalidInputError, match="nothing was sent: texts"):
        ask(lambda c: c.adapters.set_texts("texted", [""]))


def test_load_pin_and_unload(ask: Asker, folders: dict[str, Path]) -> None:
    name = f"moved-{ask.kind}"
    ask(lambda c: c.adapters.publish(folders["math"], name))
    assert ask(lambda c: c.adapters.load(name)).level == "device"
    assert ask(lambda c: c.adapters.pin(name)).pinned
    assert not ask(lambda c: c.adapters.pin(name, pinned=False)).pinned
    assert ask(lambda c: c.adapters.unload(name)).name == f"{name}@1"


def test_merging(ask: Asker) -> None:
    assert ask(lambda c: c.merged.get()).mode == "unmerged"
    merged = ask(lambda c: c.merged.set(Mixture(math=0.5)))
    assert (merged.mode, len(merged.adapters), merged.weights) == ("merged", 1, [0.5])
    assert ask(lambda c: c.merged.get()).digest == merged.digest
    assert ask(lambda c: c.merged.clear()).mode == "unmerged"


class Recording(Watcher):
    """What an upload says."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.files: dict[str, int] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def reading(self, name: str, file: BinaryIO, size: int) -> BinaryIO:
        self.files[name] = size
        return file


def test_a_watcher_sees_what_is_sent_and_what_is_not(ask: Asker, folders: dict[str, Path]) -> None:
    watcher = Recording()
    ask(lambda c: c.adapters.check(folders["math"], texts=["one"], watcher=watcher))
    assert all("left out" in note for note in watcher.notes)
    weights = folders["math"] / "adapter_model.safetensors"
    assert watcher.files["adapter_model.safetensors"] == weights.stat().st_size
    assert "texts.jsonl" in watcher.files


@pytest.mark.parametrize("name", ["my adapter", "", "a/b", "\u00fc"])
def test_a_name_that_no_server_takes_is_not_sent(
    ask: Asker, folders: dict[str, Path], name: str
) -> None:
    with pytest.raises(InvalidInputError, match="nothing was sent"):
        ask(lambda c: c.adapters.publish(folders["math"], name))


def published(source: Path, client: Any) -> Any:
    return client.adapters.publish(source, "nothing")


def test_a_folder_that_holds_no_adapter_is_not_sent(ask: Asker, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    for source in (tmp_path, tmp_path / "notes.txt", tmp_path / "gone.tar"):
        with pytest.raises(InvalidInputError):
            ask(partial(published, source))
