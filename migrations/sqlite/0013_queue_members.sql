-- See the same file for PostgreSQL for the reasons.
CREATE TABLE voice_sync_queue_members (
    queue      TEXT NOT NULL,
    member     TEXT NOT NULL,
    noticed_at INTEGER NOT NULL,
    PRIMARY KEY (queue, member)
) WITHOUT ROWID;
