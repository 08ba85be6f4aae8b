-- The wallet's queries on SQLite. Lists travel as one JSON parameter; the same names stand in the file of the other dialect.

-- name: load_accounts(ids)
-- The accounts of a group, locked in the order of their ids.
SELECT a.* FROM json_each(:ids) ids CROSS JOIN accounts a ON a.account_id = ids.value AND a.asset = 'TOKEN';

-- name: learn_payers(keys)
-- Who pays for the reservations of a group: read before any lock, because who pays never changes.
SELECT DISTINCT r.payer_account_id
FROM json_each(:keys) k
CROSS JOIN reservations r ON r.created_by = k.value ->> 0 AND r.reservation_id = k.value ->> 1;

-- name: load_reservations(keys)
-- The reservations of a group, locked after their accounts, in the order of their ids.
SELECT r.* FROM json_each(:keys) k
CROSS JOIN reservations r ON r.created_by = k.value ->> 0 AND r.reservation_id = k.value ->> 1;

-- name: load_due_reservations(ids, now_us, limit)
-- The open holds of these accounts whose time has passed, first come first.
SELECT * FROM reservations
WHERE state = 1 AND payer_account_id IN (SELECT value FROM json_each(:ids)) AND expire_time_us <= :now_us
ORDER BY expire_time_us, revision LIMIT :limit;

-- name: load_next_due(ids, now_us)
-- The earliest end of a hold that is still to come, per account.
SELECT payer_account_id, min(expire_time_us) AS due_time_us FROM reservations
WHERE state = 1 AND payer_account_id IN (SELECT value FROM json_each(:ids)) AND expire_time_us > :now_us
GROUP BY payer_account_id;

-- name: load_grants(keys)
SELECT g.* FROM json_each(:keys) k
CROSS JOIN grants g ON g.created_by = k.value ->> 0 AND g.grant_id = k.value ->> 1;

-- name: load_operations(keys)
SELECT o.* FROM json_each(:keys) k
CROSS JOIN operations o ON o.created_by = k.value ->> 0 AND o.reservation_id = k.value ->> 1 AND o.operation_id = k.value ->> 2;

-- name: load_account_changes(keys)
SELECT c.* FROM json_each(:keys) k
CROSS JOIN account_changes c ON c.created_by = k.value ->> 0 AND c.change_id = k.value ->> 1;

-- name: load_lots(account_ids, lot_ids, keys)
-- The lots with tokens left of some accounts, some by id, and those of some grants. Their accounts are locked, and so are they.
SELECT * FROM lots WHERE remaining > 0 AND account_id IN (SELECT value FROM json_each(:account_ids))
UNION SELECT * FROM lots WHERE lot_id IN (SELECT value FROM json_each(:lot_ids))
UNION SELECT l.* FROM json_each(:keys) k
CROSS JOIN lots l ON l.created_by = k.value ->> 0 AND l.grant_id = k.value ->> 1
-- In one order everywhere: an entry lists the lots that it touches, and its hash must be the same on every database.
ORDER BY lot_id;

-- name: load_points(ids)
-- The points of accounts whose tokens are locked, and they with them.
SELECT a.* FROM json_each(:ids) ids CROSS JOIN accounts a ON a.account_id = ids.value AND a.asset = 'POINT';

-- name: load_streaks(ids)
SELECT s.* FROM json_each(:ids) ids CROSS JOIN streaks s ON s.account_id = ids.value;

-- name: load_earnings(keys)
SELECT e.* FROM json_each(:keys) k
CROSS JOIN earnings e ON e.created_by = k.value ->> 0 AND e.earning_id = k.value ->> 1;

-- name: load_counters(keys)
SELECT c.* FROM json_each(:keys) k
CROSS JOIN counters c ON c.account_id = k.value ->> 0 AND c.counter = k.value ->> 1 AND c.day = k.value ->> 2;

-- name: load_rule_sets()
SELECT * FROM rule_sets ORDER BY revision;

-- name: get_points(account_id)
SELECT * FROM accounts WHERE account_id = :account_id AND asset = 'POINT';

-- name: get_streak(account_id)
SELECT * FROM streaks WHERE account_id = :account_id;

-- name: list_counters(account_id, since_day)
-- What an account has used since a day, and for ever.
SELECT * FROM counters WHERE account_id = :account_id AND (day = 0 OR day >= :since_day) ORDER BY counter, day;

-- name: load_teams(keys)
-- Their accounts are locked, and they with them; so are their members.
SELECT t.* FROM json_each(:keys) k
CROSS JOIN teams t ON t.team_id = k.value ->> 0;

