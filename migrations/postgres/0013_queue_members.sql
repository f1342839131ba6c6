-- Members of the application's queue that have no row, and when that was first noticed.
CREATE TABLE voice_sync.queue_members (
    queue      text NOT NULL,
    member     text NOT NULL,
    noticed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (queue, member)
);

-- The privileges that roles have on the outbox.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT a.privilege_type, a.grantee FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'voice_sync.outbox'::regclass AND a.grantee NOT IN (0, c.relowner)
          AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    LOOP
        EXECUTE format('GRANT %s ON voice_sync.queue_members TO %s', granted.privilege_type, granted.grantee::regrole);
    END LOOP;
END
$$;
