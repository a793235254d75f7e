"""Every BlobStore keeps the same promises: a local directory, an object store, S3 itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obstore
import pytest
from obstore.store import MemoryStore, from_url
from safetensors.numpy import load_file, save_file

from adapters_store.blobs import BlobStore, open_blobs
from adapters_store.blobs.base import MANIFEST, TENSORS, TEXTS
from adapters_store.blobs.cache import BlobCache
from adapters_store.blobs.local import LocalBlobs
from adapters_store.blobs.remote import RemoteBlobs
from adapters_store.digest import adapter_digest
from adapters_store.errors import (
    AdapterNotFoundError,
    IntegrityError,
    InvalidReferenceError,
    StoreError,
)
from adapters_store.expert_kinds.lora import LoraExpertSpec
from adapters_store.manifest import manifest_from_json, manifest_to_json
from adapters_store.types import AdapterManifest
from tests.adapters_store.servers import make_bucket
from tests.support.waiting import HANG_SECONDS

UNKNOWN = "sha256:" + "0" * 64
Damage = Callable[[str], None]


def manifest(rank: int = 2) -> AdapterManifest:
    return AdapterManifest(
        "peft", (LoraExpertSpec("lm_head", rank, 0.5, 8, 8, "a", "b"),), base_model="tiny"
    )


def put(blobs: BlobStore, seed: int = 0, texts: bytes = b"") -> str:
    values = np.random.default_rng(seed).normal(size=(2, 8)).astype(np.float32)
    with blobs.staging() as folder:
        save_file({"a": values, "b": values.T.copy()}, folder / TENSORS)
        (folder / MANIFEST).write_bytes(manifest_to_json(manifest()))
        if texts:
            (folder / TEXTS).write_bytes(texts)
        digest = adapter_digest(manifest_to_json(manifest()), folder / TENSORS, texts)
        blobs.put(digest, folder)
    return digest


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[BlobStore, Damage]]:
    """A BlobStore, and a way to damage what it holds behind its back."""
    if request.param == "local":
        local = LocalBlobs(tmp_path / "blobs")
        yield local, lambda digest: damage_file(local, digest)
    elif request.param == "memory":
        memory = MemoryStore()
        yield (
            RemoteBlobs(memory, BlobCache(tmp_path / "cache", 1 << 20)),
            lambda digest: damage_object(memory, digest),
        )
    else:
        options = request.getfixturevalue("s3_options")
        url = f"s3://{make_bucket(options)}/some/prefix"
        yield (
            open_blobs(url, cache_dir=tmp_path / "cache", options=options),
            lambda digest: damage_object(from_url(url, **options), digest),
        )


def damage_file(blobs: LocalBlobs, digest: str) -> None:
    path = blobs.folder(digest) / TENSORS
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")


def damage_object(store: obstore.store.ObjectStore, digest: str) -> None:
    digits = digest.removeprefix("sha256:")
    obstore.put(store, f"sha256/{digits[:2]}/{digits}/{TENSORS}", b"damaged")


@pytest.fixture
def blobs(place: tuple[BlobStore, Damage]) -> BlobStore:
    return place[0]


def test_what_was_put_is_fetched(blobs: BlobStore) -> None:
    digest = put(blobs, texts=b'"one"\n')
    files = blobs.fetch(digest)
    assert files.manifest == manifest()
    assert set(load_file(files.tensors)) == {"a", "b"}
    assert files.texts is not None
    assert files.texts.read_bytes() == b'"one"\n'
    assert files.config is None
    assert blobs.contains(digest)


def test_an_unknown_digest(blobs: BlobStore) -> None:
    assert not blobs.contains(UNKNOWN)
    assert blobs.delete(UNKNOWN) == 0
    with pytest.raises(AdapterNotFoundError):
        blobs.fetch(UNKNOWN)


@pytest.mark.parametrize("text", ["../../etc/passwd", "sha256:../x", "sha256:" + "A" * 64, ""])
def test_no_digest_at_all(blobs: BlobStore, text: str) -> None:
    with pytest.raises(InvalidReferenceError):
        blobs.fetch(text)


def test_a_delete_frees_what_the_listing_says(blobs: BlobStore) -> None:
    first, second = put(blobs, 1), put(blobs, 2)
    listed = {blob.digest: blob.size_bytes for blob in blobs.blobs()}
    assert listed.keys() == {first, second}
    assert blobs.delete(first) == listed[first] > 0
    assert [blob.digest for blob in blobs.blobs()] == [second]
    assert not blobs.contains(first)
    with pytest.raises(AdapterNotFoundError):
        blobs.fetch(first)


def test_putting_again_changes_nothing_but_the_age(blobs: BlobStore) -> None:
    digest = put(blobs)
    (before,) = blobs.blobs()
    assert put(blobs) == digest
    (after,) = blobs.blobs()
    assert after.modified_at >= before.modified_at
    assert after.size_bytes == before.size_bytes
    assert blobs.fetch(digest).manifest == manifest()


def test_a_damaged_blob_is_not_handed_out_and_heals(place: tuple[BlobStore, Damage]) -> None:
    blobs, damage = place
    digest = put(blobs)
    damage(digest)
    with pytest.raises(IntegrityError):
        blobs.fetch(digest)
    assert put(blobs) == digest
    assert blobs.fetch(digest).manifest == manifest()


def test_many_threads_put_and_fetch(blobs: BlobStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(lambda seed: put(blobs, seed % 3), range(24)))
        assert len(digests) == 3
        fetched = pool.map(lambda digest: blobs.fetch(digest).tensors.read_bytes(), [*digests] * 8)
        assert len(set(fetched)) == 3


def test_a_sweep_leaves_live_uploads_alone(blobs: BlobStore) -> None:
    with blobs.staging() as folder:
        (folder / "x").write_bytes(b"12345")
        assert blobs.sweep() == 0
        assert (folder / "x").exists()
    assert not folder.exists()


def test_a_sweep_removes_what_the_dead_left(tmp_path: Path) -> None:
    left = tmp_path / "blobs" / "staging" / "dead"
    left.mkdir(parents=True)
    (left / "x").write_bytes(b"12345")
    assert LocalBlobs(tmp_path / "blobs").sweep() == 5
    assert not left.exists()


def test_half_an_upload_to_an_object_store_is_no_adapter(tmp_path: Path) -> None:
    memory = MemoryStore()
    blobs = RemoteBlobs(memory, BlobCache(tmp_path, 1 << 20))
    damage_object(memory, UNKNOWN)  # tensors, but no manifest
    assert not blobs.contains(UNKNOWN)
    with pytest.raises(AdapterNotFoundError):
        blobs.fetch(UNKNOWN)
    assert [blob.digest for blob in blobs.blobs()] == [UNKNOWN]
    assert blobs.delete(UNKNOWN) == len(b"damaged")


def test_the_cache_is_bounded_and_keeps_what_is_held(tmp_path: Path) -> None:
    blobs = RemoteBlobs(MemoryStore(), BlobCache(tmp_path, 0))
    digests = [put(blobs, seed) for seed in range(3)]
    cached = LocalBlobs(tmp_path)
    held = blobs.fetch(digests[0])
    for digest in digests[1:]:
        blobs.fetch(digest)
    assert held.tensors.exists()
    assert blobs.fetch(digests[0]) is held
    del held
    blobs.fetch(digests[2])
    assert digests[0] not in [blob.digest for blob in cached.blobs()]


def test_processes_may_share_a_cache(tmp_path: Path) -> None:
    """Two BlobCache objects know of each other by file locks only, as two processes do."""
    memory = MemoryStore()
    small, other = (RemoteBlobs(memory, BlobCache(tmp_path, 0)) for _ in range(2))
    first, second = put(small, 1), put(small, 2)
    held = other.fetch(first)
    small.fetch(second)
    assert held.tensors.exists()
    assert small.fetch(first).manifest == held.manifest
    del held
    small.fetch(second)
    assert first not in [blob.digest for blob in LocalBlobs(tmp_path).blobs()]
    assert other.fetch(first).tensors.exists()


def test_one_download_for_many_readers(tmp_path: Path) -> None:
    origin = LocalBlobs(tmp_path / "origin")
    digest = put(origin)
    cache = BlobCache(tmp_path / "cache", 1 << 20)
    downloads: list[Path] = []
    started = threading.Event()

    def download(folder: Path) -> None:
        downloads.append(folder)
        assert started.wait(HANG_SECONDS)
        for path in origin.folder(digest).iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(cache.fetch, digest, download) for _ in range(4)]
        started.set()
        assert len({reader.result().tensors for reader in readers}) == 1
    assert len(downloads) == 1


def test_a_damaged_cache_is_filled_again(tmp_path: Path) -> None:
    memory = MemoryStore()
    digest = put(RemoteBlobs(memory, BlobCache(tmp_path / "1", 1 << 20)))
    RemoteBlobs(memory, BlobCache(tmp_path / "2", 1 << 20)).fetch(digest)
    damage_file(LocalBlobs(tmp_path / "2"), digest)
    again = RemoteBlobs(memory, BlobCache(tmp_path / "2", 1 << 20)).fetch(digest)
    assert set(load_file(again.tensors)) == {"a", "b"}


def test_opening(tmp_path: Path) -> None:
    assert isinstance(open_blobs(tmp_path / "a"), LocalBlobs)
    assert isinstance(open_blobs(f"file://{tmp_path}/b"), LocalBlobs)
    assert isinstance(open_blobs("memory://", cache_dir=tmp_path / "c"), RemoteBlobs)
    with pytest.raises(StoreError, match="unknown scheme 'ftp'; use a directory or one of s3"):
        open_blobs("ftp://x")


def test_manifests_come_back_as_they_were() -> None:
    data = manifest_to_json(manifest())
    assert manifest_from_json(data) == manifest()
    assert manifest_to_json(manifest_from_json(data)) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "cannot be read"),
        (b"{}", "cannot be read"),
        (manifest_to_json(manifest()).replace(b'"schema":1', b'"schema":2'), "schema 2"),
        (manifest_to_json(manifest())[:-1] + b',"zebra":1}', "does not know"),
    ],
)
def test_manifests_that_are_not_ours(data: bytes, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        manifest_from_json(data)


def test_the_digest_covers_every_part_and_no_file_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abc")
    two.write_bytes(b"abc")
    assert adapter_digest(b"m", one, b"t") == adapter_digest(b"m", two, b"t")
    two.write_bytes(b"abct")
    different = {
        adapter_digest(b"m", one, b"t"),
        adapter_digest(b"m", two),
        adapter_digest(b"n", one, b"t"),
        adapter_digest(b"m", one),
        adapter_digest(b"ma", one, b"t"),
    }
    assert len(different) == 5
