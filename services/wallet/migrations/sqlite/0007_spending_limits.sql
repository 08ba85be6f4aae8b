-- migrate:up

-- The first calendar day whose spending an account's own limits count; 0 without limits, and then none are looked for.
ALTER TABLE accounts ADD COLUMN spend_since INTEGER NOT NULL DEFAULT 0 CHECK (spend_since >= 0);

-- How many tokens an account may spend as a payer. Without a limit, as many as there are.
CREATE TABLE spending_limits (
    account_id TEXT PRIMARY KEY,
    day_limit INTEGER CHECK (day_limit >= 0),
    month_limit INTEGER CHECK (month_limit >= 0),
    revision INTEGER NOT NULL
) WITHOUT ROWID, STRICT;

-- Spending limits that were set, by their key.
CREATE TABLE limit_changes (
    created_by TEXT NOT NULL,
    change_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    day_limit INTEGER,
    month_limit INTEGER,
    reference TEXT NOT NULL,
    revision INTEGER NOT NULL,
    PRIMARY KEY (created_by, change_id)
) WITHOUT ROWID, STRICT;

-- migrate:down

DROP TABLE limit_changes;
DROP TABLE spending_limits;
ALTER TABLE accounts DROP COLUMN spend_since;
