"""Users and their voices."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | None = None

status = postgresql.ENUM("processing", "completed", "failed", name="voicestatus", create_type=False)
visibility = postgresql.ENUM("private", "public", name="voicevisibility", create_type=False)


def upgrade() -> None:
    status.create(op.get_bind())
    visibility.create(op.get_bind())
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
    )
    op.create_table(
        "voices",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("user_id", sa.Uuid(), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("elevenlabs_voice_id", sa.String(100), nullable=False, unique=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("language", sa.String(10), server_default="en", nullable=False),
        sa.Column("gender", sa.String(20), server_default="neutral", nullable=False),
        sa.Column("category", sa.String(20), server_default="cloned", nullable=False),
        sa.Column("visibility", visibility, server_default="private", nullable=False),
        sa.Column("preview_url", sa.String(1024)),
        sa.Column("status", status, server_default="processing", nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(),
            server_default=sa.text("(now() AT TIME ZONE 'UTC')"),
            nullable=False,
        ),
        sa.Column("completed_at", sa.DateTime()),
        sa.Column("meta_data", sa.JSON()),
    )
    op.create_index("ix_voices_user_id", "voices", ["user_id"])
    op.create_index("ix_voices_status", "voices", ["status"])


def downgrade() -> None:
    op.drop_table("voices")
    op.drop_table("users")
    visibility.drop(op.get_bind())
    status.drop(op.get_bind())
