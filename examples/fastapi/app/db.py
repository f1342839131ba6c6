"""What the application reads from and writes to its tables."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.models import User, Voice, VoiceStatus


async def add_voice(session: AsyncSession, user_id: UUID, name: str, provider_id: str) -> Voice:
    # A real application has signed the user up before; here whoever comes is one.
    await session.execute(insert(User).values(id=user_id).on_conflict_do_nothing())
    voice = Voice(user_id=user_id, name=name, elevenlabs_voice_id=provider_id, status=VoiceStatus.PROCESSING)
    session.add(voice)
    await session.commit()
    return voice


async def voices_of(session: AsyncSession, user_id: UUID) -> Sequence[Voice]:
    query = select(Voice).where(Voice.user_id == user_id).order_by(Voice.created_at, Voice.id)
    return (await session.scalars(query)).all()
