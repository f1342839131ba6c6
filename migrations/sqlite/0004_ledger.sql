-- See the same file for PostgreSQL for the reasons.
ALTER TABLE voice_sync_runs ADD COLUMN command TEXT;
ALTER TABLE voice_sync_runs ADD COLUMN completion_times TEXT;
