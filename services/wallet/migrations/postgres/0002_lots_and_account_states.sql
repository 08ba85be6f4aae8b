-- migrate:up

-- Whether an account may be used (1 OPEN, 2 FROZEN, 3 CLOSED), and how many lots with tokens left it has: an account without any
-- is never asked for them.
ALTER TABLE accounts ADD COLUMN state BIGINT NOT NULL DEFAULT 1 CHECK (state IN (1, 2, 3));
ALTER TABLE accounts ADD COLUMN lots BIGINT NOT NULL DEFAULT 0 CHECK (lots >= 0);

-- What a reservation has of which lot: a JSON list of [lot_id, amount] in the order of spending, empty without lots.
ALTER TABLE reservations ADD COLUMN pins TEXT NOT NULL DEFAULT '';

ALTER TABLE grants ADD COLUMN lifetime_us BIGINT;
ALTER TABLE grants ADD COLUMN priority BIGINT;
ALTER TABLE grants ADD COLUMN revoked BIGINT;

-- The first form of these two tables was never written to.
DROP TABLE pins;
DROP TABLE lots;

-- Tokens with a life of their own. The id is the revision of the journal that made the lot. A lot stays when it is used up:
-- a refund gives back to it.
CREATE TABLE lots (
    lot_id BIGINT PRIMARY KEY,
    account_id TEXT NOT NULL,
    asset TEXT NOT NULL,
    created_by TEXT NOT NULL,
    grant_id TEXT NOT NULL,
    priority BIGINT NOT NULL CHECK (priority BETWEEN 1 AND 100),
    expire_time_us BIGINT,
    granted BIGINT NOT NULL CHECK (granted > 0),
    remaining BIGINT NOT NULL,
    held BIGINT NOT NULL,
    grace BIGINT NOT NULL CHECK (grace IN (0, 1)),
    revoked BIGINT NOT NULL CHECK (revoked IN (0, 1)),
    revision BIGINT NOT NULL CHECK (revision >= lot_id),
    CHECK (held >= 0 AND remaining >= held AND remaining <= granted)
);

CREATE INDEX lots_left ON lots (account_id) WHERE remaining > 0;
CREATE INDEX lots_by_grant ON lots (created_by, grant_id);

-- Freezes, unfreezes and closes that were done, by their key.
CREATE TABLE account_changes (
    created_by TEXT NOT NULL,
    change_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('freeze', 'unfreeze', 'close')),
    forfeit BIGINT NOT NULL CHECK (forfeit IN (0, 1)),
    reference TEXT NOT NULL,
    revision BIGINT NOT NULL,
    PRIMARY KEY (created_by, change_id)
);

-- migrate:down

DROP TABLE account_changes;
DROP TABLE lots;
ALTER TABLE grants DROP COLUMN revoked;
ALTER TABLE grants DROP COLUMN priority;
ALTER TABLE grants DROP COLUMN lifetime_us;
ALTER TABLE reservations DROP COLUMN pins;
ALTER TABLE accounts DROP COLUMN lots;
ALTER TABLE accounts DROP COLUMN state;

CREATE TABLE lots (
    account_id TEXT NOT NULL,
    asset TEXT NOT NULL,
    lot_id BIGINT NOT NULL,
    priority BIGINT NOT NULL,
    expire_time_us BIGINT NOT NULL,
    granted BIGINT NOT NULL CHECK (granted > 0),
    remaining BIGINT NOT NULL,
    held BIGINT NOT NULL,
    PRIMARY KEY (account_id, asset, lot_id),
    CHECK (held >= 0 AND remaining >= held AND remaining <= granted)
);

CREATE TABLE pins (
    created_by TEXT NOT NULL,
    reservation_id TEXT NOT NULL,
    lot_id BIGINT NOT NULL,
    amount BIGINT NOT NULL CHECK (amount > 0),
    PRIMARY KEY (created_by, reservation_id, lot_id)
);
