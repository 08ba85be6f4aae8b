-- migrate:up

-- 1 once a reservation that the account pays for was committed: the first one is worth an achievement.
ALTER TABLE accounts ADD COLUMN worked BIGINT NOT NULL DEFAULT 0 CHECK (worked IN (0, 1));
UPDATE accounts SET worked = 1
WHERE account_id IN (SELECT payer_account_id FROM reservations WHERE state = 2) AND asset = 'TOKEN';

-- How much was used of what is limited by calendar day, by month (its first day), or for ever (day 0).
CREATE TABLE counters (
    account_id TEXT NOT NULL,
    counter TEXT NOT NULL,
    day BIGINT NOT NULL CHECK (day >= 0),
    amount BIGINT NOT NULL CHECK (amount >= 0),
    revision BIGINT NOT NULL,
    PRIMARY KEY (account_id, counter, day)
);

-- What was earned or converted, by its key. Points are negative where they were spent.
CREATE TABLE earnings (
    created_by TEXT NOT NULL,
    earning_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('daily', 'activity', 'convert', 'achievement')),
    name TEXT NOT NULL,
    tokens BIGINT NOT NULL CHECK (tokens >= 0),
    points BIGINT NOT NULL,
    day BIGINT NOT NULL CHECK (day > 0),
    rules TEXT NOT NULL,
    revision BIGINT NOT NULL,
    PRIMARY KEY (created_by, earning_id)
);

-- On how many days in a row an account has claimed its bonus; one that has never claimed has no row.
CREATE TABLE streaks (
    account_id TEXT PRIMARY KEY,
    day BIGINT NOT NULL CHECK (day > 0),
    days BIGINT NOT NULL CHECK (days > 0),
    best_days BIGINT NOT NULL CHECK (best_days >= days),
    grace_day BIGINT NOT NULL CHECK (grace_day BETWEEN 0 AND day),
    revision BIGINT NOT NULL
);

-- Versions of the earning rules that were put at run time.
CREATE TABLE rule_sets (
    version TEXT PRIMARY KEY,
    actor TEXT NOT NULL,
    effective_time_us BIGINT NOT NULL,
    at_once BIGINT NOT NULL CHECK (at_once IN (0, 1)),
    rollout_percent BIGINT NOT NULL CHECK (rollout_percent BETWEEN 0 AND 100),
    cohort TEXT NOT NULL,
    document TEXT NOT NULL,
    revision BIGINT NOT NULL
);

-- migrate:down

DROP TABLE rule_sets;
DROP TABLE streaks;
DROP TABLE earnings;
DROP TABLE counters;
DELETE FROM accounts WHERE asset <> 'TOKEN';
ALTER TABLE accounts DROP COLUMN worked;
