-- See the same file for PostgreSQL for the reasons.
ALTER TABLE voice_sync_voices ADD COLUMN isolated INTEGER NOT NULL DEFAULT FALSE;
ALTER TABLE voice_sync_voices ADD COLUMN unanswered INTEGER NOT NULL DEFAULT 0;
ALTER TABLE voice_sync_voices ADD COLUMN unanswered_since INTEGER;
CREATE INDEX voice_sync_voices_isolated ON voice_sync_voices (unanswered, next_due) WHERE isolated;
