"""Sample texts that are set later, and centroids that know their texts and single embeddings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Centroids that are there were made of the texts that their adapters' digests cover."""
    op.create_table(
        "texts",
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("texts_digest", sa.String(71), nullable=False),
        sa.Column("num_texts", sa.Integer, nullable=False),
        sa.Column("lines", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_texts"),
        sa.ForeignKeyConstraint(
            ["digest"], ["blobs.digest"], name="fk_texts_digest", ondelete="CASCADE"
        ),
    )
    op.add_column("centroids", sa.Column("texts", sa.String(71), nullable=False, server_default=""))
    op.add_column("centroids", sa.Column("examples", sa.LargeBinary))
    op.execute("UPDATE centroids SET texts = digest")


def downgrade() -> None:
    """Forget later texts, and the centroids: some may have been made of those."""
    op.execute("DELETE FROM centroids")
    op.drop_column("centroids", "examples")
    op.drop_column("centroids", "texts")
    op.drop_table("texts")
