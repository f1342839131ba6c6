-- See the same file for PostgreSQL for the reasons.
CREATE TABLE voice_sync_nudges (
    provider_id TEXT PRIMARY KEY,
    nudge_id    BLOB NOT NULL,
    account     BLOB NOT NULL,
    row_id      TEXT NOT NULL,
    characters  INTEGER NOT NULL,
    nudged_at   INTEGER NOT NULL,
    answered_at INTEGER,
    answer      TEXT NOT NULL DEFAULT 'sent',
    detail      TEXT
) WITHOUT ROWID;
CREATE INDEX voice_sync_nudges_of_account ON voice_sync_nudges (account, nudged_at);

ALTER TABLE voice_sync_provider ADD COLUMN nudging_stopped_until INTEGER;
ALTER TABLE voice_sync_provider ADD COLUMN nudging_stopped_by TEXT;
