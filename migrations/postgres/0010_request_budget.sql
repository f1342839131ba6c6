-- When the request budget of an account has room for a request again.
ALTER TABLE voice_sync.provider ADD COLUMN next_request_at timestamptz;

-- Voices that are looked up often, which are those that may well be finished: they are found without looking at a large
-- backlog of others that are overdue.
CREATE INDEX voices_due_soon ON voice_sync.voices (next_due)
WHERE next_due IS NOT NULL AND failed_at IS NULL AND next_due - scheduled_at < interval '30 seconds';

-- For how long the voices that a pass completed had been in processing, by kind: for each, as in `completion_times`.
ALTER TABLE voice_sync.runs ADD COLUMN completion_times_by_kind jsonb;
