"""The typed client of AdapterMix's HTTP API, for threads and for coroutines."""

from adaptermix.client.asynchronous import AsyncClient, AsyncStream
from adaptermix.client.sync import Client, Stream

__all__ = ["AsyncClient", "AsyncStream", "Client", "Stream"]
