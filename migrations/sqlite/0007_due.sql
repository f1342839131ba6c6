-- See the same file for PostgreSQL for the reasons.
CREATE INDEX voice_sync_voices_due ON voice_sync_voices (next_due) WHERE next_due IS NOT NULL AND failed_at IS NULL;
