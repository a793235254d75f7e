"""Alembic runs this file: migrate on the connection, and in the transaction, that it was given."""

from alembic import context

from adapters_store.metadata.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
