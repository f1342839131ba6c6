"""What peer.py does in a database: the application's table `voices`, and its own tables beside it."""

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

PAGE = 1000  # rows that are claimed, and answers that are written down, at once
LEASE = 60  # seconds for which a claimed voice is left to its claimer
OUTBOX_LEASE = 15  # seconds for which a recorded event is left to who recorded it
EVENTS = {"completed": "voice.created", "failed": "voice.updated"}
READ = "SELECT CAST(id AS text), elevenlabs_voice_id, CAST(user_id AS text) FROM voices WHERE status = 'processing'"


class Row(NamedTuple):
    id: str
    provider_id: str
    user_id: str | None


class Transition(NamedTuple):
    row_id: str
    provider_id: str
    preview_url: str | None
    event: str


class Event(NamedTuple):
    outbox_id: int
    type: str
    body: str


class Store:
    """The application's table, and this program's own beside it. What the databases have differently is in
    attributes; only writing answers down is worth a method for each."""

    driver: str
    options: dict[str, Any]
    setup: tuple[str, ...]
    now: str
    after: str
    among: str
    many: Callable[[Sequence[Any]], Any]  # binds many values as one, so that the statement stays the same

    def __init__(self, url: URL, records_events: bool, keeps_leases: bool) -> None:
        self.engine = create_async_engine(url.set(drivername=self.driver), **self.options)
        self.records_events = records_events
        self.keeps_leases = keeps_leases
        self.run_id = str(uuid4())

    async def run(self, statement: str, **parameters: Any) -> list[Any]:
        async with self.engine.begin() as connection:
            return await rows_of(connection, statement, **parameters)

    async def prepare(self) -> None:
        for statement in self.setup:
            await self.run(statement)

    async def claim(self) -> AsyncIterator[list[Row]]:
        read = f"{READ} AND id > {self.after} ORDER BY id LIMIT {PAGE}"
        # In the order of ids, so that two claimers never wait for each other.
        take = f"""INSERT INTO peer_leases AS l (row_id, run_id, lease_until)
                   SELECT CAST(id AS text), :run_id, {self.now} + {LEASE} FROM voices
                   WHERE id {self.among.format("uuid")} AND status = 'processing' ORDER BY id
                   ON CONFLICT (row_id) DO UPDATE
                   SET run_id = excluded.run_id, lease_until = excluded.lease_until WHERE l.lease_until <= {self.now}
                   RETURNING row_id"""
        after = str(UUID(int=0))
        while page := await self.run(read, after=after):
            taken = await self.run(take, run_id=self.run_id, ids=self.many([row_id for row_id, _, _ in page]))
            mine = {row_id for (row_id,) in taken}
            yield [Row(*row) for row in page if row[0] in mine]
            if len(page) < PAGE:
                return
            after = page[-1][0]

    async def release(self, row_ids: list[str]) -> None:
        statement = f"DELETE FROM peer_leases WHERE row_id {self.among.format('text')} AND run_id = :run_id"
        await self.run(statement, ids=self.many(row_ids), run_id=self.run_id)

    async def abandoned_events(self) -> list[Event]:
        """Takes events that somebody recorded and did not publish in time."""
        rows = await self.run(
            f"""UPDATE peer_outbox SET leased_until = {self.now} + {OUTBOX_LEASE}
                WHERE leased_until <= {self.now} RETURNING id, event_type, body"""
        )
        return [Event(*row) for row in sorted(rows)]

    async def forget_events(self, outbox_ids: list[int]) -> None:
        await self.run(f"DELETE FROM peer_outbox WHERE id {self.among.format('bigint')}", ids=self.many(outbox_ids))


