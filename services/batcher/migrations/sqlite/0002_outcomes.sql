-- migrate:up
-- How many tokens a job's prompt has for the provider, as estimated when it was stored.
ALTER TABLE jobs ADD COLUMN prompt_tokens INTEGER NOT NULL DEFAULT 0 CHECK (prompt_tokens >= 0);

-- tokens: of all its jobs' prompts. failures: of the batch's present step, in a row, the first at failing_since_us.
ALTER TABLE batches ADD COLUMN tokens INTEGER NOT NULL DEFAULT 0 CHECK (tokens >= 0);
ALTER TABLE batches ADD COLUMN failures INTEGER NOT NULL DEFAULT 0 CHECK (failures >= 0);
ALTER TABLE batches ADD COLUMN failing_since_us INTEGER NOT NULL DEFAULT 0;

-- Whether the try counts against the job's number of tries, once it has ended.
ALTER TABLE attempts ADD COLUMN counted INTEGER NOT NULL DEFAULT 1;

-- What refusals have taught about the queue of tokens of each model at the provider.
CREATE TABLE allowances (
    model TEXT PRIMARY KEY,
    learnt_tokens INTEGER NOT NULL CHECK (learnt_tokens >= 0),
    guessed INTEGER NOT NULL,
    learn_time_us INTEGER NOT NULL,
    refusals INTEGER NOT NULL CHECK (refusals >= 0),
    not_before_us INTEGER NOT NULL
) STRICT;

-- migrate:down
DROP TABLE allowances;
ALTER TABLE attempts DROP COLUMN counted;
ALTER TABLE batches DROP COLUMN failing_since_us;
ALTER TABLE batches DROP COLUMN failures;
ALTER TABLE batches DROP COLUMN tokens;
ALTER TABLE jobs DROP COLUMN prompt_tokens;
