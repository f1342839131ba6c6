-- See the same file for PostgreSQL for the reasons.
ALTER TABLE voice_sync_voices ADD COLUMN hinted_at INTEGER;

CREATE INDEX voice_sync_voices_hinted ON voice_sync_voices (next_due)
WHERE next_due = hinted_at AND failed_at IS NULL;

ALTER TABLE voice_sync_provider ADD COLUMN request_spacing REAL;
ALTER TABLE voice_sync_provider ADD COLUMN voices_a_request INTEGER;