-- name: load_members(keys)
SELECT t.* FROM json_each(:keys) k
CROSS JOIN members t ON t.team_id = k.value ->> 0 AND t.member_id = k.value ->> 1;

-- name: load_team_changes(keys)
SELECT t.* FROM json_each(:keys) k
CROSS JOIN team_changes t ON t.created_by = k.value ->> 0 AND t.change_id = k.value ->> 1;

-- name: load_gifts(keys)
SELECT t.* FROM json_each(:keys) k
CROSS JOIN gifts t ON t.created_by = k.value ->> 0 AND t.gift_id = k.value ->> 1;

-- name: load_offers(keys)
-- Their sellers are locked, and they with them; so are takes, with their sellers and buyers.
SELECT t.* FROM json_each(:keys) k
CROSS JOIN offers t ON t.account_id = k.value ->> 0 AND t.offer_id = k.value ->> 1;

-- name: load_takes(keys)
SELECT t.* FROM json_each(:keys) k
CROSS JOIN takes t ON t.created_by = k.value ->> 0 AND t.take_id = k.value ->> 1;

-- name: load_open_offers(ids)
-- All that these accounts have open; ordered, so that what ends together ends in one order on every database.
SELECT * FROM offers WHERE state = 1 AND account_id IN (SELECT value FROM json_each(:ids)) ORDER BY number;

-- name: get_offer(account_id, offer_id)
SELECT * FROM offers WHERE account_id = :account_id AND offer_id = :offer_id;

-- name: get_due_offered(account_id, now_us)
-- What of an account's offers is back already, because their time has passed.
SELECT coalesce(sum(tokens - sold), 0) AS due FROM offers
WHERE state = 1 AND account_id = :account_id AND expire_time_us <= :now_us;

-- name: list_due_offered(account_id, now_us)
-- The same by the day on which it was offered, where it counts no longer.
SELECT day, sum(tokens - sold) AS due FROM offers
WHERE state = 1 AND account_id = :account_id AND expire_time_us <= :now_us GROUP BY day;

-- name: list_market(now_us, price_max, after_price, after_number, limit)
-- What can be bought now, cheapest first, of one price the oldest first.
SELECT o.* FROM offers o
JOIN accounts a ON a.account_id = o.account_id AND a.asset = 'TOKEN' AND a.state = 1
WHERE o.state = 1 AND o.expire_time_us > :now_us AND o.price_points <= :price_max
    AND (o.price_points, o.number) > (:after_price, :after_number)
ORDER BY o.price_points, o.number LIMIT :limit;

-- name: list_offers(account_id, before_number, limit)
-- All offers of an account, newest first.
SELECT * FROM offers WHERE account_id = :account_id AND number < :before_number ORDER BY number DESC LIMIT :limit;

-- name: load_spending_limits(keys)
-- Their accounts are locked, and they with them.
SELECT t.* FROM json_each(:keys) k
CROSS JOIN spending_limits t ON t.account_id = k.value ->> 0;

-- name: load_limit_changes(keys)
SELECT t.* FROM json_each(:keys) k
CROSS JOIN limit_changes t ON t.created_by = k.value ->> 0 AND t.change_id = k.value ->> 1;

-- name: get_team(team_id)
SELECT * FROM teams WHERE team_id = :team_id;

-- name: get_member(team_id, member_id)
SELECT * FROM members WHERE team_id = :team_id AND member_id = :member_id AND role > 0;

-- name: list_members(team_id, after_member_id, limit)
SELECT * FROM members WHERE team_id = :team_id AND member_id > :after_member_id AND role > 0
ORDER BY member_id LIMIT :limit;

-- name: list_due_spending(account_id, now_us)
-- What of a team's holds still counts for members and should not, because the time of those holds has passed.
SELECT account_id AS member_id, spend_day, sum(reserved - released) AS due FROM reservations
WHERE state = 1 AND payer_account_id = :account_id AND expire_time_us <= :now_us AND spend_day > 0
GROUP BY account_id, spend_day;

-- name: get_spending_limits(account_id)
SELECT * FROM spending_limits WHERE account_id = :account_id;

-- name: get_due_own_spending(account_id, now_us, day_us, month_us)
-- As list_due_spending, of all that an account pays for: of the holds made since the day began, and since the month did.
SELECT coalesce(sum(CASE WHEN create_time_us >= :day_us THEN reserved - released END), 0) AS day,
    coalesce(sum(reserved - released), 0) AS month
