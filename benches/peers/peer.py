"""One pass of voice-sync's job as an asyncio program, for voice-sync to be measured against.

Settings are in the environment: DATABASE_URL, ELEVENLABS_BASE_URL, ELEVENLABS_API_KEY, and REDIS_URL, without
which no events are recorded. Prints {"completed": n, "failed": n, "requests": n}.
"""

import argparse
import asyncio
import gc
import os
import random
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid5

# Before the imports, whose many lasting objects it would walk again and again: a tenth of a pass.
gc.set_threshold(100_000)

# ruff: noqa: E402
import aiohttp
import msgspec
import uvloop
from peer_store import EVENTS, PAGE, Event, PostgresStore, Row, SqliteStore, Transition, utc_now
from sqlalchemy import make_url
from yarl import URL

BATCH = 100  # ids that GET /v2/voices takes
TRIES = 3
LINGER = 0.03  # seconds in which single answers gather, to be applied together
REDIS_TIMEOUT = 5
MAXLEN = b"10000"
EVENT_NAMESPACE = UUID("5d2b5b0e-52a1-4b0f-9d4e-0f6f7b1c9a51")


class FineTuning(msgspec.Struct):
    state: dict[str, Any] | None = None


class Voice(msgspec.Struct):
    """The fields that decide: the decoder skips the rest, 2 kB a voice, without making objects of it."""

    voice_id: str
    safety_control: str | None = None
    category: str | None = None
    preview_url: str | None = None
    fine_tuning: FineTuning | None = None

    def verdict(self) -> str | None:
        """The status that the row gets; None while it is still in processing."""
        if self.safety_control in ("BAN", "ENTERPRISE_BAN"):
            return "failed"
        if self.category == "professional":
            states = set(((self.fine_tuning and self.fine_tuning.state) or {}).values())
            return "completed" if "fine_tuned" in states else "failed" if states == {"failed"} else None
        return "completed" if self.preview_url else None


class Listed(msgspec.Struct):
    voices: list[Voice]


class Provider:
    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session = session
        self._base_url = base_url.rstrip("/")
        self._voice = msgspec.json.Decoder(Voice)
        self._listed = msgspec.json.Decoder(Listed)
        self.requests = 0

    async def look_up_batch(self, rows: Sequence[Row]) -> dict[str, Voice]:
        ids = "".join(f"&voice_ids={quote(row.provider_id, safe='')}" for row in rows)
        body = await self._get(f"/v2/voices?page_size={BATCH}&include_total_count=false{ids}")
        return {voice.voice_id: voice for voice in self._listed.decode(body).voices}

    async def look_up_single(self, rows: Sequence[Row]) -> dict[str, Voice]:
        [row] = rows
        body = await self._get(f"/v1/voices/{quote(row.provider_id, safe='')}")
        return {row.provider_id: self._voice.decode(body)} if body else {}

    async def _get(self, path: str) -> bytes:
        """The body; it is empty where the provider does not know the voice."""
        # Quoted already: yarl would parse and quote a hundred ids again.
        url = URL(self._base_url + path, encoded=True)
        for tried in range(1, TRIES + 1):
            self.requests += 1
            try:
                async with self._session.get(url) as response:
                    body = await response.read()
                    if response.status in (400, 404) and b"voice_not_found" in body:
                        return b""
                    response.raise_for_status()
                    return body
            except (aiohttp.ClientError, TimeoutError) as error:
                status = getattr(error, "status", 503)
                if tried == TRIES or (status < 500 and status != 429):
                    raise
            await asyncio.sleep(random.uniform(0, 0.3 * 2**tried))
        raise AssertionError("the last try returns or raises")


def with_dashes(uuid: str | None) -> str | None:
    """SQLAlchemy stores UUIDs in SQLite as 32 hexadecimal digits."""
    return str(UUID(uuid)) if uuid and len(uuid) == 32 else uuid


def event_body(row: Row, event_type: str, timestamp: str) -> str:
    voice_id = with_dashes(row.id)
    event_id = uuid5(EVENT_NAMESPACE, f"{voice_id}\n{row.provider_id}\n{event_type}")
    payload = {"voice_id": voice_id, "user_id": with_dashes(row.user_id)}
    body = {"type": event_type, "payload": payload, "timestamp": timestamp, "source": "peer", "event_id": event_id}
    return msgspec.json.encode(body).decode()


