-- The wallet's queries on PostgreSQL. Lists travel as one JSON parameter; the same names stand in the file of the other dialect.

-- name: load_accounts(ids)
-- The accounts of a group, locked in the order of their ids.
SELECT a.* FROM accounts a
WHERE a.account_id IN (SELECT jsonb_array_elements_text(:ids::jsonb)) AND a.asset = 'TOKEN'
ORDER BY a.account_id FOR UPDATE OF a;

-- name: learn_payers(keys)
-- Who pays for the reservations of a group: read before any lock, because who pays never changes.
SELECT DISTINCT r.payer_account_id
FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN reservations r ON r.created_by = k.value ->> 0 AND r.reservation_id = k.value ->> 1;

-- name: load_reservations(keys)
-- The reservations of a group, locked after their accounts, in the order of their ids.
SELECT r.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN reservations r ON r.created_by = k.value ->> 0 AND r.reservation_id = k.value ->> 1
ORDER BY r.created_by, r.reservation_id FOR UPDATE OF r;

-- name: load_due_reservations(ids, now_us, limit)
-- The open holds of these accounts whose time has passed, first come first.
SELECT * FROM reservations
WHERE state = 1 AND payer_account_id IN (SELECT jsonb_array_elements_text(:ids::jsonb)) AND expire_time_us <= :now_us
ORDER BY expire_time_us, revision LIMIT :limit::bigint FOR UPDATE;

-- name: load_next_due(ids, now_us)
-- The earliest end of a hold that is still to come, per account.
SELECT payer_account_id, min(expire_time_us) AS due_time_us FROM reservations
WHERE state = 1 AND payer_account_id IN (SELECT jsonb_array_elements_text(:ids::jsonb)) AND expire_time_us > :now_us
GROUP BY payer_account_id;

-- name: load_grants(keys)
SELECT g.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN grants g ON g.created_by = k.value ->> 0 AND g.grant_id = k.value ->> 1;

-- name: load_operations(keys)
SELECT o.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN operations o ON o.created_by = k.value ->> 0 AND o.reservation_id = k.value ->> 1 AND o.operation_id = k.value ->> 2;

-- name: load_issued()
-- What was ever granted; it stands still while the head of the journal is locked.
SELECT -balance AS issued FROM system_accounts WHERE account_id = '@issue' AND asset = 'TOKEN';

-- name: open_asset(asset, scale)!
INSERT INTO assets (asset, scale) VALUES (:asset, :scale) ON CONFLICT (asset) DO NOTHING;

-- name: get_asset_scale(asset)
SELECT scale FROM assets WHERE asset = :asset;

-- name: get_account(account_id)
SELECT * FROM accounts WHERE account_id = :account_id AND asset = 'TOKEN';

-- name: get_due_amount(account_id, now_us)
-- What an account's holds still count and should not, because their time has passed.
SELECT coalesce(sum(reserved - released), 0)::bigint AS due FROM reservations
WHERE state = 1 AND payer_account_id = :account_id AND expire_time_us <= :now_us;

-- name: get_reservation(created_by, reservation_id)
SELECT * FROM reservations WHERE created_by = :created_by AND reservation_id = :reservation_id;

-- name: list_due_accounts(now_us, limit)
SELECT account_id FROM accounts WHERE due_time_us <= :now_us ORDER BY due_time_us LIMIT :limit::bigint;

-- name: insert_account(account_id, asset, balance, held, due_time_us, create_time_us, revision)!
-- No upsert: when two replicas open one account, the second must fail here and run its group again.
INSERT INTO accounts (account_id, asset, balance, held, due_time_us, create_time_us, revision)
VALUES (:account_id, :asset, :balance, :held, :due_time_us, :create_time_us, :revision);

-- name: update_account(account_id, asset, balance, held, due_time_us, revision)!
UPDATE accounts SET balance = :balance, held = :held, due_time_us = :due_time_us, revision = :revision
WHERE account_id = :account_id AND asset = :asset;

-- name: insert_reservation(created_by, reservation_id, account_id, payer_account_id, state, reserved, committed, released, expired, refunded, hold_us, expire_time_us, create_time_us, price_version, reference, commit_amount, commit_late, revision)!
INSERT INTO reservations (
    created_by, reservation_id, account_id, payer_account_id, state, reserved, committed, released, expired, refunded,
    hold_us, expire_time_us, create_time_us, price_version, reference, commit_amount, commit_late, revision
) VALUES (
    :created_by, :reservation_id, :account_id, :payer_account_id, :state, :reserved, :committed, :released, :expired, :refunded,
    :hold_us, :expire_time_us, :create_time_us, :price_version, :reference, :commit_amount, :commit_late, :revision
);

-- name: update_reservation(created_by, reservation_id, state, committed, released, expired, refunded, expire_time_us, commit_amount, commit_late, revision)!
UPDATE reservations SET
    state = :state, committed = :committed, released = :released, expired = :expired, refunded = :refunded,
    expire_time_us = :expire_time_us, commit_amount = :commit_amount, commit_late = :commit_late, revision = :revision
WHERE created_by = :created_by AND reservation_id = :reservation_id;

-- name: insert_grant(created_by, grant_id, account_id, asset, amount, reference, revision)!
INSERT INTO grants (created_by, grant_id, account_id, asset, amount, reference, revision)
VALUES (:created_by, :grant_id, :account_id, :asset, :amount, :reference, :revision);

-- name: insert_operation(created_by, reservation_id, operation_id, kind, amount, hold_us, revision)!
INSERT INTO operations (created_by, reservation_id, operation_id, kind, amount, hold_us, revision)
VALUES (:created_by, :reservation_id, :operation_id, :kind, :amount, :hold_us, :revision);

-- name: move_system_account(account_id, asset, change)!
INSERT INTO system_accounts (account_id, asset, balance) VALUES (:account_id, :asset, :change)
ON CONFLICT (account_id, asset) DO UPDATE SET balance = system_accounts.balance + excluded.balance;

-- name: sum_balances()
-- Per asset, all that users and system accounts have: always 0.
SELECT asset, sum(balance)::bigint AS balance FROM (
    SELECT asset, balance FROM accounts UNION ALL SELECT asset, balance FROM system_accounts
) AS everybody GROUP BY asset;