FROM reservations
WHERE state = 1 AND payer_account_id = :account_id AND expire_time_us <= :now_us AND create_time_us >= :month_us;

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
SELECT coalesce(sum(reserved - released), 0) AS due FROM reservations
WHERE state = 1 AND payer_account_id = :account_id AND expire_time_us <= :now_us;

-- name: get_reservation(created_by, reservation_id)
SELECT * FROM reservations WHERE created_by = :created_by AND reservation_id = :reservation_id;

-- name: list_due_reservations(account_id, now_us, after_us, after_revision, limit)
-- As load_due_reservations, page by page and without a lock.
SELECT * FROM reservations
WHERE state = 1 AND payer_account_id = :account_id AND expire_time_us <= :now_us
    AND (expire_time_us, revision) > (:after_us, :after_revision)
ORDER BY expire_time_us, revision LIMIT :limit;

-- name: list_lots(account_id)
SELECT * FROM lots WHERE remaining > 0 AND account_id = :account_id;

-- name: list_open_reservations(account_id, after_us, after_created_by, after_reservation_id, limit)
-- The open reservations that an account pays for, behind one of them.
SELECT * FROM reservations
WHERE state = 1 AND payer_account_id = :account_id AND expire_time_us >= :after_us
    AND (expire_time_us, created_by, reservation_id) > (:after_us, :after_created_by, :after_reservation_id)
ORDER BY expire_time_us, created_by, reservation_id LIMIT :limit;

-- name: get_row_at(revision, time_us)
-- The last row of an account's history that is not after an instant: a walk back from its newest.
WITH RECURSIVE walk AS (
    SELECT revision, previous, time_us FROM journal WHERE revision = :revision
    UNION ALL
    SELECT j.revision, j.previous, j.time_us FROM walk JOIN journal j ON j.revision = walk.previous
    WHERE walk.time_us > :time_us
)
SELECT j.revision, j.time_us, j.kind, j.actor, j.subject, j.previous, j.body, j.hash
FROM walk JOIN journal j ON j.revision = walk.revision WHERE walk.time_us <= :time_us;

-- name: list_due_accounts(now_us, limit)
SELECT account_id FROM accounts WHERE due_time_us <= :now_us ORDER BY due_time_us LIMIT :limit;

-- name: insert_account(account_id, asset, balance, held, due_time_us, create_time_us, revision, state, lots, worked, team, spend_since)!
-- No upsert: when two replicas open one account, the second must fail here and run its group again.
INSERT INTO accounts (account_id, asset, balance, held, due_time_us, create_time_us, revision, state, lots, worked,
    team, spend_since)
VALUES (:account_id, :asset, :balance, :held, :due_time_us, :create_time_us, :revision, :state, :lots, :worked, :team,
    :spend_since);

-- name: update_account(account_id, asset, balance, held, due_time_us, revision, state, lots, worked, team, spend_since)!
UPDATE accounts SET balance = :balance, held = :held, due_time_us = :due_time_us, revision = :revision,
    state = :state, lots = :lots, worked = :worked, team = :team, spend_since = :spend_since
WHERE account_id = :account_id AND asset = :asset;

-- name: insert_reservation(created_by, reservation_id, account_id, payer_account_id, state, reserved, committed, released, expired, refunded, hold_us, expire_time_us, create_time_us, price_version, reference, commit_amount, commit_late, revision, pins, spend_day)!
INSERT INTO reservations (created_by, reservation_id, account_id, payer_account_id, state, reserved, committed,
    released, expired, refunded, hold_us, expire_time_us, create_time_us, price_version, reference, commit_amount,
    commit_late, revision, pins, spend_day)
VALUES (:created_by, :reservation_id, :account_id, :payer_account_id, :state, :reserved, :committed, :released,
    :expired, :refunded, :hold_us, :expire_time_us, :create_time_us, :price_version, :reference, :commit_amount,
    :commit_late, :revision, :pins, :spend_day);

-- name: update_reservation(created_by, reservation_id, state, committed, released, expired, refunded, expire_time_us, commit_amount, commit_late, revision, pins)!
UPDATE reservations SET state = :state, committed = :committed, released = :released, expired = :expired,
    refunded = :refunded, expire_time_us = :expire_time_us, commit_amount = :commit_amount,
    commit_late = :commit_late, revision = :revision, pins = :pins
WHERE created_by = :created_by AND reservation_id = :reservation_id;