class Pass:
    """Four stages that overlap: claim, look up, apply, publish. Bounded queues hold the faster ones back."""

    def __init__(self, store: PostgresStore | SqliteStore, provider: Provider, redis: Any, options: argparse.Namespace):
        self.store, self.provider, self.redis, self.concurrency = store, provider, redis, options.concurrency
        is_batch = options.lookup == "batch"
        self.size, self.linger = (BATCH, 0) if is_batch else (1, LINGER)
        self.look_up = provider.look_up_batch if is_batch else provider.look_up_single
        self.batches: asyncio.Queue[list[Row] | None] = asyncio.Queue(2 * self.concurrency)
        self.answers: asyncio.Queue[tuple[list[Row], dict[str, Voice]] | None] = asyncio.Queue(PAGE)
        self.events: asyncio.Queue[list[Event] | None] = asyncio.Queue(4)
        self.counts = {"completed": 0, "failed": 0}
        self.ok = True

    async def run(self) -> None:
        async with asyncio.TaskGroup() as stages:
            for stage in (self.claim(), self.apply(), self.publish()):
                stages.create_task(stage)
            async with asyncio.TaskGroup() as askers:
                for _ in range(self.concurrency):
                    askers.create_task(self.ask())
            await self.answers.put(None)

    async def claim(self) -> None:
        async for page in self.store.claim() if self.store.keeps_leases else self.store.read():
            for start in range(0, len(page), self.size):
                await self.batches.put(page[start : start + self.size])
        for _ in range(self.concurrency):
            await self.batches.put(None)

    async def ask(self) -> None:
        while batch := await self.batches.get():
            try:
                found = await self.look_up(batch)
            except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
                print(f"{len(batch)} voices got no answer: {error!r}", file=sys.stderr)
                self.ok, found = False, {}
            await self.answers.put((batch, found))

    async def apply(self) -> None:
        while first := await self.answers.get():
            await asyncio.sleep(self.linger)
            answers = [first]
            while len(answers) * self.size < PAGE and not self.answers.empty():
                if (answer := self.answers.get_nowait()) is None:
                    self.answers.put_nowait(None)
                    break
                answers.append(answer)
            await self.write_down(answers)
        await self.events.put(None)

    async def write_down(self, answers: list[tuple[list[Row], dict[str, Voice]]]) -> None:
        timestamp = utc_now().isoformat(timespec="microseconds")
        transitions: dict[str, list[Transition]] = {"completed": [], "failed": []}
        waiting = []
        for batch, found in answers:
            for row in batch:
                voice = found.get(row.provider_id)
                if voice and (status := voice.verdict()):
                    event = event_body(row, EVENTS[status], timestamp) if self.redis else ""
                    transitions[status].append(Transition(row.id, row.provider_id, voice.preview_url or None, event))
                else:
                    waiting.append(row.id)
        for status, of_status in transitions.items():
            if of_status:
                moved, events = await self.store.apply(status, of_status)
                self.counts[status] += moved
                if events:
                    await self.events.put(events)
        if waiting and self.store.keeps_leases:
            await self.store.release(waiting)

    async def publish(self) -> None:
        abandoned = await self.store.abandoned_events() if self.redis else []
        for start in range(0, len(abandoned), PAGE):
            await self.send(abandoned[start : start + PAGE])
        while events := await self.events.get():
            await self.send(events)

    async def send(self, events: list[Event]) -> None:
        """Events that do not get out stay in the outbox, for a later pass."""
        from redis.exceptions import RedisError

        pipeline = self.redis.pipeline(transaction=False)
        for _, event_type, body in events:
            # Not xadd(), as it checks each argument; and in bytes, as packing text takes twice as long.
            kind, event = event_type.encode(), body.encode()
            pipeline.execute_command(
                *(b"XADD", b"events:" + kind, b"MAXLEN", b"~", MAXLEN, b"*", b"event", event, b"type", kind)
            )
        try:
            async with asyncio.timeout(REDIS_TIMEOUT):
                await pipeline.execute()
        except (RedisError, TimeoutError) as error:
            print(f"{len(events)} events stay in the outbox: {error!r}", file=sys.stderr)
            self.ok = False
        else:
            await self.store.forget_events([event.outbox_id for event in events])


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lookup", choices=("batch", "single"), default="batch")
    parser.add_argument("--concurrency", type=int, default=4, metavar="N", help="requests at once (default: 4)")
    parser.add_argument("--bookkeeping", choices=("full", "none"), default="full", help="none: no leases, one SELECT")
    options = parser.parse_args()
    url, redis = make_url(os.environ["DATABASE_URL"]), None
    if redis_url := os.environ.get("REDIS_URL"):
        # Not at the top: its import takes as long as a round of requests.
        from redis.asyncio import Redis

        # A timer for each command's answer is a fifth of publishing: all of them have one.
        redis = Redis.from_url(redis_url, socket_timeout=None)
    kind = SqliteStore if url.get_backend_name() == "sqlite" else PostgresStore
    store = kind(url, records_events=redis is not None, keeps_leases=options.bookkeeping == "full")
    session = aiohttp.ClientSession(
        headers={"xi-api-key": os.environ["ELEVENLABS_API_KEY"]},
        connector=aiohttp.TCPConnector(limit=options.concurrency),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=30),
    )
    try:
        async with session:
            await store.prepare()
            provider = Provider(session, os.environ.get("ELEVENLABS_BASE_URL", "https://api.elevenlabs.io"))
            this_pass = Pass(store, provider, redis, options)
            await this_pass.run()
    finally:
        await store.engine.dispose()
        if redis:
            await redis.aclose()
    print(msgspec.json.encode({**this_pass.counts, "requests": provider.requests}).decode())
    return 0 if this_pass.ok else 1


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
