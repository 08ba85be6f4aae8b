-- migrate:up

-- Tokens that accounts sell for points. States: 1 OPEN, 2 FILLED, 3 CANCELLED, 4 EXPIRED. What open ones have left is in @escrow.
CREATE TABLE offers (
    account_id TEXT NOT NULL,
    offer_id TEXT NOT NULL,
    created_by TEXT NOT NULL,
    state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 4),
    tokens INTEGER NOT NULL CHECK (tokens > 0),
    price_points INTEGER NOT NULL CHECK (price_points > 0),
    sold INTEGER NOT NULL CHECK (sold >= 0),
    returned INTEGER NOT NULL CHECK (returned >= 0),
    lifetime_us INTEGER,
    reference TEXT NOT NULL,
    day INTEGER NOT NULL CHECK (day > 0),
    create_time_us INTEGER NOT NULL,
    expire_time_us INTEGER NOT NULL CHECK (expire_time_us > create_time_us),
    -- The revision that made it.
    number INTEGER NOT NULL,
    revision INTEGER NOT NULL CHECK (revision >= number),
    PRIMARY KEY (account_id, offer_id),
    CHECK (CASE state WHEN 1 THEN sold < tokens AND returned = 0
                      WHEN 2 THEN sold = tokens AND returned = 0
                      ELSE returned > 0 AND sold + returned = tokens END)
) WITHOUT ROWID, STRICT;

CREATE INDEX offers_open ON offers (price_points, number) WHERE state = 1;
CREATE INDEX offers_of_seller ON offers (account_id, number);
CREATE INDEX offers_open_of_seller ON offers (account_id, expire_time_us) WHERE state = 1;

-- What was bought of offers, by its key.
CREATE TABLE takes (
    created_by TEXT NOT NULL,
    take_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    seller_id TEXT NOT NULL CHECK (seller_id <> account_id),
    offer_id TEXT NOT NULL,
    tokens INTEGER NOT NULL CHECK (tokens > 0),
    points INTEGER NOT NULL CHECK (points > 0),
    revision INTEGER NOT NULL,
    PRIMARY KEY (created_by, take_id)
) WITHOUT ROWID, STRICT;

-- migrate:down

DROP TABLE takes;
DROP TABLE offers;
