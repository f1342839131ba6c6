"""The tables. Alembic compares them with the database's default schema."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import JSON, Enum, ForeignKey, String, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class VoiceStatus(StrEnum):
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"


class VoiceVisibility(StrEnum):
    PRIVATE = "private"
    PUBLIC = "public"


def native_enum(of: type[StrEnum]) -> Enum:
    # Left to itself, SQLAlchemy would store the members' names rather than their values.
    return Enum(of, name=of.__name__.lower(), values_callable=lambda members: [m.value for m in members])


def utc_now() -> datetime:
    """Now, as the columns without time zone hold it."""
    return datetime.now(UTC).replace(tzinfo=None)


class User(Base):
    __tablename__ = "users"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Voice(Base):
    __tablename__ = "voices"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    elevenlabs_voice_id: Mapped[str] = mapped_column(String(100), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    language: Mapped[str] = mapped_column(String(10), server_default="en")
    gender: Mapped[str] = mapped_column(String(20), server_default="neutral")
    category: Mapped[str] = mapped_column(String(20), server_default="cloned")
    visibility: Mapped[VoiceVisibility] = mapped_column(
        native_enum(VoiceVisibility), server_default=VoiceVisibility.PRIVATE.value
    )
    preview_url: Mapped[str | None] = mapped_column(String(1024))
    status: Mapped[VoiceStatus] = mapped_column(
        native_enum(VoiceStatus), server_default=VoiceStatus.PROCESSING.value, index=True
    )
    created_at: Mapped[datetime] = mapped_column(
        default=utc_now, server_default=text("(now() AT TIME ZONE 'UTC')")
    )
    completed_at: Mapped[datetime | None]
    meta_data: Mapped[dict[str, Any] | None] = mapped_column(JSON)
