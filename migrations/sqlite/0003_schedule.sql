-- See the same file for PostgreSQL for the reasons.
ALTER TABLE voice_sync_voices ADD COLUMN next_due INTEGER;
ALTER TABLE voice_sync_voices ADD COLUMN scheduled_at INTEGER;