-- name: insert_lot(lot_id, account_id, asset, created_by, grant_id, priority, expire_time_us, granted, remaining, held, grace, revoked, revision)!
INSERT INTO lots (lot_id, account_id, asset, created_by, grant_id, priority, expire_time_us, granted, remaining,
    held, grace, revoked, revision)
VALUES (:lot_id, :account_id, :asset, :created_by, :grant_id, :priority, :expire_time_us, :granted, :remaining,
    :held, :grace, :revoked, :revision);

-- name: update_lot(lot_id, expire_time_us, remaining, held, revoked, revision)!
UPDATE lots SET expire_time_us = :expire_time_us, remaining = :remaining, held = :held, revoked = :revoked,
    revision = :revision
WHERE lot_id = :lot_id;

-- name: insert_grant(created_by, grant_id, account_id, asset, amount, reference, revision, lifetime_us, priority, revoked)!
INSERT INTO grants (created_by, grant_id, account_id, asset, amount, reference, revision, lifetime_us, priority,
    revoked)
VALUES (:created_by, :grant_id, :account_id, :asset, :amount, :reference, :revision, :lifetime_us, :priority, :revoked);

-- name: update_grant(created_by, grant_id, revoked, revision)!
UPDATE grants SET revoked = :revoked, revision = :revision
WHERE created_by = :created_by AND grant_id = :grant_id;

-- name: insert_operation(created_by, reservation_id, operation_id, kind, amount, hold_us, revision)!
INSERT INTO operations (created_by, reservation_id, operation_id, kind, amount, hold_us, revision)
VALUES (:created_by, :reservation_id, :operation_id, :kind, :amount, :hold_us, :revision);

-- name: insert_account_change(created_by, change_id, account_id, kind, forfeit, reference, revision)!
INSERT INTO account_changes (created_by, change_id, account_id, kind, forfeit, reference, revision)
VALUES (:created_by, :change_id, :account_id, :kind, :forfeit, :reference, :revision);

-- name: insert_counter(account_id, counter, day, amount, revision)!
INSERT INTO counters (account_id, counter, day, amount, revision)
VALUES (:account_id, :counter, :day, :amount, :revision);

-- name: update_counter(account_id, counter, day, amount, revision)!
UPDATE counters SET amount = :amount, revision = :revision
WHERE account_id = :account_id AND counter = :counter AND day = :day;

-- name: insert_earning(created_by, earning_id, account_id, kind, name, tokens, points, day, rules, revision)!
INSERT INTO earnings (created_by, earning_id, account_id, kind, name, tokens, points, day, rules, revision)
VALUES (:created_by, :earning_id, :account_id, :kind, :name, :tokens, :points, :day, :rules, :revision);

-- name: insert_streak(account_id, day, days, best_days, grace_day, revision)!
INSERT INTO streaks (account_id, day, days, best_days, grace_day, revision)
VALUES (:account_id, :day, :days, :best_days, :grace_day, :revision);

-- name: update_streak(account_id, day, days, best_days, grace_day, revision)!
UPDATE streaks SET day = :day, days = :days, best_days = :best_days, grace_day = :grace_day, revision = :revision
WHERE account_id = :account_id;

-- name: insert_rule_set(version, actor, effective_time_us, at_once, rollout_percent, cohort, document, revision)!
INSERT INTO rule_sets (version, actor, effective_time_us, at_once, rollout_percent, cohort, document, revision)
VALUES (:version, :actor, :effective_time_us, :at_once, :rollout_percent, :cohort, :document, :revision);

-- name: insert_team(team_id, created_by, owner_id, members, owners, create_time_us, revision)!
INSERT INTO teams (team_id, created_by, owner_id, members, owners, create_time_us, revision)
VALUES (:team_id, :created_by, :owner_id, :members, :owners, :create_time_us, :revision);

-- name: update_team(team_id, members, owners, revision)!
UPDATE teams SET members = :members, owners = :owners, revision = :revision
WHERE team_id = :team_id;

-- name: insert_member(team_id, member_id, role, day_limit, month_limit, revision)!
INSERT INTO members (team_id, member_id, role, day_limit, month_limit, revision)
VALUES (:team_id, :member_id, :role, :day_limit, :month_limit, :revision);

-- name: update_member(team_id, member_id, role, day_limit, month_limit, revision)!
UPDATE members SET role = :role, day_limit = :day_limit, month_limit = :month_limit, revision = :revision
WHERE team_id = :team_id AND member_id = :member_id;

