"""The store: names, versions, digests, validation, blobs and metadata of adapters."""
