-- What a completion would have written into columns that the application's table does not have. Nothing
-- here is ever removed: it stands nowhere else, and a row that is not seen may only be hidden.
CREATE TABLE voice_sync.completions (
    row_id       text PRIMARY KEY,
    provider_id  text NOT NULL,
    preview_url  text,
    completed_at timestamptz NOT NULL DEFAULT now()
);

-- When a table was given its column `status`: voices that were there before are in processing since.
CREATE TABLE voice_sync.adoptions (
    table_name text PRIMARY KEY,
    adopted_at timestamptz NOT NULL DEFAULT now()
);
