"""One pass of voice-sync's job as most would begin: one voice after the other, with nothing that guards it.

Settings and output are those of peer.py. An event goes out after its row's commit, and is recorded nowhere.
"""

import json
import os
import sys
from datetime import UTC, datetime
from uuid import UUID, uuid4

import httpx
from redis import Redis
from sqlalchemy import Enum, String, create_engine, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Voice(Base):
    __tablename__ = "voices"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[UUID]
    elevenlabs_voice_id: Mapped[str] = mapped_column(String(100))
    status: Mapped[str] = mapped_column(Enum("processing", "completed", "failed", name="voicestatus"))
    preview_url: Mapped[str | None] = mapped_column(String(1024))
    completed_at: Mapped[datetime | None]


def publish(redis: Redis, event_type: str, voice: Voice, now: datetime) -> None:
    payload = {"voice_id": str(voice.id), "user_id": str(voice.user_id)}
    event = {"type": event_type, "payload": payload, "timestamp": now.isoformat(), "source": "sequential"}
    fields = {"event": json.dumps({**event, "event_id": str(uuid4())}), "type": event_type}
    redis.xadd(f"events:{event_type}", fields, maxlen=10_000, approximate=True)


def main() -> int:
    url, redis_url = make_url(os.environ["DATABASE_URL"]), os.environ.get("REDIS_URL")
    driver = "sqlite" if url.get_backend_name() == "sqlite" else "postgresql+psycopg"
    redis = Redis.from_url(redis_url) if redis_url else None
    base_url = os.environ.get("ELEVENLABS_BASE_URL", "https://api.elevenlabs.io")
    counts, unanswered = {"completed": 0, "failed": 0, "requests": 0}, 0
    client = httpx.Client(base_url=base_url, headers={"xi-api-key": os.environ["ELEVENLABS_API_KEY"]}, timeout=30)
    with client, Session(create_engine(url.set(drivername=driver)), expire_on_commit=False) as session:
        for voice in session.scalars(select(Voice).where(Voice.status == "processing")).all():
            counts["requests"] += 1
            try:
                found = client.get(f"/v1/voices/{voice.elevenlabs_voice_id}").raise_for_status().json()
            except (httpx.HTTPError, ValueError) as error:
                print(f"{voice.elevenlabs_voice_id}: {error!r}", file=sys.stderr)
                unanswered += 1
                continue
            states = list(((found.get("fine_tuning") or {}).get("state") or {}).values())
            now = datetime.now(UTC).replace(tzinfo=None)
            if states and all(state == "failed" for state in states):
                voice.status, event_type = "failed", "voice.updated"
            elif "fine_tuned" in states or (found["category"] != "professional" and found.get("preview_url")):
                voice.status, event_type = "completed", "voice.created"
                voice.preview_url, voice.completed_at = found.get("preview_url"), now
            else:
                continue
            session.commit()
            counts[voice.status] += 1
            if redis:
                publish(redis, event_type, voice, now)
    print(json.dumps(counts))
    return 1 if unanswered else 0


if __name__ == "__main__":
    sys.exit(main())
