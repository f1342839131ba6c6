-- Which command made an entry; none is a pass. And for how long the voices that a pass completed had been in
-- processing: how many in each bucket of a sketch.
ALTER TABLE voice_sync.runs ADD COLUMN command text, ADD COLUMN completion_times jsonb;
