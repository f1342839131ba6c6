-- When a voice is to be asked about again, and when that was decided: of two processes that found the
-- same voice due, the second one sees that the first has asked.
ALTER TABLE voice_sync.voices ADD COLUMN next_due timestamptz, ADD COLUMN scheduled_at timestamptz;
