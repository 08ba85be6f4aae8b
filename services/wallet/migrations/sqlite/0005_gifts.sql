-- migrate:up

-- Tokens that one account gave to another, by their key.
CREATE TABLE gifts (
    created_by TEXT NOT NULL,
    gift_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    receiver_id TEXT NOT NULL CHECK (receiver_id <> account_id),
    amount INTEGER NOT NULL CHECK (amount > 0),
    reference TEXT NOT NULL,
    revision INTEGER NOT NULL,
    PRIMARY KEY (created_by, gift_id)
) WITHOUT ROWID, STRICT;

-- migrate:down

DROP TABLE gifts;
