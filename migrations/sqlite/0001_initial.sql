-- Times are whole milliseconds since 1970, in UTC. See the same file for PostgreSQL for the reasons.
CREATE TABLE voice_sync_voices (
    row_id          TEXT PRIMARY KEY NOT NULL,
    provider_id     TEXT,
    first_seen      INTEGER NOT NULL,
    restarted_at    INTEGER,
    run_id          TEXT NOT NULL,
    lease_until     INTEGER,
    last_asked      INTEGER,
    kind            TEXT,
    stage           TEXT,
    missing_account TEXT,
    missing_count   INTEGER NOT NULL DEFAULT 0,
    missing_since   INTEGER,
    strikes         INTEGER NOT NULL DEFAULT 0,
    set_aside_until INTEGER,
    trouble         TEXT,
    failed_at       INTEGER,
    failure         TEXT
) WITHOUT ROWID;

CREATE TABLE voice_sync_outbox (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id     TEXT NOT NULL,
    run_id       TEXT NOT NULL,
    event_type   TEXT NOT NULL,
    voice_id     TEXT NOT NULL,
    user_id      TEXT,
    occurred_at  INTEGER NOT NULL,
    leased_until INTEGER,
    published_at INTEGER
);
CREATE INDEX voice_sync_outbox_unpublished ON voice_sync_outbox (id) WHERE published_at IS NULL;

CREATE TABLE voice_sync_buses (
    bus      TEXT PRIMARY KEY NOT NULL,
    failures INTEGER NOT NULL,
    retry_at INTEGER NOT NULL,
    probed_by TEXT
);

CREATE TABLE voice_sync_provider (
    account     TEXT PRIMARY KEY NOT NULL,
    unlisted    TEXT NOT NULL DEFAULT '{}',
    opened      INTEGER NOT NULL DEFAULT 0,
    open_until  INTEGER,
    probe_until INTEGER,
    probed_by   TEXT,
    hold_until  INTEGER,
    concurrency REAL,
    found_at    INTEGER
);

CREATE TABLE voice_sync_runs (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id       TEXT NOT NULL UNIQUE,
    account      TEXT,
    started_at   INTEGER NOT NULL,
    finished_at  INTEGER NOT NULL,
    duration_ms  INTEGER NOT NULL,
    exit_code    INTEGER NOT NULL,
    found        INTEGER NOT NULL,
    counts       TEXT NOT NULL
);

CREATE TABLE voice_sync_cursors (
    table_name   TEXT PRIMARY KEY NOT NULL,
    resume_after TEXT NOT NULL
);
