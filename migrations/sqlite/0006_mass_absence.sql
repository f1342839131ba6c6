-- See the same file for PostgreSQL for the reasons.
ALTER TABLE voice_sync_provider ADD COLUMN mass_absence_since INTEGER;
CREATE INDEX voice_sync_voices_missing ON voice_sync_voices (missing_account) WHERE missing_count > 0;