-- name: insert_team_change(created_by, change_id, team_id, kind, acting_id, member_id, role, day_limit, month_limit, revision)!
INSERT INTO team_changes (created_by, change_id, team_id, kind, acting_id, member_id, role, day_limit, month_limit, revision)
VALUES (:created_by, :change_id, :team_id, :kind, :acting_id, :member_id, :role, :day_limit, :month_limit,
    :revision);

-- name: insert_gift(created_by, gift_id, account_id, receiver_id, amount, reference, revision)!
INSERT INTO gifts (created_by, gift_id, account_id, receiver_id, amount, reference, revision)
VALUES (:created_by, :gift_id, :account_id, :receiver_id, :amount, :reference, :revision);

-- name: insert_offer(account_id, offer_id, created_by, state, tokens, price_points, sold, returned, lifetime_us, reference, day, create_time_us, expire_time_us, number, revision)!
INSERT INTO offers (account_id, offer_id, created_by, state, tokens, price_points, sold, returned,
    lifetime_us, reference, day, create_time_us, expire_time_us, number, revision)
VALUES (:account_id, :offer_id, :created_by, :state, :tokens, :price_points, :sold, :returned, :lifetime_us,
    :reference, :day, :create_time_us, :expire_time_us, :number, :revision);

-- name: update_offer(account_id, offer_id, state, sold, returned, revision)!
UPDATE offers SET state = :state, sold = :sold, returned = :returned, revision = :revision
WHERE account_id = :account_id AND offer_id = :offer_id;

-- name: insert_take(created_by, take_id, account_id, seller_id, offer_id, tokens, points, revision)!
INSERT INTO takes (created_by, take_id, account_id, seller_id, offer_id, tokens, points, revision)
VALUES (:created_by, :take_id, :account_id, :seller_id, :offer_id, :tokens, :points, :revision);

-- name: insert_spending_limit(account_id, day_limit, month_limit, revision)!
INSERT INTO spending_limits (account_id, day_limit, month_limit, revision)
VALUES (:account_id, :day_limit, :month_limit, :revision);

-- name: update_spending_limit(account_id, day_limit, month_limit, revision)!
UPDATE spending_limits SET day_limit = :day_limit, month_limit = :month_limit, revision = :revision
WHERE account_id = :account_id;

-- name: insert_limit_change(created_by, change_id, account_id, day_limit, month_limit, reference, revision)!
INSERT INTO limit_changes (created_by, change_id, account_id, day_limit, month_limit, reference, revision)
VALUES (:created_by, :change_id, :account_id, :day_limit, :month_limit, :reference, :revision);

-- name: move_system_account(account_id, asset, change)!
INSERT INTO system_accounts (account_id, asset, balance) VALUES (:account_id, :asset, :change)
ON CONFLICT (account_id, asset) DO UPDATE SET balance = system_accounts.balance + excluded.balance;

-- name: sum_balances()
-- Per asset, all that users and system accounts have: always 0.
SELECT asset, sum(balance) AS balance FROM (
    SELECT asset, balance FROM accounts UNION ALL SELECT asset, balance FROM system_accounts
) AS everybody GROUP BY asset;

-- What can be asked of an account's history.

-- name: list_newest(account_id)
-- The newest row of each asset that an account has or had.
SELECT asset, revision FROM accounts WHERE account_id = :account_id;

-- name: find_row_near(subject, time_us, head, near)
-- An account's last row at or before an instant, if it is among everybody's last ones: times rise with the revisions, so that
-- halving finds where that instant is in the journal.
WITH RECURSIVE search AS (
    SELECT 0 AS low, :head AS high
    UNION ALL
    SELECT CASE WHEN j.time_us <= :time_us THEN j.revision ELSE search.low END,
        CASE WHEN j.time_us <= :time_us THEN search.high ELSE j.revision - 1 END
    FROM search JOIN journal j ON j.revision = (search.low + search.high + 1) / 2
    WHERE search.low < search.high
), place AS (SELECT low FROM search WHERE low = high)
SELECT j.revision FROM journal j
WHERE j.revision <= (SELECT low FROM place) AND j.revision > (SELECT low FROM place) - :near
    AND j.subject = :subject
ORDER BY j.revision DESC LIMIT 1;

