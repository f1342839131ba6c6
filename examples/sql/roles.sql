-- Roles with the least privileges for voice-sync on PostgreSQL. Run once, in the application's database and
-- before `voice-sync migrate`, by a role that may create roles and owns the application's table `voices`.
-- Give the two roles that log in passwords of your own (ALTER ROLE … PASSWORD), or let them log in otherwise.
-- Roles are the server's: for a second database of it, leave out the statements that make and alter them.
BEGIN;

-- Owns voice-sync's own schema, and nothing else. Nobody logs in as it.
CREATE ROLE voice_sync_owner NOLOGIN;

-- Runs `voice-sync migrate`: whatever it makes belongs to the owner.
CREATE ROLE voice_sync_migrator LOGIN;
GRANT voice_sync_owner TO voice_sync_migrator;
ALTER ROLE voice_sync_migrator SET role = 'voice_sync_owner';

-- Runs everything else.
CREATE ROLE voice_sync_runtime LOGIN;

-- For this transaction, whoever runs it makes what is to be the owner's.
GRANT voice_sync_owner TO CURRENT_USER;
CREATE SCHEMA voice_sync AUTHORIZATION voice_sync_owner;
GRANT USAGE ON SCHEMA voice_sync TO voice_sync_runtime;
-- Of tables that are made later as well: no migration needs another GRANT. Migrations take back what it does not
-- need: to write the tables `migrations` and `adoptions`, and to delete from `completions`.
ALTER DEFAULT PRIVILEGES FOR ROLE voice_sync_owner IN SCHEMA voice_sync
    GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO voice_sync_runtime;
REVOKE voice_sync_owner FROM CURRENT_USER;

-- Of the application's table it reads seven columns, and writes three.
GRANT SELECT (id, user_id, elevenlabs_voice_id, status, preview_url, created_at, completed_at),
      UPDATE (status, preview_url, completed_at) ON voices TO voice_sync_runtime;

COMMIT;
