-- See the same file for PostgreSQL for the reasons.
CREATE TABLE voice_sync_leases (
    lease_id    TEXT PRIMARY KEY NOT NULL,
    run_id      TEXT NOT NULL,
    voices      TEXT NOT NULL,
    lease_until INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE voice_sync_batches (
    batch_id     TEXT PRIMARY KEY NOT NULL,
    run_id       TEXT NOT NULL,
    recorded_at  INTEGER NOT NULL,
    first_id     INTEGER NOT NULL,
    last_id      INTEGER NOT NULL,
    events       INTEGER NOT NULL,
    leased_until INTEGER,
    published_at INTEGER
) WITHOUT ROWID;
CREATE INDEX voice_sync_batches_unpublished ON voice_sync_batches (first_id) WHERE published_at IS NULL;

ALTER TABLE voice_sync_voices ADD COLUMN noted TEXT;

-- SQLite cannot make a column nullable: <https://www.sqlite.org/lang_altertable.html#otheralter>.
CREATE TABLE voice_sync_outbox_of_batches (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id     TEXT NOT NULL,
    run_id       TEXT,
    event_type   TEXT NOT NULL,
    voice_id     TEXT NOT NULL,
    user_id      TEXT,
    occurred_at  INTEGER,
    leased_until INTEGER,
    published_at INTEGER,
    batch_id     TEXT
);
-- Ids go on where they were, even if the newest events are gone.
INSERT INTO sqlite_sequence (name, seq)
SELECT 'voice_sync_outbox_of_batches', seq FROM sqlite_sequence WHERE name = 'voice_sync_outbox';
INSERT INTO voice_sync_outbox_of_batches
SELECT id, event_id, run_id, event_type, voice_id, user_id, occurred_at, leased_until, published_at,
       CASE WHEN published_at IS NULL THEN '00000000-0000-4000-8000-' || printf('%012d', (row_number() OVER (
           PARTITION BY published_at IS NULL ORDER BY id) - 1) / 500) END
FROM voice_sync_outbox;
DROP TABLE voice_sync_outbox;
ALTER TABLE voice_sync_outbox_of_batches RENAME TO voice_sync_outbox;
CREATE INDEX voice_sync_outbox_unbatched ON voice_sync_outbox (id) WHERE batch_id IS NULL AND published_at IS NULL;
INSERT INTO voice_sync_batches (batch_id, run_id, recorded_at, first_id, last_id, events, leased_until)
SELECT batch_id, min(run_id), min(occurred_at), min(id), max(id), count(*), max(leased_until)
FROM voice_sync_outbox WHERE batch_id IS NOT NULL GROUP BY batch_id;
