"""Content-addressed adapters: a local directory, or S3, GCS and Azure by URL."""

from adapters_store.blobs.base import AdapterFiles, BlobStore, StoredBlob
from adapters_store.blobs.opening import open_blobs

__all__ = ["AdapterFiles", "BlobStore", "StoredBlob", "open_blobs"]
