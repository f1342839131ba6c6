"""Lists of voices, kept in Redis until an event says that they changed."""

from uuid import UUID

from redis.asyncio import Redis

# A list that was read just before a change and stored just after its event stays for this long.
LIFETIME_SECONDS = 300


def list_key(user_id: UUID) -> str:
    return f"tts:voices:{user_id}"


async def read_list(redis: Redis, user_id: UUID) -> str | bytes | None:
    return await redis.get(list_key(user_id))


async def store_list(redis: Redis, user_id: UUID, voices: bytes) -> None:
    await redis.set(list_key(user_id), voices, ex=LIFETIME_SECONDS)


async def drop_list(redis: Redis, user_id: UUID) -> None:
    await redis.delete(list_key(user_id))
