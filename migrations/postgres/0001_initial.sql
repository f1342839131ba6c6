-- What is known of each voice in processing. No foreign key to the application's table: it would
-- block the application's own DELETE.
CREATE TABLE voice_sync.voices (
    row_id          text PRIMARY KEY,
    provider_id     text,
    first_seen      timestamptz NOT NULL DEFAULT now(),
    -- Set when the row got a new provider id or was put back to processing: its age counts from here.
    restarted_at    timestamptz,
    run_id          uuid NOT NULL,
    lease_until     timestamptz,
    last_asked      timestamptz,
    kind            text,
    stage           text,
    -- Counted for one account at a time: with another key it starts over.
    missing_account uuid,
    missing_count   integer NOT NULL DEFAULT 0,
    missing_since   timestamptz,
    strikes         integer NOT NULL DEFAULT 0,
    set_aside_until timestamptz,
    trouble         text,
    failed_at       timestamptz,
    failure         text
);

-- Events committed with their transition. Published ones are kept for a while, then removed.
CREATE TABLE voice_sync.outbox (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id     uuid NOT NULL,
    run_id       uuid NOT NULL,
    event_type   text NOT NULL,
    voice_id     text NOT NULL,
    user_id      text,
    occurred_at  timestamptz NOT NULL DEFAULT now(),
    leased_until timestamptz,
    published_at timestamptz
);
CREATE INDEX outbox_unpublished ON voice_sync.outbox (id) WHERE published_at IS NULL;

-- Event buses that do not work (by a digest of their addresses), and when one process may try again.
CREATE TABLE voice_sync.buses (
    bus      uuid PRIMARY KEY,
    failures integer NOT NULL,
    retry_at timestamptz NOT NULL,
    probed_by uuid
);

-- What the provider showed of itself, for each key (by a digest of it) and base URL.
CREATE TABLE voice_sync.provider (
    account     uuid PRIMARY KEY,
    -- Kinds of voices that the list leaves out, each with the time until which that is believed.
    unlisted    jsonb NOT NULL DEFAULT '{}',
    -- The breaker: how often it opened without an answer since, until when it is open, and until
    -- when the one process that probes may be waited for.
    opened      integer NOT NULL DEFAULT 0,
    open_until  timestamptz,
    probe_until timestamptz,
    probed_by   uuid,
    -- No request before this, because the provider said so.
    hold_until  timestamptz,
    concurrency double precision,
    -- When a voice was last found: then the key is of the right workspace.
    found_at    timestamptz
);

-- A ledger of passes.
CREATE TABLE voice_sync.runs (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id      uuid NOT NULL UNIQUE,
    account     uuid,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT now(),
    duration_ms bigint NOT NULL,
    exit_code   smallint NOT NULL,
    found       bigint NOT NULL,
    counts      jsonb NOT NULL
);

-- The row after which an unfinished pass stopped: the next one begins there.
CREATE TABLE voice_sync.cursors (
    table_name   text PRIMARY KEY,
    resume_after text NOT NULL
);
