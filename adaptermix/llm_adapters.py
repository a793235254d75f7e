"""`llm.adapters`: the adapters of an LLM, by the server's own rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaptermix.errors import InvalidInputError
from adaptermix.local import LocalRuntime
from adapters_store.folders import select
from adapters_store.home import expanded
from adapters_store.upload import PublishRequest
from server.schemas.adapters import AdapterReply, DeletedReply


class LocalAdapters:
    """The store's adapters as the server's admin routes show and change them."""

    def __init__(self, runtime: LocalRuntime) -> None:
        self._runtime = runtime

    def publish(
        self,
        folder: str | Path,
        name: str | None = None,
        *,
        tags: Sequence[str] = (),
        texts: Sequence[str] = (),
    ) -> AdapterReply:
        """Store a PEFT folder, or one of our own format, as the next version of its name.

        name: the folder's when left out. texts: sample texts for routers, beside the folder's own.
        It can be used at once. Raises AdapterRefusedError with every problem.
        """
        return self._runtime.run(self._publish(expanded(Path(folder)), name, tags, texts))

    def list(self, tag: str | None = None) -> list[AdapterReply]:
        """All versions of all adapters, or of those that carry a tag."""
        return self._runtime.run(self._runtime.services.adapters.listing(tag=tag))

    def delete(self, reference: str, *, force: bool = False) -> DeletedReply:
        """Delete a version (`name@2`), or all of a bare name, if nothing uses it, or by force."""
        return self._runtime.run(self._runtime.services.adapters.delete(reference, force=force))

    async def _publish(
        self, folder: Path, name: str | None, tags: Sequence[str], texts: Sequence[str]
    ) -> AdapterReply:
        if not folder.is_dir():
            raise InvalidInputError(f"folder = {str(folder)!r} is not a directory")
        files = select(folder).files
        request = PublishRequest(name or folder.name, files, tuple(texts), tuple(tags))
        return await self._runtime.services.adapters.publish(request)
