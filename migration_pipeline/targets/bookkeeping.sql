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
ALTER TABLE migration.loaded_file
    ADD COLUMN IF NOT EXISTS unrouted   jsonb  NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS collisions jsonb  NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS changed    bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS nul        bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS retries    bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS export_time timestamp with time zone,
    ADD COLUMN IF NOT EXISTS changed_rows jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS rounded      jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS superseded   bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS deleted_rows jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS unchanged_rows jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS throttled jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS accelerated bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS not_accelerated jsonb NOT NULL DEFAULT '{}',
    -- Why nothing vouches for the completeness of its export; '' where its manifest does.
    ADD COLUMN IF NOT EXISTS doubt text NOT NULL DEFAULT '';

-- Items that became no row because something is wrong with them. The raw line is kept, so nothing is lost:
-- `migration-pipeline replay` loads them once the profile or the table is mended.
CREATE TABLE IF NOT EXISTS migration.quarantine (
    profile         text NOT NULL,
    export_id       text NOT NULL,
    file            text NOT NULL,
    line            bigint NOT NULL,
    raw             bytea NOT NULL,
    table_name      text,
    sqlstate        text,
    reason          text NOT NULL,
    profile_version text NOT NULL,
    run_id          text NOT NULL,
    quarantined_at  timestamp with time zone NOT NULL DEFAULT now(),
    PRIMARY KEY (profile, export_id, file, line)
);
-- Which item it is, where windows need to know: a newer state of it ends the quarantine of an older one.
ALTER TABLE migration.quarantine ADD COLUMN IF NOT EXISTS item uuid;
CREATE INDEX IF NOT EXISTS quarantine_item ON migration.quarantine (item);
COMMENT ON TABLE migration.quarantine IS
    'Bad items, each with its line number (from 1), its raw line (convert_from(raw, ''UTF8'') shows it) and the reason.';

-- Examples of rows that replaced another item's row under the same key; at most some a file and table.
CREATE TABLE IF NOT EXISTS migration.collision (
    profile    text NOT NULL,
    export_id  text NOT NULL,
    file       text NOT NULL,
    table_name text NOT NULL,
    key        jsonb NOT NULL,
    seen_at    timestamp with time zone NOT NULL DEFAULT now(),
    PRIMARY KEY (profile, export_id, file, table_name, key)
);
COMMENT ON TABLE migration.collision IS
    'Keys whose row was there with other values when a file was loaded: two items of one key, or an older load.';

-- What the last verification of each table found: rows of the export, read again and compared with the table.
CREATE TABLE IF NOT EXISTS migration.verification (
    profile     text NOT NULL,
    table_name  text NOT NULL,
    files       bigint NOT NULL,
    compared    bigint NOT NULL,
    same        bigint NOT NULL,
    missing     bigint NOT NULL,
    different   bigint NOT NULL,
    newer       bigint NOT NULL,
    extra       bigint NOT NULL,
    columns     jsonb NOT NULL,
    run_id      text NOT NULL,
    verified_at timestamp with time zone NOT NULL DEFAULT now(),
    PRIMARY KEY (profile, table_name)
);
-- When it began, with what, and what the table was then: a later change of it is seen by that.
ALTER TABLE migration.verification
    ADD COLUMN IF NOT EXISTS began_at        timestamp with time zone,
    ADD COLUMN IF NOT EXISTS profile_version text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS files_md5       text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS state           jsonb;
COMMENT ON TABLE migration.verification IS 'The last comparison of each table with the export; counts are of rows.';

-- Examples of what it found.
CREATE TABLE IF NOT EXISTS migration.difference (
    profile    text NOT NULL,
    table_name text NOT NULL,
    export_id  text NOT NULL,
    file       text NOT NULL,
    kind       text NOT NULL,
    columns    text[] NOT NULL,
    key        jsonb NOT NULL
);
-- A table without a key cannot be deleted from where all tables are published.
ALTER TABLE migration.difference ADD COLUMN IF NOT EXISTS id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY;
COMMENT ON TABLE migration.difference IS
    'Rows that are missing, different, or extra (made by no item), by key; some of them, from the last verification.';

-- A file's part of the landing tables, while it is loaded and after. The rows of slice 7 of landing.shop_events lie
-- in landing.shop_events_7, which is a child of landing.shop_events exactly if the slice is landed.
CREATE TABLE IF NOT EXISTS migration.slice (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    profile   text NOT NULL,
    export_id text NOT NULL,
    file      text NOT NULL,
    batches   bigint NOT NULL DEFAULT 0,
    rows      jsonb NOT NULL DEFAULT '{}',
    run_id    text NOT NULL,
    landed_at timestamp with time zone
);
ALTER TABLE migration.slice ADD COLUMN IF NOT EXISTS alive_until timestamp with time zone NOT NULL DEFAULT now();
COMMENT ON TABLE migration.slice IS
    'Slices of landing tables: one landed for each file, others of loads that run or were killed.';
CREATE UNIQUE INDEX IF NOT EXISTS slice_landed
    ON migration.slice (profile, export_id, file) WHERE landed_at IS NOT NULL;

