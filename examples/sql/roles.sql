-- Roles with the least privileges for voice-sync on PostgreSQL. Run it once, in the application's database and
-- before `voice-sync migrate`, as a superuser, or as a role that may create roles, may create schemas in this
-- database (CREATE ON DATABASE) and owns the application's table `voices`.
-- Then give the two roles that log in a password each (ALTER ROLE … PASSWORD), or another way to log in.
-- Roles belong to the whole server. For a second database on the same server, omit CREATE ROLE and ALTER ROLE.
BEGIN;

-- Owns voice-sync's own schema, and nothing else. It cannot log in.
CREATE ROLE voice_sync_owner NOLOGIN;

-- Runs `voice-sync migrate`. The tables that it creates belong to the owner.
CREATE ROLE voice_sync_migrator LOGIN;
GRANT voice_sync_owner TO voice_sync_migrator;
ALTER ROLE voice_sync_migrator SET role = 'voice_sync_owner';

-- Runs everything else.
CREATE ROLE voice_sync_runtime LOGIN;

-- Within this transaction, the current role may create objects for the owner.
GRANT voice_sync_owner TO CURRENT_USER;
CREATE SCHEMA voice_sync AUTHORIZATION voice_sync_owner;
GRANT USAGE ON SCHEMA voice_sync TO voice_sync_runtime;
-- Also for tables that later migrations create: no migration needs another GRANT. Each migration revokes what is
-- not needed: writing to `migrations` and `adoptions`, and deleting from `completions` and `nudges`.
ALTER DEFAULT PRIVILEGES FOR ROLE voice_sync_owner IN SCHEMA voice_sync
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO voice_sync_runtime;
REVOKE voice_sync_owner FROM CURRENT_USER;

-- In the application's table, it reads seven columns and writes three. `xmin` is PostgreSQL's own column: with it,
-- the daemon reads only the rows that were written since it last looked.
GRANT SELECT (id, user_id, elevenlabs_voice_id, status, preview_url, created_at, completed_at, xmin),
      UPDATE (status, preview_url, completed_at) ON voices TO voice_sync_runtime;

COMMIT;
