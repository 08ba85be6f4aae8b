-- migrate:up
-- Batches of which the provider has told that they ended, under its ids: they are asked about before their time.
CREATE TABLE due_batches (
    provider_batch_id TEXT PRIMARY KEY CHECK (length(provider_batch_id) BETWEEN 1 AND 128),
    create_time_us BIGINT NOT NULL
);

-- migrate:down
DROP TABLE due_batches;
