"""The store end to end, on SQLite and on PostgreSQL: the same promises on both."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from adapters_store.blobs import BlobStore, open_blobs
from adapters_store.errors import (
    AdapterInUseError,
    AdapterNotFoundError,
    InvalidAdapterError,
    InvalidReferenceError,
    KeyNotFoundError,
    StoreError,
)
from adapters_store.metadata import Database
from adapters_store.store import AdapterStore
from adapters_store.types import AdapterRecord, AdapterRef
from tests.adapters_store.folders import BASE, adapter, tensors

UNKNOWN = "sha256:" + "0" * 64


@pytest.fixture
def store(tmp_path: Path, database_url: str | None) -> Iterator[AdapterStore]:
    opened = AdapterStore.open(tmp_path / "store", database_url=database_url)
    yield opened
    opened.close()


def publish(store: AdapterStore, name: str = "math", seed: int = 0, **more: Any) -> AdapterRecord:
    return store.publish(name, adapter(tensors(seed=seed)), base=BASE, **more)


def test_a_round_trip(store: AdapterStore) -> None:
    files = adapter()
    before = time.time()
    record = store.publish("math", files, base=BASE, texts=["1 + 1", "x²"], tags=["b", "a", "b"])
    assert (record.name, record.version, record.label) == ("math", 1, "math@1")
    assert (record.tags, record.num_texts, record.aliases) == (("a", "b"), 2, ())
    assert before <= record.created_at <= time.time()
    assert record.manifest.rank_rows == 16
    held = store.blobs.fetch(record.digest)
    assert held.tensors.read_bytes() == files["adapter_model.safetensors"]
    assert held.config is not None
    assert held.config.read_bytes() == files["adapter_config.json"]
    assert held.manifest == record.manifest
    assert store.texts(record.digest) == ["1 + 1", "x²"]
    assert store.get(record.digest) == store.resolve("math") == record


def test_what_was_stored_is_there_after_a_restart(
    tmp_path: Path, store: AdapterStore, database_url: str | None
) -> None:
    record = publish(store)
    store.close()
    again = AdapterStore.open(tmp_path / "store", database_url=database_url)
    assert again.list() == [record]
    again.close()


def test_the_engine_reads_without_sql(tmp_path: Path, store: AdapterStore) -> None:
    record = publish(store)
    files = open_blobs(tmp_path / "store" / "blobs").fetch(record.digest)
    held = load_file(files.tensors)
    for expert in files.manifest.lora_experts:
        assert held[expert.tensor_a].shape == (expert.rank, expert.in_features)
        assert held[expert.tensor_b].shape == (expert.out_features, expert.rank)


def test_a_check_says_what_a_publish_would_store(store: AdapterStore) -> None:
    report = store.check("math", adapter(), base=BASE, texts=["one"])
    assert store.list() == []
    assert list(store.blobs.blobs()) == []
    record = store.publish("math", adapter(), base=BASE, texts=["one"])
    assert report.loads
    assert (report.digest, report.size_bytes) == (record.digest, record.size_bytes)
    assert report.manifest == record.manifest


def test_what_is_refused_leaves_no_trace(store: AdapterStore) -> None:
    with pytest.raises(InvalidAdapterError) as caught:
        store.publish("math", adapter(use_dora=True), base=BASE)
    assert caught.value.problems == store.check("math", adapter(use_dora=True), base=BASE).problems
    assert store.list() == []
    assert list(store.blobs.blobs()) == []


def test_the_same_content_again_is_a_new_version_of_the_same_digest(store: AdapterStore) -> None:
    first, second = publish(store), publish(store)
    other = publish(store, "copy")
    assert (first.version, second.version, other.version) == (1, 2, 1)
    assert first.digest == second.digest == other.digest
    assert len(list(store.blobs.blobs())) == 1
    assert publish(store, seed=1).digest != first.digest
    assert publish(store, texts=["one"]).digest != first.digest, "the digest covers published texts"


def test_references(store: AdapterStore) -> None:
    first, second = publish(store, seed=1), publish(store, seed=2)
    store.set_alias("math", "prod", 1)
    assert store.resolve("math") == second
    assert store.resolve("math@1").digest == first.digest
    assert store.resolve("math@prod").digest == first.digest
    assert store.resolve(first.digest).label == "math@1"
    assert store.resolve(AdapterRef(name="math", version=2)) == second


@pytest.mark.parametrize(
    ("reference", "near"),
    [
        ("maht", "near names: math"),
        ("math@7", "near names: math@prod, math@1"),
        ("math@prd", "near names: math@prod, math@1"),
        ("zebra", "does not exist$"),
        (UNKNOWN, "does not exist$"),
    ],
)
def test_unknown_references_get_near_names(store: AdapterStore, reference: str, near: str) -> None:
    publish(store)
    publish(store, "reading")
    store.set_alias("math", "prod", 1)
    with pytest.raises(AdapterNotFoundError, match=near):
        store.resolve(reference)


@pytest.mark.parametrize("text", ["", "a b", "math@", "@1", "sha256:xyz", "math@1@2", "../x"])
def test_no_references(store: AdapterStore, text: str) -> None:
    with pytest.raises(InvalidReferenceError):
        store.resolve(text)


def test_lists(store: AdapterStore) -> None:
    publish(store, "math", tags=["school"])
    publish(store, "code", tags=["work"])
    publish(store, "math", seed=1)
    assert [record.label for record in store.list()] == ["code@1", "math@1", "math@2"]
    assert [record.label for record in store.list(name="math")] == ["math@1", "math@2"]
    assert [record.label for record in store.list(tag="school")] == ["math@1"]
    assert store.list(name="code", tag="school") == []


def test_versions_are_never_given_twice(store: AdapterStore) -> None:
    publish(store)
    publish(store)
    store.delete("math", 2)
    assert publish(store).version == 3
    store.delete("math")
    assert store.list() == []
    assert publish(store).version == 4


def test_aliases_move_and_go(store: AdapterStore) -> None:
    publish(store, seed=1)
    publish(store, seed=2)
    assert store.set_alias("math", "prod", 1).aliases == ("prod",)
    assert store.set_alias("math", "prod", 2).version == 2
    assert store.set_alias("math", "beta", 2).aliases == ("beta", "prod")
    store.delete_alias("math", "prod")
    assert store.resolve("math@2").aliases == ("beta",)
    with pytest.raises(AdapterNotFoundError):
        store.delete_alias("math", "prod")
    with pytest.raises(AdapterNotFoundError, match="near names: math@beta"):
        store.set_alias("math", "prod", 9)
    with pytest.raises(StoreError, match="is a number"):
        store.set_alias("math", "7", 1)
    with pytest.raises(StoreError, match="alias"):
        store.set_alias("math", "a b", 1)


def test_a_moving_alias_is_always_there(store: AdapterStore) -> None:
    digests = {publish(store, seed=1).digest, publish(store, seed=2).digest}
    store.set_alias("math", "prod", 1)
    done = threading.Event()

    def read() -> set[str]:
        seen = set()
        while not done.is_set():
            seen.add(store.resolve("math@prod").digest)
        return seen

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        try:
            for move in range(60):
                store.set_alias("math", "prod", 1 + (move + 1) % 2)
        finally:
            done.set()
        seen = set().union(*(reader.result() for reader in readers))
    assert seen <= digests


def test_what_another_process_writes_is_seen_at_once(
    tmp_path: Path, store: AdapterStore, database_url: str | None
) -> None:
    """References are remembered, but only until something is written, by whomever."""
    other = AdapterStore.open(tmp_path / "store", database_url=database_url)
    first, second = publish(store, seed=1), publish(store, seed=2)
    other.set_alias("math", "prod", 1)

    def meant() -> list[str]:
        names = ["math@prod", "math", first.digest]
        found = store.resolve_all(names)
        assert found == store.resolve_all(names)
        return [record.digest for record in found]

    assert meant() == [first.digest, second.digest, first.digest]
    other.set_alias("math", "prod", 2)
    third = publish(other, seed=3)
    assert meant() == [second.digest, third.digest, first.digest]
    assert store.resolve(first.digest).num_texts == 0
    other.set_texts("math@1", ["a text"])
    assert store.resolve(first.digest).num_texts == 1
    other.delete("math", 3)
    assert meant() == [second.digest, second.digest, first.digest]
    other.delete("math")
    with pytest.raises(AdapterNotFoundError):
        store.resolve("math@prod")
    other.close()


def test_many_threads_publish_under_one_name(store: AdapterStore) -> None:
    with ThreadPoolExecutor(6) as pool:
        records = list(pool.map(lambda seed: publish(store, seed=seed % 3), range(12)))
    assert sorted(record.version for record in records) == list(range(1, 13))
    assert len({record.digest for record in records}) == 3


def test_deleting_what_is_in_use_or_named(store: AdapterStore) -> None:
    record = publish(store)
    publish(store, seed=1)
    with pytest.raises(AdapterInUseError, match="math@1 is pinned or in use"):
        store.delete("math", 1, in_use=lambda digest: digest == record.digest)
    store.set_alias("math", "prod", 1)
    with pytest.raises(AdapterInUseError, match="aliases prod point at"):
        store.delete("math", 1)
    assert len(store.list()) == 2, "a refused delete removes nothing"
    deleted = store.delete("math", 1, force=True, in_use=lambda _digest: True)
    assert [gone.label for gone in deleted] == ["math@1"]
    with pytest.raises(AdapterNotFoundError):
        store.resolve("math@prod")
    with pytest.raises(AdapterNotFoundError):
        store.delete("math", 1)


def test_a_collection_takes_what_nobody_names(store: AdapterStore) -> None:
    first, second = publish(store, seed=1), publish(store, seed=2)
    publish(store, "copy", seed=1)
    store.put_centroid(second.digest, "encoder", "texts", b"\0\0\x80?")
    store.set_texts(second.digest, ["later"])
    assert store.gc() == 0
    store.delete("math")
    assert store.gc(in_use=lambda digest: digest == second.digest) == 0
    assert store.gc() == second.size_bytes
    assert [blob.digest for blob in store.blobs.blobs()] == [first.digest]
    assert store.get_centroid(second.digest, "encoder", "texts") is None
    assert store.get("copy").digest == first.digest
    assert store.gc() == 0
    assert publish(store, seed=2).digest == second.digest


def test_a_collection_leaves_what_is_being_published(store: AdapterStore) -> None:
    freed: list[int] = []

    def progress(stage: str) -> None:
        if stage in ("unpacked", "validated", "staged", "stored"):
            freed.append(store.gc())

    record = publish(store, progress=progress)
    assert freed == [0, 0, 0, 0]
    assert store.blobs.fetch(record.digest).manifest == record.manifest


def test_a_blob_that_is_collected_under_a_publish_is_put_again(store: AdapterStore) -> None:
    """The version was deleted and collected just when the same content was published again."""
    first = publish(store)

    def progress(stage: str) -> None:
        if stage == "stored":
            store.delete("math")
            assert store.gc() == first.size_bytes

    second = publish(store, progress=progress)
    assert second.digest == first.digest
    assert store.blobs.fetch(second.digest).manifest == second.manifest


def test_what_a_dead_publish_left_is_collected(store: AdapterStore) -> None:
    class KilledError(Exception):
        """Stands for the end of the process after the blob was put."""

    def progress(stage: str) -> None:
        if stage == "recorded":
            raise KilledError

    with pytest.raises(KilledError):
        publish(store, progress=progress)
    assert store.list() == []
    (left,) = store.blobs.blobs()
    assert store.gc() == 0
    assert store.gc(grace_seconds=-60) == left.size_bytes
    assert list(store.blobs.blobs()) == []


def test_keys(store: AdapterStore) -> None:
    assert not store.has_keys()
    use, secret = store.create_key("notebook", "use")
    admin, other = store.create_key("ci", "admin")
    assert store.has_keys()
    assert store.verify_key(secret) == use
    assert store.verify_key(other) == admin
    assert store.list_keys() == [use, admin]
    assert secret not in repr(store.list_keys())
    assert store.revoke_key(use.id).revoked_at is not None
    assert store.verify_key(secret) is None
    assert store.has_keys()
    store.revoke_key(admin.id)
    assert not store.has_keys()
    with pytest.raises(KeyNotFoundError):
        store.revoke_key("nope")


@pytest.mark.parametrize("change", [str.upper, lambda s: s[:-1], lambda s: s + "x", lambda _: "\0"])
def test_a_secret_that_is_nearly_right(store: AdapterStore, change: Any) -> None:
    _, secret = store.create_key("a", "use")
    assert store.verify_key(change(secret)) is None
    assert store.verify_key(secret.replace(secret.split("_")[1], "0" * 16)) is None


@pytest.mark.parametrize(("label", "kind"), [("", "use"), ("x" * 300, "use"), ("x", "root")])
def test_keys_that_cannot_be(store: AdapterStore, label: str, kind: Any) -> None:
    with pytest.raises(StoreError, match="key"):
        store.create_key(label, kind)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://x/y", "unknown kind 'mysql'"),
        ("nonsense", "database URL"),
        ("sqlite://", "needs a file"),
        ("sqlite:////nowhere/at/all.db", "cannot be opened"),
    ],
)
def test_databases_that_cannot_be(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        AdapterStore.open(tmp_path, database_url=url)


def test_passwords_stay_out_of_errors() -> None:
    with pytest.raises(StoreError) as caught:
        Database("postgresql://tester:hunter2@127.0.0.1:1/x?connect_timeout=1")
    assert "hunter2" not in str(caught.value)


@pytest.mark.slow
def test_a_store_in_an_object_store(tmp_path: Path, s3_options: dict[str, Any]) -> None:
    from tests.adapters_store.servers import make_bucket

    url = f"s3://{make_bucket(s3_options)}"
    store = AdapterStore.open(tmp_path, blobs_url=url, blobs_options=s3_options)
    record = publish(store, texts=["one"])
    elsewhere: BlobStore = open_blobs(url, cache_dir=tmp_path / "other", options=s3_options)
    assert elsewhere.fetch(record.digest).manifest == record.manifest
    store.delete("math")
    assert store.gc() == record.size_bytes
    with pytest.raises(AdapterNotFoundError):
        open_blobs(url, cache_dir=tmp_path / "third", options=s3_options).fetch(record.digest)
    store.close()
