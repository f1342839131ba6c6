"""What goes over the wire: answers to clients, and events."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, NaiveDatetime, TypeAdapter

from app.models import VoiceStatus


class VoiceOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str
    elevenlabs_voice_id: str
    status: VoiceStatus
    preview_url: str | None
    created_at: datetime
    completed_at: datetime | None


VoiceList = TypeAdapter(list[VoiceOut])


class EventPayload(BaseModel):
    model_config = ConfigDict(extra="forbid")

    voice_id: UUID
    user_id: UUID


class VoiceEvent(BaseModel):
    """An event in exactly the form that all publishers of the bus agreed on."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["voice.created", "voice.updated"]
    payload: EventPayload
    timestamp: NaiveDatetime
    source: str
    event_id: str
