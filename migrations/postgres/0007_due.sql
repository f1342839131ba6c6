-- Voices that are due are found without looking at the others.
CREATE INDEX voices_due ON voice_sync.voices (next_due) WHERE next_due IS NOT NULL AND failed_at IS NULL;

-- What only a migration writes, and what is never removed, nobody but the owner may change: default privileges, which
-- give the run-time role its others, know no single tables.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT c.oid::regclass AS name, a.privilege_type, a.grantee
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.relnamespace = 'voice_sync'::regnamespace AND a.grantee NOT IN (0, c.relowner)
          AND (c.relname IN ('migrations', 'adoptions') AND a.privilege_type <> 'SELECT'
               OR c.relname = 'completions' AND a.privilege_type = 'DELETE')
    LOOP
        EXECUTE format('REVOKE %s ON %s FROM %s', granted.privilege_type, granted.name,
                       granted.grantee::regrole);
    END LOOP;
END
$$;