-- name: list_wanted(revision, kinds, counterparty, since_us, until_us, scan, count)
-- So many rows of an account's history that are wanted, and the last one that was looked at, on a walk back.
WITH RECURSIVE walk AS (
    SELECT 0 AS revision, :revision AS previous, :since_us AS time_us, 0 AS step, 0 AS found, 0 AS matched
    UNION ALL
    SELECT j.revision, j.previous, j.time_us, walk.step + 1, walk.found + walk.matched,
        CASE WHEN j.time_us >= :since_us AND j.time_us < :until_us
            AND (:kinds = '[]' OR j.kind IN (SELECT value FROM json_each(:kinds)))
            AND (:counterparty = '' OR j.body ->> '$.counterparty' = :counterparty
                OR j.body ->> '$.facts.peer' = :counterparty)
            THEN 1 ELSE 0 END
    FROM walk JOIN journal j ON j.revision = walk.previous
    WHERE walk.found + walk.matched < :count AND walk.step < :scan AND walk.time_us >= :since_us
)
SELECT j.revision, j.time_us, j.kind, j.actor, j.subject, j.previous, j.body, j.hash, walk.matched
FROM walk JOIN journal j ON j.revision = walk.revision
WHERE walk.matched = 1 OR walk.step = (SELECT max(step) FROM walk) ORDER BY walk.step;

-- name: sum_day(revision, since_us, scan)
-- What the rows of a day came to, by what they are, on a walk back from its last one; and the row before the first of them.
WITH RECURSIVE walk AS (
    SELECT revision, previous, time_us, 1 AS step FROM journal WHERE revision = :revision
    UNION ALL
    SELECT j.revision, j.previous, j.time_us, walk.step + 1 FROM walk JOIN journal j ON j.revision = walk.previous
    WHERE walk.step < :scan AND j.time_us >= :since_us
), moves AS (
    SELECT j.kind, j.previous, j.body ->> '$.balance_change' AS change,
        CASE WHEN j.kind = 'grant' AND j.actor = '@wallet' THEN coalesce(j.body ->> '$.facts.reference', '')
            ELSE coalesce(j.body ->> '$.facts.rule', '') || coalesce(':' || (j.body ->> '$.facts.name'), '') END AS rule
    FROM walk JOIN journal j ON j.revision = walk.revision
)
SELECT kind, rule, coalesce(sum(CASE WHEN change > 0 THEN change END), 0) AS amount_in,
    coalesce(-sum(CASE WHEN change < 0 THEN change END), 0) AS amount_out, count(*) AS rows, min(previous) AS next_revision
FROM moves GROUP BY kind, rule ORDER BY kind, rule;

-- name: sum_spending(revision, after, since_us, days, scan)
-- What the rows of an account spent, by the day (number, begin, end) on which their reservation was made, on a walk back from one
-- of them, and the row before the last one looked at. Day 0 is for all other rows.
WITH RECURSIVE walk AS (
    SELECT revision, previous, time_us, 1 AS step FROM journal
    WHERE revision = :revision AND revision > :after AND time_us >= :since_us
    UNION ALL
    SELECT j.revision, j.previous, j.time_us, walk.step + 1 FROM walk JOIN journal j ON j.revision = walk.previous
    WHERE walk.step < :scan AND j.revision > :after AND j.time_us >= :since_us
), days AS MATERIALIZED (
    SELECT value ->> 0 AS day, value ->> 1 AS begins_us, value ->> 2 AS ends_us FROM json_each(:days)
), moves AS (
    SELECT walk.previous, r.create_time_us,
        coalesce(j.body ->> '$.held_change', 0) + max(-coalesce(j.body ->> '$.balance_change', 0), 0) AS change
    FROM walk CROSS JOIN journal j ON j.revision = walk.revision
    LEFT JOIN reservations r ON r.created_by = j.body ->> '$.created_by'
        AND r.reservation_id = j.body ->> '$.reservation_id'
)
SELECT coalesce(d.day, 0) AS day, sum(m.change) AS amount, min(m.previous) AS next_revision
FROM moves m LEFT JOIN days d ON m.create_time_us >= d.begins_us AND m.create_time_us < d.ends_us
GROUP BY 1 ORDER BY 1;

-- What an audit asks. A page is walked by key, and takes no lock.

-- name: page_accounts(after_a, after_b, limit)
SELECT * FROM accounts WHERE (account_id, asset) > (:after_a, :after_b) ORDER BY account_id, asset LIMIT :limit;

