"""Sample texts of a published adapter: set, shown, and how their centroids stand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.adaptermix.cli.test_main import ok, run
from tests.server.live import Live, serving, tiny_settings
from tests.support.tiny import make_lora_folder

ASKED = {"max_new_tokens": 2, "ignore_eos_token": True, "details": True}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with an encoder, whose adapters this module publishes and changes."""
    with serving(tiny_settings(tmp_path_factory.mktemp("own"), encoder="default")) as server:
        centroids = server.container.services.routing.centroids
        assert centroids is not None
        server.run(centroids.refresh())  # the encoder starts after the server
        yield server


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PEFT folders without texts."""
    root = tmp_path_factory.mktemp("mute")
    return [make_lora_folder(root / str(seed), seed=seed) for seed in range(1, 16)]


def jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def put(server: Live, reference: str, *texts: str) -> Any:
    files = {"texts": ("texts.jsonl", jsonl(*texts))}
    return server.client.put(f"/admin/adapters/{reference}/texts", files=files)


def listed(server: Live, label: str) -> dict[str, Any]:
    found = server.client.get("/admin/adapters").json()["adapters"]
    (one,) = [a for a in found if f"{a['name']}@{a['version']}" == label]
    return dict(one)


def weights(server: Live, inputs: str, *names: str, **spec: Any) -> list[float]:
    router = {"name": "similarity", "candidates": list(names), **spec}
    reply = server.answer(inputs, parameters=ASKED, mixture={"router": router})
    return list(reply["details"]["routing"]["weights"][0])


def test_texts_that_come_later_make_an_adapter_routable(own: Live, mute: list[Path]) -> None:
    made = own.publish(mute[0], "late").json()
    assert (made["num_texts"], made["centroid"], made["encoder"]) == (0, "none", None)
    own.publish(mute[1], "other", texts=jsonl("other text")).json()
    router = {"router": {"name": "similarity", "candidates": ["late", "other"]}}
    refused = own.generate(mixture=router)
    assert refused.status_code == 422
    assert "late@1" in refused.json()["error"]
    reply = put(own, "late", "one text", "two")
    assert reply.status_code == 200
    later = reply.json()
    assert (later["num_texts"], later["centroid"], later["encoder"]) == (2, "ready", "tiny-random")
    assert later["digest"] == made["digest"]
    assert listed(own, "late@1") | {"residency": None} == later | {"residency": None}
    assert own.client.get("/admin/adapters/late/texts").json() == {
        "name": "late@1",
        "texts": ["one text", "two"],
    }
    assert sum(weights(own, "hello", "late", "other")) == pytest.approx(1)


def test_other_texts_are_routed_by_from_the_next_request_on(own: Live, mute: list[Path]) -> None:
    for folder, name in zip(mute[2:4], ("left", "right"), strict=True):
        own.publish(folder, name, texts=jsonl("0123 4567", "98 76 54"))
    text = "def f(x): return x"
    assert weights(own, text, "left", "right") == pytest.approx([0.5, 0.5])  # the same texts
    put(own, "left", text)
    first = weights(own, text, "left", "right")
    assert first[0] > 0.5
    assert weights(own, text, "left", "right", name="retrieval", k=1) == [1.0, 0.0]
    put(own, "right", text)
    put(own, "left", "0123 4567", "98 76 54")
    assert weights(own, text, "left", "right") == pytest.approx(first[::-1], abs=1e-6)
    assert weights(own, text, "left", "right", name="retrieval", k=1) == [0.0, 1.0]


def test_hidden_states_are_routed_by_the_texts_in_force_too(own: Live, mute: list[Path]) -> None:
    for folder, name in zip(mute[13:15], ("up", "down"), strict=True):
        own.publish(folder, name, texts=jsonl(f"{name} {name}"))
    spec = {"name": "hidden_mean", "level": "token", "temperature": 0.5}
    first = weights(own, "def f(x)", "up", "down", **spec)
    assert first[0] != pytest.approx(0.5, abs=1e-3)
    for name, text in (("up", "down down"), ("down", "up up")):
        assert put(own, name, text).status_code == 200
    swapped = weights(own, "def f(x)", "up", "down", **spec)
    assert swapped == pytest.approx(first[::-1], abs=1e-4)


def test_two_that_are_too_near_are_warned_of_by_name(own: Live, mute: list[Path]) -> None:
    own.publish(mute[4], "twin-a", texts=jsonl("0123 4567", "98 76 54"))
    made = own.publish(mute[5], "twin-b", texts=jsonl("0123 4567", "98 76 54")).json()
    (warning,) = made["warnings"]
    assert warning.startswith("twin-b@1 is hard to tell from ")
    assert "twin-a@1 (1.000)" in warning
    assert "0.931" in warning
    assert any("twin-b@1 (1.000)" in one for one in listed(own, "twin-a@1")["warnings"])
    # Versions of one name are no rivals: a newer one takes the place of the older.
    own.publish(mute[6], "twin-b", texts=jsonl("!!!! ????"))
    assert not any("twin-b@1" in one for one in listed(own, "twin-a@1")["warnings"])
    assert listed(own, "twin-b@1")["warnings"] == []
    for name in ("twin-a", "twin-b"):
        own.client.delete(f"/admin/adapters/{name}")


def test_one_digest_under_two_names_is_no_rival_of_itself(own: Live, mute: list[Path]) -> None:
    for name in ("same-a", "same-b"):
        made = own.publish(mute[7], name, texts=jsonl("~~~ ^^^ ~~~ {}{}{}")).json()
        assert not any("same-" in one.partition("from")[2] for one in made["warnings"])
        assert put(own, name, "~~~ ^^^ ~~~ {}{}{}").status_code == 200
    for name in ("same-a", "same-b"):
        own.client.delete(f"/admin/adapters/{name}")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'{"txt": "x"}', "texts, line 1"), (b'" "', "texts[0]: is empty"), (b"\xff", "UTF-8")],
)
def test_texts_that_cannot_be_are_refused(own: Live, content: bytes, said: str) -> None:
    files = {"texts": ("texts.jsonl", content)}
    response = own.client.put("/admin/adapters/late/texts", files=files)
    assert response.status_code == 422
    assert response.json()["error_type"] == "invalid_adapter"
    assert said in response.json()["error"]
    assert own.client.put("/admin/adapters/nobody/texts", files=files).status_code in (404, 422)
    assert put(own, "nobody", "x").status_code == 404
    missing = own.client.put("/admin/adapters/late/texts")
    assert missing.status_code == 422
    assert "texts" in missing.json()["error"]


def test_without_an_encoder_texts_are_kept_and_none_are_pending(
    bare: Live, mute: list[Path]
) -> None:
    bare.publish(mute[12], "quiet")
    reply = put(bare, "quiet", "a", "b").json()
    assert (reply["num_texts"], reply["centroid"], reply["encoder"]) == (2, "none", None)
    empty = bare.client.put("/admin/adapters/quiet/texts", files={"texts": ("t.jsonl", b"")})
    assert empty.json()["num_texts"] == 0


def test_the_command_sets_and_shows_texts(own: Live, mute: list[Path], tmp_path: Path) -> None:
    own.publish(mute[8], "spoken")
    file = tmp_path / "texts.jsonl"
    file.write_bytes(jsonl("[bold]one[/]", "two\nlines"))
    said = ok("adapters", "texts", "spoken", str(file), "--url", own.url)
    assert "set 2 texts of spoken@1, centroid ready" in said
    shown = ok("adapters", "texts", "spoken", "--url", own.url)
    assert [json.loads(line) for line in shown.splitlines()] == ["[bold]one[/]", "two\nlines"]
    assert "2, ready" in ok("adapters", "ls", "--url", own.url)
    published = ok("adapters", "publish", str(mute[9]), "--name", "echo", "--url", own.url)
    assert "warning" not in published
    said = ok("adapters", "texts", "echo", str(file), "--url", own.url)
    assert "warning: echo@1 is hard to tell from" in said
    assert run("adapters", "texts", "nobody", "--url", own.url).exit_code == 1


@pytest.mark.slow
def test_another_server_on_the_store_has_its_texts_and_centroids(
    own: Live, mute: list[Path]
) -> None:
    """As one that is started again has: it takes all from the store."""
    own.publish(mute[10], "kept")
    put(own, "kept", "later text")
    own.publish(mute[11], "beside", texts=jsonl("another text"))
    first = weights(own, "x", "kept", "beside")
    digest = listed(own, "kept@1")["digest"]
    with serving(own.container.settings) as server:
        assert listed(server, "kept@1")["num_texts"] == 1
        assert server.container.store.texts(digest) == ["later text"]
        assert weights(server, "x", "kept", "beside") == pytest.approx(first, abs=1e-6)
        assert listed(server, "kept@1")["centroid"] == "ready"
