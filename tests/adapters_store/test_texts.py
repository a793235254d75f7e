"""Sample texts that are set after the publish, and centroids that belong to texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters_store.errors import AdapterNotFoundError, InvalidAdapterError
from adapters_store.limits import StoreLimits
from adapters_store.store import AdapterStore
from adapters_store.types import AdapterRecord, StoredCentroid
from tests.adapters_store.folders import BASE, adapter, tensors

UNKNOWN = "sha256:" + "0" * 64


@pytest.fixture
def store(tmp_path: Path, database_url: str | None) -> Iterator[AdapterStore]:
    """SQLite, and PostgreSQL where its leg runs."""
    opened = AdapterStore.open(tmp_path / "store", database_url=database_url)
    yield opened
    opened.close()


def publish(store: AdapterStore, name: str = "math", seed: int = 0, **more: Any) -> AdapterRecord:
    return store.publish(name, adapter(tensors(seed=seed)), base=BASE, **more)


def test_later_texts_are_in_force_and_the_digest_stays(store: AdapterStore) -> None:
    first = publish(store, texts=["one", "two"])
    assert first.texts_digest == first.digest  # it covers them
    later = store.set_texts("math", ["three"])
    assert (later.label, later.digest, later.num_texts) == ("math@1", first.digest, 1)
    assert later.texts_digest not in ("", first.digest)
    assert store.texts(first.digest) == ["three"]
    assert store.sample_texts(first.digest).digest == later.texts_digest
    assert store.resolve("math") == later == store.list()[0]
    again = store.set_texts("math@1", ["three"])
    assert again.texts_digest == later.texts_digest
    assert store.set_texts(first.digest, ["four"]).texts_digest != later.texts_digest
    assert store.blobs.fetch(first.digest).texts is not None  # the blob is as it was


def test_an_adapter_without_texts_gets_some_and_loses_them(store: AdapterStore) -> None:
    bare = publish(store)
    assert (bare.num_texts, bare.texts_digest) == (0, "")
    assert store.sample_texts(bare.digest).texts == ()
    assert store.set_texts("math", ["x²", "y\n"]).num_texts == 2
    assert store.texts(bare.digest) == ["x²", "y\n"]
    assert store.set_texts("math", []) == bare
    assert store.texts(bare.digest) == []
    published = publish(store, "other", texts=["one"])
    gone = store.set_texts("other", [])
    assert (gone.num_texts, gone.texts_digest) == (0, "")
    assert store.texts(published.digest) == []


def test_texts_hold_for_all_versions_of_a_digest_and_no_other(store: AdapterStore) -> None:
    publish(store, texts=["one"])
    publish(store, seed=1, texts=["one"])
    publish(store, "copy", texts=["one"])
    store.set_texts("math@1", ["new"])
    counts = {record.label: store.texts(record.digest) for record in store.list()}
    assert counts == {"copy@1": ["new"], "math@1": ["new"], "math@2": ["one"]}


def test_publishing_texts_puts_them_in_force_again(store: AdapterStore) -> None:
    first = publish(store, texts=["one"])
    store.set_texts("math", ["later"])
    second = publish(store, texts=["one"])
    assert second.digest == first.digest
    assert store.texts(first.digest) == ["one"]
    bare = publish(store, "bare", seed=1)
    store.set_texts("bare", ["later"])
    assert publish(store, "bare", seed=1).num_texts == 1  # it brought none
    assert store.texts(bare.digest) == ["later"]


def test_texts_that_cannot_be_are_refused_and_change_nothing(tmp_path: Path) -> None:
    limits = StoreLimits(max_texts=2, max_text_bytes=8)
    store = AdapterStore.open(tmp_path / "store", limits=limits)
    record = publish(store, texts=["one"])
    for texts, said in ((["ok", " "], r"texts\[1\]: is empty"), (["x" * 9], "9 bytes")):
        with pytest.raises(InvalidAdapterError, match=said):
            store.set_texts("math", texts)
    with pytest.raises(InvalidAdapterError, match="are 3, at most 2"):
        store.set_texts("math", ["a", "b", "c"])
    with pytest.raises(AdapterNotFoundError, match="near names: math"):
        store.set_texts("maht", ["a"])
    assert store.resolve("math") == record
    store.close()


def test_centroids_belong_to_texts_and_encoder(store: AdapterStore) -> None:
    digest = publish(store).digest
    assert store.get_centroid(digest, "e1", "t1") is None
    store.put_centroid(digest, "e1", "t1", b"one", b"examples")
    store.put_centroid(digest, "e2", "t1", b"two")
    assert store.get_centroid(digest, "e1", "t1") == b"one"
    assert store.get_examples(digest, "e1", "t1") == b"examples"
    assert store.get_examples(digest, "e2", "t1") is None
    assert store.get_centroid(digest, "e1", "t2") is None
    assert store.get_examples(digest, "e1", "t2") is None
    store.put_centroid(digest, "e1", "t2", b"three")
    assert store.get_centroid(digest, "e1", "t1") is None, "other texts took its place"
    assert store.get_centroid(digest, "e1", "t2") == b"three"
    assert store.centroids("e1") == {digest: StoredCentroid("t2", b"three")}
    assert store.centroids("e3") == {}
    with pytest.raises(AdapterNotFoundError):
        store.put_centroid(UNKNOWN, "e1", "t1", b"")
