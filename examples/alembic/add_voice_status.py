"""Gives the table `voices` the columns that say whether a voice is finished.

For an application that has Alembic and a table from before these columns. Copy the file to your
`versions`, set `down_revision` to your last revision, and add the same to your model:

    preview_url: Mapped[str | None] = mapped_column(String(1024))
    status: Mapped[str] = mapped_column(String(20), server_default="processing", index=True)
    completed_at: Mapped[datetime | None]

No row is rewritten, and nobody waits for the table longer than two seconds: if it is in use for
longer, the upgrade fails, changes nothing, and can be repeated. Where a column or the index is there
already, it is left as it is.

Voices that exist are in processing afterwards, until voice-sync has asked about each. Those without a
preview fail `--fail-after` later, counted from the first pass.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "add_voice_status"
down_revision: str | None = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '2s'")
    for column in (
        sa.Column("preview_url", sa.String(1024)),
        sa.Column("status", sa.String(20), server_default="processing", nullable=False),
        sa.Column("completed_at", sa.DateTime()),
    ):
        op.add_column("voices", column, if_not_exists=True)
    # Without keeping anybody from writing, which a transaction would not allow.
    with op.get_context().autocommit_block():
        op.create_index(
            "ix_voices_status", "voices", ["status"], postgresql_concurrently=True, if_not_exists=True
        )


def downgrade() -> None:
    op.drop_index("ix_voices_status", "voices")
    for name in ("completed_at", "status", "preview_url"):
        op.drop_column("voices", name)
