-- See the same file for PostgreSQL for the reasons.
CREATE TABLE voice_sync_completions (
    row_id       TEXT PRIMARY KEY NOT NULL,
    provider_id  TEXT NOT NULL,
    preview_url  TEXT,
    completed_at INTEGER NOT NULL
);

CREATE TABLE voice_sync_adoptions (
    table_name TEXT PRIMARY KEY NOT NULL,
    adopted_at INTEGER NOT NULL
);
