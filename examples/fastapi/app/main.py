"""The application over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from elevenlabs.client import AsyncElevenLabs
from fastapi import Depends, FastAPI, Form, Header, HTTPException, Request, Response, UploadFile
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from app import cache, db
from app.events import EventConsumer
from app.models import Voice
from app.provider import ProviderUnavailable, clone
from app.schemas import VoiceList, VoiceOut
from app.settings import Settings


@dataclass(frozen=True)
class Services:
    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    redis: Redis
    provider: AsyncElevenLabs
    consumer: asyncio.Task[None]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings = Settings.from_environment()
    engine = create_async_engine(settings.database_url, pool_pre_ping=True)
    redis = Redis.from_url(settings.redis_url, decode_responses=True)
    consumer = asyncio.create_task(EventConsumer(redis, settings.event_prefix).run())
    app.state.services = Services(
        engine=engine,
        sessions=async_sessionmaker(engine, expire_on_commit=False),
        redis=redis,
        provider=AsyncElevenLabs(base_url=settings.provider_url, api_key=settings.provider_key),
        consumer=consumer,
    )
    yield
    consumer.cancel()
    await asyncio.gather(consumer, return_exceptions=True)
    await redis.aclose()
    await engine.dispose()


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Parts = Annotated[Services, Depends(services_of)]
# A real application would know the user by a token.
CurrentUser = Annotated[UUID, Header(alias="X-User-Id")]

app = FastAPI(title="Voices", lifespan=lifespan)


@app.get("/health")
async def health(services: Parts) -> dict[str, str]:
    async with services.engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    await services.redis.ping()
    if services.consumer.done():
        raise HTTPException(503, "events are not read")
    return {"status": "ok"}


@app.post("/voices", status_code=201, response_model=VoiceOut)
async def create_voice(
    services: Parts,
    user_id: CurrentUser,
    name: Annotated[str, Form(min_length=1, max_length=200)],
    sample: UploadFile,
) -> Voice:
    try:
        # Before any transaction: the provider may take its time.
        provider_id = await clone(services.provider, name, sample.filename or "sample", await sample.read())
    except ProviderUnavailable as error:
        raise HTTPException(502, "the provider made no clone") from error
    async with services.sessions() as session:
        voice = await db.add_voice(session, user_id, name, provider_id)
    await cache.drop_list(services.redis, user_id)
    return voice


@app.get("/voices", response_model=list[VoiceOut])
async def list_voices(services: Parts, user_id: CurrentUser) -> Response:
    voices = await cache.read_list(services.redis, user_id)
    source = "hit"
    if voices is None:
        source = "miss"
        async with services.sessions() as session:
            rows = await db.voices_of(session, user_id)
        voices = VoiceList.dump_json(VoiceList.validate_python(rows))
        await cache.store_list(services.redis, user_id, voices)
    return Response(voices, media_type="application/json", headers={"X-Cache": source})
