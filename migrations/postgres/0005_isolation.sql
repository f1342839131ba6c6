-- Voices that are asked about one by one, after the others: they cannot be looked up, or were in a request that
-- failed and was not followed up. How often in a row they had no answer while the provider worked, and since when.
ALTER TABLE voice_sync.voices
    ADD COLUMN isolated boolean NOT NULL DEFAULT FALSE,
    ADD COLUMN unanswered integer NOT NULL DEFAULT 0,
    ADD COLUMN unanswered_since timestamptz;
CREATE INDEX voices_isolated ON voice_sync.voices (unanswered, next_due) WHERE isolated;
