-- Requests for speech with which previews are made to appear: one for each voice of the provider's, for ever. A row is
-- committed before its request is sent, and is never removed.
CREATE TABLE voice_sync.nudges (
    provider_id text PRIMARY KEY,
    nudge_id    uuid NOT NULL,
    account     uuid NOT NULL,
    row_id      text NOT NULL,
    characters  bigint NOT NULL,
    nudged_at   timestamptz NOT NULL DEFAULT now(),
    answered_at timestamptz,
    -- What came of it: 'sent' as long as that is not known, and for ever if the process died.
    answer      text NOT NULL DEFAULT 'sent',
    -- What the provider said, if it was no audio.
    detail      text
);
CREATE INDEX nudges_of_account ON voice_sync.nudges (account, nudged_at);

-- No previews are nudged before this, and why.
ALTER TABLE voice_sync.provider ADD COLUMN nudging_stopped_until timestamptz, ADD COLUMN nudging_stopped_by text;

-- The privileges that roles have on the outbox, but for removing rows.
DO $$
DECLARE
    granted record;
BEGIN
    FOR granted IN
        SELECT a.privilege_type, a.grantee FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'voice_sync.outbox'::regclass AND a.grantee NOT IN (0, c.relowner)
          AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE')
    LOOP
        EXECUTE format('GRANT %s ON voice_sync.nudges TO %s', granted.privilege_type, granted.grantee::regrole);
    END LOOP;
    FOR granted IN
        SELECT a.grantee FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'voice_sync.nudges'::regclass AND a.grantee NOT IN (0, c.relowner) AND a.privilege_type = 'DELETE'
    LOOP
        EXECUTE format('REVOKE DELETE ON voice_sync.nudges FROM %s', granted.grantee::regrole);
    END LOOP;
END
$$;
