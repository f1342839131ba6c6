-- Since when so many voices are missing that the key is probably of another workspace: no voice fails for being
-- missing until that is over.
ALTER TABLE voice_sync.provider ADD COLUMN mass_absence_since timestamptz;
CREATE INDEX voices_missing ON voice_sync.voices (missing_account) WHERE missing_count > 0;
