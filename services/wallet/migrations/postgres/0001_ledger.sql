-- migrate:up

-- What happened, in order: the audit trail, the change feed and the content of the hash chain. All tables below it are
-- projections that can be rebuilt from it.
CREATE TABLE journal (
    revision BIGINT PRIMARY KEY,
    time_us BIGINT NOT NULL,
    kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    subject TEXT NOT NULL,
    previous BIGINT NOT NULL CHECK (previous >= 0 AND previous < revision),
    body TEXT NOT NULL,
    hash TEXT NOT NULL CHECK (length(hash) = 64)
);

CREATE FUNCTION journal_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the journal is append-only' USING ERRCODE = 'restrict_violation';
END
$$;

CREATE TRIGGER journal_refuses_change BEFORE UPDATE OR DELETE OR TRUNCATE ON journal
    FOR EACH STATEMENT EXECUTE FUNCTION journal_refuse();

CREATE TABLE journal_head (
    id SMALLINT PRIMARY KEY CHECK (id = 1),
    epoch TEXT NOT NULL,
    revision BIGINT NOT NULL CHECK (revision >= 0),
    hash TEXT NOT NULL CHECK (length(hash) = 64),
    time_us BIGINT NOT NULL
);

CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    fence BIGINT NOT NULL CHECK (fence > 0),
    expire_time_us BIGINT NOT NULL
);

-- What is counted, and in which unit: an asset's scale never changes, or all balances would mean something else.
CREATE TABLE assets (
    asset TEXT PRIMARY KEY,
    scale BIGINT NOT NULL CHECK (scale BETWEEN 0 AND 9)
);

-- What everybody has. Tokens only move between accounts, so that all balances, system accounts included, sum to 0 per asset.
CREATE TABLE accounts (
    account_id TEXT NOT NULL,
    asset TEXT NOT NULL,
    balance BIGINT NOT NULL,
    held BIGINT NOT NULL,
    -- The earliest instant at which something of this account ends by itself; may be early, never late.
    due_time_us BIGINT,
    create_time_us BIGINT NOT NULL,
    -- The account's last row in the journal: its history is a walk from there.
    revision BIGINT NOT NULL,
    PRIMARY KEY (account_id, asset),
    CHECK (held >= 0 AND balance >= held)
);

CREATE INDEX accounts_due ON accounts (due_time_us) WHERE due_time_us IS NOT NULL;

-- @issue gives tokens and @revenue takes them. Changed only under the lock of journal_head.
CREATE TABLE system_accounts (
    account_id TEXT NOT NULL,
    asset TEXT NOT NULL,
    balance BIGINT NOT NULL,
    PRIMARY KEY (account_id, asset)
);

-- Holds and what became of them. States: 1 HELD, 2 COMMITTED, 3 RELEASED, 4 EXPIRED.
CREATE TABLE reservations (
    created_by TEXT NOT NULL,
    reservation_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    payer_account_id TEXT NOT NULL,
    state BIGINT NOT NULL CHECK (state IN (1, 2, 3, 4)),
    reserved BIGINT NOT NULL,
    committed BIGINT NOT NULL,
    released BIGINT NOT NULL,
    expired BIGINT NOT NULL,
    refunded BIGINT NOT NULL,
    hold_us BIGINT NOT NULL,
    expire_time_us BIGINT NOT NULL,
    create_time_us BIGINT NOT NULL,
    price_version TEXT NOT NULL,
    reference TEXT NOT NULL,
    commit_amount BIGINT,
    commit_late BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    PRIMARY KEY (created_by, reservation_id),
    CHECK (committed >= 0 AND released >= 0 AND expired >= 0 AND refunded BETWEEN 0 AND committed),
    CHECK (CASE WHEN state = 1 THEN reserved > released AND committed = 0 AND expired = 0
                ELSE reserved = committed + released + expired END)
);

CREATE INDEX reservations_open ON reservations (payer_account_id, expire_time_us) WHERE state = 1;

-- Grants that were made, by their key.
CREATE TABLE grants (
    created_by TEXT NOT NULL,
    grant_id TEXT NOT NULL,
    account_id TEXT NOT NULL,
    asset TEXT NOT NULL,
    amount BIGINT NOT NULL CHECK (amount > 0),
    reference TEXT NOT NULL,
    revision BIGINT NOT NULL,
    PRIMARY KEY (created_by, grant_id)
);

-- Refunds and amendments that were done, by their key.
CREATE TABLE operations (
    created_by TEXT NOT NULL,
    reservation_id TEXT NOT NULL,
    operation_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('refund', 'amend')),
    amount BIGINT,
    hold_us BIGINT,
    revision BIGINT NOT NULL,
    PRIMARY KEY (created_by, reservation_id, operation_id)
);

-- Tokens with a life of their own: only grants that expire make lots, so that all other accounts pay nothing for them.
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

-- Which lots an open reservation holds.
CREATE TABLE pins (
    created_by TEXT NOT NULL,
    reservation_id TEXT NOT NULL,
    lot_id BIGINT NOT NULL,
    amount BIGINT NOT NULL CHECK (amount > 0),
    PRIMARY KEY (created_by, reservation_id, lot_id)
);

-- migrate:down

DROP TABLE pins;
DROP TABLE lots;
DROP TABLE operations;
DROP TABLE grants;
DROP TABLE reservations;
DROP TABLE system_accounts;
DROP TABLE accounts;
DROP TABLE assets;
DROP TABLE leases;
DROP TABLE journal_head;
DROP TABLE journal;
DROP FUNCTION journal_refuse();
