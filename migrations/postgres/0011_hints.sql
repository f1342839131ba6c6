-- When the last hint made the voice due, or will. Until a pass has noted the voice, it is `next_due` as well.
ALTER TABLE voice_sync.voices ADD COLUMN hinted_at timestamptz;

CREATE INDEX voices_hinted ON voice_sync.voices (next_due) WHERE next_due = hinted_at AND failed_at IS NULL;

-- The request budget that the newest pass with one had: seconds for each request, and the voices that one has room for.
ALTER TABLE voice_sync.provider
    ADD COLUMN request_spacing double precision,
    ADD COLUMN voices_a_request bigint;
