-- Leases and publication are kept by batch, not by voice. A lease is what one claim took: other processes leave these
-- voices alone until it ends.
CREATE TABLE voice_sync.leases (
    lease_id    uuid PRIMARY KEY,
    run_id      uuid NOT NULL,
    voices      text[] NOT NULL,
    lease_until timestamptz NOT NULL
);
-- Keys hardly compress.
ALTER TABLE voice_sync.leases ALTER COLUMN voices SET STORAGE EXTERNAL;

-- The events of one transaction, which are leased, published and marked together. Those of several transactions
-- have ids in between: an event is of a batch if it has its `batch_id`, and `first_id` and `last_id` lead to it by the
-- outbox's primary key.
CREATE TABLE voice_sync.batches (
    batch_id     uuid PRIMARY KEY,
    run_id       uuid NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now(),
    first_id     bigint NOT NULL,
    last_id      bigint NOT NULL,
    events       bigint NOT NULL,
    leased_until timestamptz,
    published_at timestamptz
);
CREATE INDEX batches_unpublished ON voice_sync.batches (first_id) WHERE published_at IS NULL;

-- Which write noted a voice last: after a lost reply, it is not counted again.
ALTER TABLE voice_sync.voices ADD COLUMN noted uuid;

-- What an event has in common with others is in its batch. Events of earlier versions have it themselves, and so have
-- events that were moved to another batch. Whether an event of a batch is published, the batch says; to a program of an
-- earlier version that is still running, it looks published.
ALTER TABLE voice_sync.outbox
    ADD COLUMN batch_id uuid,
    ALTER COLUMN run_id DROP NOT NULL,
    ALTER COLUMN occurred_at DROP NOT NULL;
DROP INDEX voice_sync.outbox_unpublished;
CREATE INDEX outbox_unbatched ON voice_sync.outbox (id) WHERE batch_id IS NULL AND published_at IS NULL;

WITH pending AS (
    SELECT id, (row_number() OVER (ORDER BY id) - 1) / 500 AS number FROM voice_sync.outbox WHERE published_at IS NULL
),
numbers AS MATERIALIZED (SELECT number, gen_random_uuid() AS batch_id FROM pending GROUP BY number),
batches AS (
    INSERT INTO voice_sync.batches (batch_id, run_id, recorded_at, first_id, last_id, events, leased_until)
    SELECT n.batch_id, min(o.run_id::text)::uuid, min(o.occurred_at), min(o.id), max(o.id), count(*),
           max(o.leased_until)
    FROM numbers n JOIN pending p USING (number) JOIN voice_sync.outbox o USING (id) GROUP BY n.batch_id
)
UPDATE voice_sync.outbox o SET batch_id = n.batch_id
FROM pending p JOIN numbers n USING (number) WHERE o.id = p.id;

-- Whoever may work with the outbox may work with these.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT a.privilege_type, a.grantee FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'voice_sync.outbox'::regclass AND a.grantee NOT IN (0, c.relowner)
          AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    LOOP
        EXECUTE format('GRANT %s ON voice_sync.leases, voice_sync.batches TO %s', granted.privilege_type,
                       granted.grantee::regrole);
    END LOOP;
END
$$;