class PostgresStore(Store):
    driver = "postgresql+asyncpg"
    # Each operation is one statement: none needs BEGIN and COMMIT, nor ROLLBACK when its connection goes back.
    options = {"isolation_level": "AUTOCOMMIT", "pool_reset_on_return": None}
    # IF NOT EXISTS alone fails where two processes create at once.
    setup = (
        """DO $$ BEGIN
             PERFORM pg_advisory_xact_lock(hashtext('peer_tables'));
             CREATE TABLE IF NOT EXISTS peer_leases (
                 row_id text PRIMARY KEY, run_id text NOT NULL, lease_until bigint NOT NULL);
             CREATE TABLE IF NOT EXISTS peer_outbox (
                 id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, event_type text NOT NULL,
                 body text NOT NULL, leased_until bigint NOT NULL);
           END $$""",
    )
    now = "CAST(extract(epoch FROM now()) AS bigint)"
    after = "CAST(:after AS uuid)"
    among = "= ANY(CAST(:ids AS {}[]))"
    many = staticmethod(list)

    async def read(self) -> AsyncIterator[list[Row]]:
        async with self.engine.connect() as connection:
            # A cursor lives in a transaction.
            await connection.execution_options(isolation_level="READ COMMITTED", yield_per=PAGE)
            async for rows in (await connection.stream(text(READ))).partitions():
                yield [Row(*row) for row in rows]

    async def apply(self, status: str, transitions: Sequence[Transition]) -> tuple[int, list[Event]]:
        """Moves the rows that are as they were, records the events, ends the leases: all or nothing."""
        released = f""", released AS (
            DELETE FROM peer_leases WHERE row_id {self.among.format("text")} AND run_id = :run_id)"""
        recorded = f""", recorded AS (
            INSERT INTO peer_outbox (event_type, body, leased_until)
            SELECT '{EVENTS[status]}', event, {self.now} + {OUTBOX_LEASE} FROM moved RETURNING id, event_type, body)"""
        ids, provider_ids, previews, events = zip(*transitions, strict=True)
        rows = await self.run(
            f"""WITH a AS (
                    SELECT * FROM unnest(CAST(:ids AS text[]), CAST(:provider_ids AS text[]),
                                         CAST(:previews AS text[]), CAST(:events AS text[]))
                        AS a (row_id, provider_id, preview_url, event)
                ), moved AS (
                    UPDATE voices v SET {assignments(status, "now() AT TIME ZONE 'UTC'")} FROM a
                    WHERE v.id = CAST(a.row_id AS uuid) AND v.elevenlabs_voice_id = a.provider_id
                      AND v.status = 'processing'
                    RETURNING a.event
                ) {released if self.keeps_leases else ""} {recorded if self.records_events else ""}
                SELECT * FROM {"recorded" if self.records_events else "moved"}""",
            **{"ids": ids, "provider_ids": provider_ids, "previews": previews, "events": events},
            **({"run_id": self.run_id} if self.keeps_leases else {}),
        )
        return len(rows), [Event(*row) for row in rows] if self.records_events else []


class SqliteStore(Store):
    driver = "sqlite+aiosqlite"
    # One connection, as there is one writer: waiting for the pool is cheaper than for SQLite's lock.
    options = {"pool_size": 1, "max_overflow": 0, "connect_args": {"timeout": 30, "isolation_level": "IMMEDIATE"}}
    setup = (
        """CREATE TABLE IF NOT EXISTS peer_leases (
               row_id TEXT PRIMARY KEY, run_id TEXT NOT NULL, lease_until INTEGER NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE IF NOT EXISTS peer_outbox (
               id INTEGER PRIMARY KEY AUTOINCREMENT, event_type TEXT NOT NULL, body TEXT NOT NULL,
               leased_until INTEGER NOT NULL)""",
    )
    now = "unixepoch()"
    after = ":after"
    among = "IN (SELECT value FROM json_each(:ids))"
    # One statement for all, during which SQLite has let go of the interpreter's lock, unlike executemany.
    many = staticmethod(lambda values: msgspec.json.encode(values).decode())

    async def read(self) -> AsyncIterator[list[Row]]:
        # Not a cursor: it would keep the connection.
        yield [Row(*row) for row in await self.run(READ)]

    async def apply(self, status: str, transitions: Sequence[Transition]) -> tuple[int, list[Event]]:
        """Moves the rows that are as they were, records the events, ends the leases: all or nothing."""
        # With the signs + only the primary key is left to SQLite: it would walk the index on status for each answer.
        move = f"""UPDATE voices SET {assignments(status, ":now")}
                   FROM (SELECT value->>0 AS row_id, value->>1 AS provider_id, value->>2 AS preview_url
                         FROM json_each(:transitions)) AS a
                   WHERE id = a.row_id AND +elevenlabs_voice_id = a.provider_id AND +status = 'processing'
                   RETURNING id"""
        record = f"""INSERT INTO peer_outbox (event_type, body, leased_until)
                     SELECT '{EVENTS[status]}', value, {self.now} + {OUTBOX_LEASE} FROM json_each(:bodies)
                     RETURNING id, event_type, body"""
        release = f"DELETE FROM peer_leases WHERE row_id {self.among} AND run_id = :run_id"
        events: list[Event] = []
        async with self.engine.begin() as connection:
            now = {"now": str(utc_now())} if status == "completed" else {}
            moved = {row_id for (row_id,) in await rows_of(connection, move, transitions=self.many(transitions), **now)}
            if moved and self.records_events:
                bodies = self.many([transition.event for transition in transitions if transition.row_id in moved])
                events = [Event(*row) for row in await rows_of(connection, record, bodies=bodies)]
            if self.keeps_leases:
                ids = self.many([transition.row_id for transition in transitions])
                await rows_of(connection, release, ids=ids, run_id=self.run_id)
        return len(moved), events


async def rows_of(connection: AsyncConnection, statement: str, **parameters: Any) -> list[Any]:
    result = await connection.execute(text(statement), parameters)
    return list(result.all()) if result.returns_rows else []


def assignments(status: str, now: str) -> str:
    what_completes = f", preview_url = a.preview_url, completed_at = {now}" if status == "completed" else ""
    return f"status = '{status}'{what_completes}"


def utc_now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