-- name: find_accounts(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN accounts t ON t.account_id = k.value ->> 0 AND t.asset = k.value ->> 1;

-- name: count_accounts()
SELECT count(*) AS count FROM accounts;

-- name: page_reservations(after_a, after_b, limit)
SELECT * FROM reservations WHERE (created_by, reservation_id) > (:after_a, :after_b) ORDER BY created_by, reservation_id LIMIT :limit;

-- name: find_reservations(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN reservations t ON t.created_by = k.value ->> 0 AND t.reservation_id = k.value ->> 1;

-- name: count_reservations()
SELECT count(*) AS count FROM reservations;

-- name: page_lots(after_a, limit)
SELECT * FROM lots WHERE lot_id > :after_a ORDER BY lot_id LIMIT :limit;

-- name: find_lots(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN lots t ON t.lot_id = k.value ->> 0;

-- name: count_lots()
SELECT count(*) AS count FROM lots;

-- name: page_grants(after_a, after_b, limit)
SELECT * FROM grants WHERE (created_by, grant_id) > (:after_a, :after_b) ORDER BY created_by, grant_id LIMIT :limit;

-- name: find_grants(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN grants t ON t.created_by = k.value ->> 0 AND t.grant_id = k.value ->> 1;

-- name: count_grants()
SELECT count(*) AS count FROM grants;

-- name: page_operations(after_a, after_b, after_c, limit)
SELECT * FROM operations WHERE (created_by, reservation_id, operation_id) > (:after_a, :after_b, :after_c) ORDER BY created_by, reservation_id, operation_id LIMIT :limit;

-- name: find_operations(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN operations t ON t.created_by = k.value ->> 0 AND t.reservation_id = k.value ->> 1 AND t.operation_id = k.value ->> 2;

-- name: count_operations()
SELECT count(*) AS count FROM operations;

-- name: page_account_changes(after_a, after_b, limit)
SELECT * FROM account_changes WHERE (created_by, change_id) > (:after_a, :after_b) ORDER BY created_by, change_id LIMIT :limit;

-- name: find_account_changes(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN account_changes t ON t.created_by = k.value ->> 0 AND t.change_id = k.value ->> 1;

-- name: count_account_changes()
SELECT count(*) AS count FROM account_changes;

-- name: page_counters(after_a, after_b, after_c, limit)
SELECT * FROM counters WHERE (account_id, counter, day) > (:after_a, :after_b, :after_c) ORDER BY account_id, counter, day LIMIT :limit;

-- name: find_counters(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN counters t ON t.account_id = k.value ->> 0 AND t.counter = k.value ->> 1 AND t.day = k.value ->> 2;

-- name: count_counters()
SELECT count(*) AS count FROM counters;

-- name: page_earnings(after_a, after_b, limit)
SELECT * FROM earnings WHERE (created_by, earning_id) > (:after_a, :after_b) ORDER BY created_by, earning_id LIMIT :limit;

-- name: find_earnings(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN earnings t ON t.created_by = k.value ->> 0 AND t.earning_id = k.value ->> 1;

-- name: count_earnings()
SELECT count(*) AS count FROM earnings;

-- name: page_streaks(after_a, limit)
SELECT * FROM streaks WHERE account_id > :after_a ORDER BY account_id LIMIT :limit;

-- name: find_streaks(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN streaks t ON t.account_id = k.value ->> 0;

-- name: count_streaks()
SELECT count(*) AS count FROM streaks;

-- name: page_rule_sets(after_a, limit)
SELECT * FROM rule_sets WHERE version > :after_a ORDER BY version LIMIT :limit;

-- name: find_rule_sets(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN rule_sets t ON t.version = k.value ->> 0;

-- name: count_rule_sets()
SELECT count(*) AS count FROM rule_sets;

-- name: page_teams(after_a, limit)
SELECT * FROM teams WHERE team_id > :after_a ORDER BY team_id LIMIT :limit;

-- name: find_teams(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN teams t ON t.team_id = k.value ->> 0;

-- name: count_teams()
SELECT count(*) AS count FROM teams;

-- name: page_members(after_a, after_b, limit)
SELECT * FROM members WHERE (team_id, member_id) > (:after_a, :after_b) ORDER BY team_id, member_id LIMIT :limit;

-- name: find_members(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN members t ON t.team_id = k.value ->> 0 AND t.member_id = k.value ->> 1;

-- name: count_members()
SELECT count(*) AS count FROM members;

-- name: page_team_changes(after_a, after_b, limit)
SELECT * FROM team_changes WHERE (created_by, change_id) > (:after_a, :after_b) ORDER BY created_by, change_id LIMIT :limit;

-- name: find_team_changes(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN team_changes t ON t.created_by = k.value ->> 0 AND t.change_id = k.value ->> 1;

-- name: count_team_changes()
SELECT count(*) AS count FROM team_changes;

-- name: page_gifts(after_a, after_b, limit)
SELECT * FROM gifts WHERE (created_by, gift_id) > (:after_a, :after_b) ORDER BY created_by, gift_id LIMIT :limit;

-- name: find_gifts(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN gifts t ON t.created_by = k.value ->> 0 AND t.gift_id = k.value ->> 1;

-- name: count_gifts()
SELECT count(*) AS count FROM gifts;

-- name: page_offers(after_a, after_b, limit)
SELECT * FROM offers WHERE (account_id, offer_id) > (:after_a, :after_b) ORDER BY account_id, offer_id LIMIT :limit;

-- name: find_offers(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN offers t ON t.account_id = k.value ->> 0 AND t.offer_id = k.value ->> 1;

-- name: count_offers()
SELECT count(*) AS count FROM offers;

-- name: page_takes(after_a, after_b, limit)
SELECT * FROM takes WHERE (created_by, take_id) > (:after_a, :after_b) ORDER BY created_by, take_id LIMIT :limit;

-- name: find_takes(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN takes t ON t.created_by = k.value ->> 0 AND t.take_id = k.value ->> 1;

-- name: count_takes()
SELECT count(*) AS count FROM takes;

-- name: page_spending_limits(after_a, limit)
SELECT * FROM spending_limits WHERE account_id > :after_a ORDER BY account_id LIMIT :limit;

-- name: find_spending_limits(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN spending_limits t ON t.account_id = k.value ->> 0;

-- name: count_spending_limits()
SELECT count(*) AS count FROM spending_limits;

-- name: page_limit_changes(after_a, after_b, limit)
SELECT * FROM limit_changes WHERE (created_by, change_id) > (:after_a, :after_b) ORDER BY created_by, change_id LIMIT :limit;

-- name: find_limit_changes(keys)
SELECT t.* FROM json_each(:keys) k CROSS JOIN limit_changes t ON t.created_by = k.value ->> 0 AND t.change_id = k.value ->> 1;

-- name: count_limit_changes()
SELECT count(*) AS count FROM limit_changes;

-- name: list_system_accounts()
SELECT account_id, asset, balance FROM system_accounts;

-- name: check_holds()
-- An account whose held tokens are not the sum of its open reservations: what they should be, and what they are.
SELECT a.account_id, a.revision, coalesce(h.held, 0) AS expected, a.held AS found FROM accounts a
LEFT JOIN (
    SELECT payer_account_id, sum(reserved - released) AS held FROM reservations WHERE state = 1 GROUP BY payer_account_id
) h ON h.payer_account_id = a.account_id
WHERE a.asset = 'TOKEN' AND a.held <> coalesce(h.held, 0) LIMIT 1;

-- name: check_lots()
-- An account that has less than its lots, or another number of them.
SELECT a.account_id, a.revision, l.remaining AS expected, a.balance AS found FROM accounts a
JOIN (
    SELECT account_id, sum(remaining) AS remaining, sum(held) AS held, count(*) AS lots
    FROM lots WHERE remaining > 0 GROUP BY account_id
) l ON l.account_id = a.account_id
WHERE a.asset = 'TOKEN'
    AND (l.remaining > a.balance OR l.held > a.held OR l.lots <> a.lots OR a.balance - l.remaining < a.held - l.held) LIMIT 1;

-- name: check_due()
-- An account of which something ends before it is due: nobody would notice in time.
SELECT a.account_id, a.revision, d.ends_us AS expected, coalesce(a.due_time_us, 0) AS found FROM accounts a
JOIN (
    SELECT payer_account_id AS account_id, min(expire_time_us) AS ends_us FROM reservations WHERE state = 1 GROUP BY payer_account_id
    UNION ALL
    SELECT account_id, min(expire_time_us) FROM lots WHERE remaining > held AND expire_time_us IS NOT NULL GROUP BY account_id
    UNION ALL
    SELECT account_id, min(expire_time_us) FROM offers WHERE state = 1 GROUP BY account_id
) d ON d.account_id = a.account_id
WHERE a.asset = 'TOKEN' AND (a.due_time_us IS NULL OR a.due_time_us > d.ends_us) LIMIT 1;

-- name: check_escrow()
-- Whether the escrow has what open offers have left.
SELECT '@escrow' AS account_id, (SELECT revision FROM journal_head) AS revision, o.offered AS expected, e.balance AS found
FROM (SELECT coalesce(sum(tokens - sold), 0) AS offered FROM offers WHERE state = 1) o
CROSS JOIN (
    SELECT coalesce(sum(balance), 0) AS balance FROM system_accounts WHERE account_id = '@escrow' AND asset = 'TOKEN'
) e
WHERE o.offered <> e.balance;
