-- migrate:up

-- Tokens that one account gave to another, by their key.
CREATE TABLE gifts (
    created_by TEXT NOT NULL,
    gift_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    receiver_id TEXT NOT NULL CHECK (receiver_id <> account_id),
    amount BIGINT NOT NULL CHECK (amount > 0),
    reference TEXT NOT NULL,
    revision BIGINT NOT NULL,
    PRIMARY KEY (created_by, gift_id)
);

-- migrate:down

DROP TABLE gifts;
