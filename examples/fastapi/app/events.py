"""The consumer group that drops cached lists when events say that voices changed."""

import asyncio
import logging
import socket
from uuid import UUID

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from app.cache import list_key
from app.schemas import VoiceEvent

GROUP = "cache-service"
TYPES = ("voice.created", "voice.updated")
# Shorter than redis-py's own 5 s limit for an answer.
BLOCK_MILLISECONDS = 2000
BATCH = 100
RETRY_SECONDS = 1
REMEMBER_SECONDS = 24 * 60 * 60

logger = logging.getLogger("uvicorn.error")

Fields = dict[str, str]


class EventConsumer:
    def __init__(self, redis: Redis, prefix: str) -> None:
        self._redis = redis
        self._prefix = prefix
        self._streams = [prefix + event_type for event_type in TYPES]
        self._name = socket.gethostname()

    async def run(self) -> None:
        while True:
            try:
                await self._join()
                # First what an earlier run under this name was given and did not acknowledge.
                while await self._take("0"):
                    pass
                while True:
                    await self._take(">")
            except RedisError as error:
                logger.warning("events are not read: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def _join(self) -> None:
        for stream in self._streams:
            try:
                await self._redis.xgroup_create(stream, GROUP, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    async def _take(self, position: str) -> int:
        """Deals with the next entries after this position, and tells how many there were."""
        streams = dict.fromkeys(self._streams, position)
        reply = await self._redis.xreadgroup(
            GROUP, self._name, streams, count=BATCH, block=BLOCK_MILLISECONDS
        )
        entries = [(stream, *entry) for stream, of_stream in reply for entry in of_stream]
        for stream, entry_id, fields in entries:
            await self._deal_with(stream, entry_id, fields)
        return len(entries)

    async def _deal_with(self, stream: str, entry_id: str, fields: Fields | None) -> None:
        try:
            # Without fields: the stream was trimmed after the entry had been given out.
            event = VoiceEvent.model_validate_json((fields or {}).get("event", ""))
        except ValidationError as error:
            # Left unacknowledged it would come again at every start, and be no better.
            logger.error("entry %s of %s is no event: %s", entry_id, stream, error)
            await self._redis.xack(stream, GROUP, entry_id)
            return
        if await self._redis.exists(self._seen_key(event.event_id)):
            await self._redis.xack(stream, GROUP, entry_id)
            return
        await self._drop_list(event.payload.user_id, event.event_id, stream, entry_id)
        logger.info("%s of voice %s: cached list dropped", event.type, event.payload.voice_id)

    async def _drop_list(self, user_id: UUID, event_id: str, stream: str, entry_id: str) -> None:
        # All or nothing: an event that is remembered as seen must have had its effect.
        async with self._redis.pipeline(transaction=True) as transaction:
            transaction.delete(list_key(user_id))
            transaction.set(self._seen_key(event_id), 1, ex=REMEMBER_SECONDS)
            transaction.xack(stream, GROUP, entry_id)
            await transaction.execute()

    def _seen_key(self, event_id: str) -> str:
        return f"{self._prefix}seen:{event_id}"
