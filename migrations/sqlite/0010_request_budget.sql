-- See the same file for PostgreSQL for the reasons.
ALTER TABLE voice_sync_provider ADD COLUMN next_request_at INTEGER;

CREATE INDEX voice_sync_voices_due_soon ON voice_sync_voices (next_due)
WHERE next_due IS NOT NULL AND failed_at IS NULL AND next_due - scheduled_at < 30000;

ALTER TABLE voice_sync_runs ADD COLUMN completion_times_by_kind TEXT;
