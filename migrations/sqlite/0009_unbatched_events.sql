-- See the same file for PostgreSQL for the reasons.
UPDATE voice_sync_outbox SET published_at = b.published_at FROM voice_sync_batches b
WHERE b.batch_id = voice_sync_outbox.batch_id AND voice_sync_outbox.published_at IS NULL
  AND b.published_at IS NOT NULL;

UPDATE voice_sync_outbox
SET batch_id = NULL, leased_until = max(COALESCE(voice_sync_outbox.leased_until, b.leased_until),
                                        COALESCE(b.leased_until, voice_sync_outbox.leased_until))
FROM voice_sync_batches b
WHERE b.batch_id = voice_sync_outbox.batch_id AND voice_sync_outbox.published_at IS NULL;

DELETE FROM voice_sync_batches
WHERE published_at IS NULL
  AND NOT EXISTS (SELECT 1 FROM voice_sync_outbox o
                  WHERE o.id BETWEEN first_id AND last_id AND o.batch_id = voice_sync_batches.batch_id);
