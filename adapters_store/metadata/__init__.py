"""Names, versions, aliases, texts, centroids and keys, in SQLite or PostgreSQL."""

from adapters_store.metadata.database import Database
from adapters_store.metadata.keys import ApiKeys
from adapters_store.metadata.texts import Texts
from adapters_store.metadata.versions import NewVersion, Versions

__all__ = ["ApiKeys", "Database", "NewVersion", "Texts", "Versions"]