-- The receipt of an aggregate: written after its last part, if it adds up.
CREATE TABLE IF NOT EXISTS migration.aggregate (
    profile         text NOT NULL,
    table_name      text NOT NULL,
    profile_version text NOT NULL,
    sql_md5         text NOT NULL,
    files           bigint NOT NULL,
    groups          bigint NOT NULL,
    rows            bigint NOT NULL,
    new             bigint NOT NULL,
    changed         bigint NOT NULL,
    unchanged       bigint NOT NULL,
    deleted         bigint NOT NULL,
    parts           bigint NOT NULL,
    retries         bigint NOT NULL,
    seconds         double precision NOT NULL,
    run_id          text NOT NULL,
    made_at         timestamp with time zone NOT NULL DEFAULT now(),
    PRIMARY KEY (profile, table_name)
);
ALTER TABLE migration.aggregate
    ADD COLUMN IF NOT EXISTS files_md5 text NOT NULL DEFAULT '',
    ADD COLUMN IF NOT EXISTS rounded jsonb NOT NULL DEFAULT '{}';
COMMENT ON TABLE migration.aggregate IS
    'Receipts: one row for each aggregate that was made whole, of all files of its plan.';

-- The items that windows of incremental exports have touched: a full export says nothing of these any more.
CREATE TABLE IF NOT EXISTS migration.item (
    item      uuid NOT NULL PRIMARY KEY,
    profile   text NOT NULL,
    written   bigint NOT NULL,
    window_id bigint NOT NULL,
    place     bigint NOT NULL,
    owned     jsonb NOT NULL,
    id        bigint GENERATED ALWAYS AS IDENTITY UNIQUE
);
COMMENT ON TABLE migration.item IS
    'Items that windows have touched: digest of profile and key, time of the last write (microseconds), keys of its rows.';

-- Keys of rows that items gave up or took within a window. What one of its items takes, no other one of it takes away.
CREATE TABLE IF NOT EXISTS migration.claim (
    profile    text NOT NULL,
    window_id  bigint NOT NULL,
    table_name text NOT NULL,
    key        jsonb NOT NULL,
    taken      boolean NOT NULL,
    PRIMARY KEY (profile, window_id, table_name, key)
);
-- By whom: after a change of the profile an item may give up what it took before.
ALTER TABLE migration.claim ADD COLUMN IF NOT EXISTS taker uuid;
COMMENT ON TABLE migration.claim IS
    'Keys of rows that items of a window gave up or took: needed whenever files of it are loaded; of no use after the cut-over.';

-- Rows of full exports in landing tables that were taken away for an item which a window has touched: of equal rows of several
-- files it may have been another file's, until one of the two files is loaded again.
CREATE TABLE IF NOT EXISTS migration.taken (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    profile    text NOT NULL,
    item       uuid NOT NULL,
    table_name text NOT NULL,
    slice_id   bigint NOT NULL,
    content    text NOT NULL,
    back_by    bigint
);
CREATE INDEX IF NOT EXISTS taken_item ON migration.taken (item);
CREATE INDEX IF NOT EXISTS taken_slice ON migration.taken (slice_id);
COMMENT ON TABLE migration.taken IS
    'Landed rows that windows took away, with the slice that they were in; back_by: a slice that was made without their item.';

-- How a running migration is steered: the newest row of a profile holds, those before it say what held when, and who said so.
-- Where a column is NULL, the run config holds; 0 is no limit.
CREATE TABLE IF NOT EXISTS migration.throttle (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    profile          text NOT NULL,
    paused           boolean NOT NULL,
    max_lag_seconds  double precision,
    max_active       bigint,
    items_per_second bigint,
    changed_by       text NOT NULL,
    changed_at       timestamp with time zone NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS throttle_newest ON migration.throttle (profile, id DESC);
COMMENT ON TABLE migration.throttle IS 'What `migration-pipeline throttle` has set, the newest last; running files follow the last row.';

-- Until when the items are paid for that loads may write, where they are limited to so many a second, all together.
CREATE TABLE IF NOT EXISTS migration.pace (
    profile    text NOT NULL PRIMARY KEY,
    paid_until timestamp with time zone NOT NULL
);
COMMENT ON TABLE migration.pace IS 'When the next batch may be written, where items a second are limited.';

-- Batches that were copied into a table, each noted by the transaction that copied it: rows of its id (xmin) are untouched since.
CREATE TABLE IF NOT EXISTS migration.batch (
    profile     text NOT NULL,
    export_id   text NOT NULL,
    file        text NOT NULL,
    table_name  text NOT NULL,
    digest      text NOT NULL,
    rows        bigint NOT NULL,
    first_block bigint NOT NULL,
    last_block  bigint NOT NULL,
    transaction bigint NOT NULL,
    PRIMARY KEY (profile, export_id, file, table_name, digest)
);
COMMENT ON TABLE migration.batch IS
    'Loaded batches by the SHA-256 of their rows: a rerun leaves those alone whose rows are all there, untouched.';

-- Sessions that write, each with the number of its transactions, which counts with each of them. A server that was promoted before it had
-- all of the former writer lacks the last ones: what builds on these must not go on there.
CREATE TABLE IF NOT EXISTS migration.session (
    token        text NOT NULL PRIMARY KEY,
    transactions bigint NOT NULL,
    last_at      timestamp with time zone NOT NULL
);
COMMENT ON TABLE migration.session IS
    'Sessions that write, and how many transactions each has committed; kept for a year, and of no use once they have ended.';
