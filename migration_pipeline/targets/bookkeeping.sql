-- What the migration knows of itself, kept beside the data so that both commit together.
CREATE SCHEMA IF NOT EXISTS migration;

-- The receipt of a file: written in the transaction of its last batch, so it is there exactly if the
-- whole file is. Dagster decides what runs; this proves what was loaded.
CREATE TABLE IF NOT EXISTS migration.loaded_file (
    profile         text NOT NULL,
    export_id       text NOT NULL,
    file            text NOT NULL,
    profile_version text NOT NULL,
    md5             text NOT NULL,
    bytes           bigint NOT NULL,
    items           bigint NOT NULL,
    loaded          bigint NOT NULL,
    skipped         jsonb NOT NULL,
    quarantined     bigint NOT NULL,
    rows            jsonb NOT NULL,
    seconds         double precision NOT NULL,
    run_id          text NOT NULL,
    loaded_at       timestamp with time zone NOT NULL DEFAULT now(),
    PRIMARY KEY (profile, export_id, file)
);
COMMENT ON TABLE migration.loaded_file IS 'Receipts: one row for each export file that is loaded whole.';
