-- The migration before put events that were waiting into batches, where a program of an earlier version that is still
-- running took them for its own: both would have published them. They leave their batches, and get others when that
-- program's lease on them has ended.
UPDATE voice_sync.outbox o SET published_at = b.published_at FROM voice_sync.batches b
WHERE b.batch_id = o.batch_id AND o.published_at IS NULL AND b.published_at IS NOT NULL;

WITH waiting AS (
    UPDATE voice_sync.outbox o SET batch_id = NULL, leased_until = GREATEST(o.leased_until, b.leased_until)
    FROM voice_sync.batches b
    WHERE b.batch_id = o.batch_id AND o.published_at IS NULL
    RETURNING b.batch_id
)
DELETE FROM voice_sync.batches WHERE batch_id IN (SELECT batch_id FROM waiting);
