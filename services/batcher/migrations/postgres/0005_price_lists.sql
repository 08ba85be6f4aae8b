-- migrate:up
-- Price lists. document: what was asked for, as JSON, which the version stands for. A list that has come into force stays
-- for ever; before that it may be withdrawn.
CREATE TABLE price_lists (
    version TEXT PRIMARY KEY,
    document TEXT NOT NULL,
    effective_time_us BIGINT NOT NULL CHECK (effective_time_us >= 0),
    create_time_us BIGINT NOT NULL,
    withdraw_time_us BIGINT NOT NULL DEFAULT 0,
    actor TEXT NOT NULL,
    put_revision BIGINT NOT NULL UNIQUE CHECK (put_revision > 0),
    last_revision BIGINT NOT NULL CHECK (last_revision >= put_revision),
    CHECK (withdraw_time_us = 0 OR withdraw_time_us < effective_time_us)
);

CREATE INDEX price_lists_by_time ON price_lists (effective_time_us, put_revision) WHERE withdraw_time_us = 0;

-- For how many of a hundred accounts a list is in force, from when on: it only grows.
CREATE TABLE price_rollouts (
    version TEXT NOT NULL REFERENCES price_lists (version),
    percent INTEGER NOT NULL CHECK (percent BETWEEN 1 AND 100),
    start_time_us BIGINT NOT NULL CHECK (start_time_us >= 0),
    PRIMARY KEY (version, percent)
);

-- The revision of the last change of any price: one row, which whoever changes prices locks, and whoever takes jobs shares.
CREATE TABLE price_head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    revision BIGINT NOT NULL CHECK (revision >= 0)
);

INSERT INTO price_head (id, revision) VALUES (1, 0);

-- migrate:down
DROP TABLE price_head;
DROP TABLE price_rollouts;
DROP TABLE price_lists;
