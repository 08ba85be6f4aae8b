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

-- name: load_account_changes(keys)
SELECT c.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN account_changes c ON c.created_by = k.value ->> 0 AND c.change_id = k.value ->> 1;

-- name: load_lots(account_ids, lot_ids, keys)
-- The lots with tokens left of some accounts, some by id, and those of some grants. Their accounts are locked, and so are they.
SELECT * FROM lots WHERE remaining > 0 AND account_id IN (SELECT jsonb_array_elements_text(:account_ids::jsonb))
UNION SELECT * FROM lots WHERE lot_id IN (SELECT jsonb_array_elements_text(:lot_ids::jsonb)::bigint)
UNION SELECT l.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN lots l ON l.created_by = k.value ->> 0 AND l.grant_id = k.value ->> 1
-- In one order everywhere: an entry lists the lots that it touches, and its hash must be the same on every database.
ORDER BY lot_id;

-- name: load_points(ids)
-- The points of accounts whose tokens are locked, and they with them.
SELECT a.* FROM accounts a WHERE a.account_id IN (SELECT jsonb_array_elements_text(:ids::jsonb)) AND a.asset = 'POINT';

-- name: load_streaks(ids)
SELECT s.* FROM streaks s WHERE s.account_id IN (SELECT jsonb_array_elements_text(:ids::jsonb));

-- name: load_earnings(keys)
SELECT e.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN earnings e ON e.created_by = k.value ->> 0 AND e.earning_id = k.value ->> 1;

-- name: load_counters(keys)
SELECT c.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN counters c ON c.account_id = k.value ->> 0 AND c.counter = k.value ->> 1 AND c.day = (k.value ->> 2)::bigint;

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
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN teams t ON t.team_id = k.value ->> 0;

-- name: load_members(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN members t ON t.team_id = k.value ->> 0 AND t.member_id = k.value ->> 1;

-- name: load_team_changes(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN team_changes t ON t.created_by = k.value ->> 0 AND t.change_id = k.value ->> 1;

-- name: load_gifts(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN gifts t ON t.created_by = k.value ->> 0 AND t.gift_id = k.value ->> 1;

-- name: load_offers(keys)
-- Their sellers are locked, and they with them; so are takes, with their sellers and buyers.
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN offers t ON t.account_id = k.value ->> 0 AND t.offer_id = k.value ->> 1;

-- name: load_takes(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN takes t ON t.created_by = k.value ->> 0 AND t.take_id = k.value ->> 1;

-- name: load_open_offers(ids)
-- All that these accounts have open; ordered, so that what ends together ends in one order on every database.
SELECT * FROM offers WHERE state = 1 AND account_id IN (SELECT jsonb_array_elements_text(:ids::jsonb)) ORDER BY number;

-- name: get_offer(account_id, offer_id)
SELECT * FROM offers WHERE account_id = :account_id AND offer_id = :offer_id;

-- name: get_due_offered(account_id, now_us)
-- What of an account's offers is back already, because their time has passed.
SELECT coalesce(sum(tokens - sold), 0)::bigint AS due FROM offers
WHERE state = 1 AND account_id = :account_id AND expire_time_us <= :now_us;

-- name: list_due_offered(account_id, now_us)
-- The same by the day on which it was offered, where it counts no longer.
SELECT day, sum(tokens - sold)::bigint AS due FROM offers
WHERE state = 1 AND account_id = :account_id AND expire_time_us <= :now_us GROUP BY day;

-- name: list_market(now_us, price_max, after_price, after_number, limit)
-- What can be bought now, cheapest first, of one price the oldest first.
SELECT o.* FROM offers o
JOIN accounts a ON a.account_id = o.account_id AND a.asset = 'TOKEN' AND a.state = 1
WHERE o.state = 1 AND o.expire_time_us > :now_us AND o.price_points <= :price_max
    AND (o.price_points, o.number) > (:after_price, :after_number)
ORDER BY o.price_points, o.number LIMIT :limit::bigint;

-- name: list_offers(account_id, before_number, limit)
-- All offers of an account, newest first.
SELECT * FROM offers WHERE account_id = :account_id AND number < :before_number ORDER BY number DESC LIMIT :limit::bigint;

-- name: load_spending_limits(keys)
-- Their accounts are locked, and they with them.
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN spending_limits t ON t.account_id = k.value ->> 0;

-- name: load_limit_changes(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value)
JOIN limit_changes t ON t.created_by = k.value ->> 0 AND t.change_id = k.value ->> 1;

-- name: get_team(team_id)
SELECT * FROM teams WHERE team_id = :team_id;

-- name: get_member(team_id, member_id)
SELECT * FROM members WHERE team_id = :team_id AND member_id = :member_id AND role > 0;

-- name: list_members(team_id, after_member_id, limit)
SELECT * FROM members WHERE team_id = :team_id AND member_id > :after_member_id AND role > 0
ORDER BY member_id LIMIT :limit::bigint;

-- name: list_due_spending(account_id, now_us)
-- What of a team's holds still counts for members and should not, because the time of those holds has passed.
SELECT account_id AS member_id, spend_day, sum(reserved - released)::bigint AS due FROM reservations
WHERE state = 1 AND payer_account_id = :account_id AND expire_time_us <= :now_us AND spend_day > 0
GROUP BY account_id, spend_day;

-- name: get_spending_limits(account_id)
SELECT * FROM spending_limits WHERE account_id = :account_id;

-- name: get_due_own_spending(account_id, now_us, day_us, month_us)
-- As list_due_spending, of all that an account pays for: of the holds made since the day began, and since the month did.
SELECT coalesce(sum(CASE WHEN create_time_us >= :day_us THEN reserved - released END), 0)::bigint AS day,
    coalesce(sum(reserved - released), 0)::bigint AS month
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
SELECT coalesce(sum(reserved - released), 0)::bigint AS due FROM reservations
WHERE state = 1 AND payer_account_id = :account_id AND expire_time_us <= :now_us;

-- name: get_reservation(created_by, reservation_id)
SELECT * FROM reservations WHERE created_by = :created_by AND reservation_id = :reservation_id;

-- name: list_due_reservations(account_id, now_us, after_us, after_revision, limit)
-- As load_due_reservations, page by page and without a lock.
SELECT * FROM reservations
WHERE state = 1 AND payer_account_id = :account_id AND expire_time_us <= :now_us
    AND (expire_time_us, revision) > (:after_us, :after_revision)
ORDER BY expire_time_us, revision LIMIT :limit::bigint;

-- name: list_lots(account_id)
SELECT * FROM lots WHERE remaining > 0 AND account_id = :account_id;

-- name: list_open_reservations(account_id, after_us, after_created_by, after_reservation_id, limit)
-- The open reservations that an account pays for, behind one of them.
SELECT * FROM reservations
WHERE state = 1 AND payer_account_id = :account_id AND expire_time_us >= :after_us
    AND (expire_time_us, created_by, reservation_id) > (:after_us, :after_created_by, :after_reservation_id)
ORDER BY expire_time_us, created_by, reservation_id LIMIT :limit::bigint;

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
SELECT account_id FROM accounts WHERE due_time_us <= :now_us ORDER BY due_time_us LIMIT :limit::bigint;

-- name: insert_account(account_id, asset, balance, held, due_time_us, create_time_us, revision, state, lots, worked, team, spend_since)!
-- No upsert: when two replicas open one account, the second must fail here and run its group again.
INSERT INTO accounts (account_id, asset, balance, held, due_time_us, create_time_us, revision, state, lots, worked,
    team, spend_since)
SELECT * FROM unnest(
    :account_id::text[], :asset::text[], :balance::bigint[], :held::bigint[], :due_time_us::bigint[],
    :create_time_us::bigint[], :revision::bigint[], :state::bigint[], :lots::bigint[], :worked::bigint[], :team::bigint[],
    :spend_since::bigint[]
);

-- name: update_account(account_id, asset, balance, held, due_time_us, revision, state, lots, worked, team, spend_since)!
UPDATE accounts AS t SET balance = n.balance, held = n.held, due_time_us = n.due_time_us, revision = n.revision,
    state = n.state, lots = n.lots, worked = n.worked, team = n.team, spend_since = n.spend_since
FROM unnest(
    :account_id::text[], :asset::text[], :balance::bigint[], :held::bigint[], :due_time_us::bigint[],
    :revision::bigint[], :state::bigint[], :lots::bigint[], :worked::bigint[], :team::bigint[], :spend_since::bigint[]
) AS n(account_id, asset, balance, held, due_time_us, revision, state, lots, worked, team, spend_since)
WHERE t.account_id = n.account_id AND t.asset = n.asset;

-- name: insert_reservation(created_by, reservation_id, account_id, payer_account_id, state, reserved, committed, released, expired, refunded, hold_us, expire_time_us, create_time_us, price_version, reference, commit_amount, commit_late, revision, pins, spend_day)!
INSERT INTO reservations (created_by, reservation_id, account_id, payer_account_id, state, reserved, committed,
    released, expired, refunded, hold_us, expire_time_us, create_time_us, price_version, reference, commit_amount,
    commit_late, revision, pins, spend_day)
SELECT * FROM unnest(
    :created_by::text[], :reservation_id::text[], :account_id::text[], :payer_account_id::text[], :state::bigint[],
    :reserved::bigint[], :committed::bigint[], :released::bigint[], :expired::bigint[], :refunded::bigint[],
    :hold_us::bigint[], :expire_time_us::bigint[], :create_time_us::bigint[], :price_version::text[],
    :reference::text[], :commit_amount::bigint[], :commit_late::bigint[], :revision::bigint[], :pins::text[],
    :spend_day::bigint[]
);

-- name: update_reservation(created_by, reservation_id, state, committed, released, expired, refunded, expire_time_us, commit_amount, commit_late, revision, pins)!
UPDATE reservations AS t SET state = n.state, committed = n.committed, released = n.released, expired = n.expired,
    refunded = n.refunded, expire_time_us = n.expire_time_us, commit_amount = n.commit_amount,
    commit_late = n.commit_late, revision = n.revision, pins = n.pins
FROM unnest(
    :created_by::text[], :reservation_id::text[], :state::bigint[], :committed::bigint[], :released::bigint[],
    :expired::bigint[], :refunded::bigint[], :expire_time_us::bigint[], :commit_amount::bigint[],
    :commit_late::bigint[], :revision::bigint[], :pins::text[]
) AS n(created_by, reservation_id, state, committed, released, expired, refunded, expire_time_us, commit_amount,
    commit_late, revision, pins)
WHERE t.created_by = n.created_by AND t.reservation_id = n.reservation_id;

-- name: insert_lot(lot_id, account_id, asset, created_by, grant_id, priority, expire_time_us, granted, remaining, held, grace, revoked, revision)!
INSERT INTO lots (lot_id, account_id, asset, created_by, grant_id, priority, expire_time_us, granted, remaining,
    held, grace, revoked, revision)
SELECT * FROM unnest(
    :lot_id::bigint[], :account_id::text[], :asset::text[], :created_by::text[], :grant_id::text[],
    :priority::bigint[], :expire_time_us::bigint[], :granted::bigint[], :remaining::bigint[], :held::bigint[],
    :grace::bigint[], :revoked::bigint[], :revision::bigint[]
);

-- name: update_lot(lot_id, expire_time_us, remaining, held, revoked, revision)!
UPDATE lots AS t SET expire_time_us = n.expire_time_us, remaining = n.remaining, held = n.held, revoked = n.revoked,
    revision = n.revision
FROM unnest(
    :lot_id::bigint[], :expire_time_us::bigint[], :remaining::bigint[], :held::bigint[], :revoked::bigint[],
    :revision::bigint[]
) AS n(lot_id, expire_time_us, remaining, held, revoked, revision)
WHERE t.lot_id = n.lot_id;

-- name: insert_grant(created_by, grant_id, account_id, asset, amount, reference, revision, lifetime_us, priority, revoked)!
INSERT INTO grants (created_by, grant_id, account_id, asset, amount, reference, revision, lifetime_us, priority,
    revoked)
SELECT * FROM unnest(
    :created_by::text[], :grant_id::text[], :account_id::text[], :asset::text[], :amount::bigint[],
    :reference::text[], :revision::bigint[], :lifetime_us::bigint[], :priority::bigint[], :revoked::bigint[]
);

-- name: update_grant(created_by, grant_id, revoked, revision)!
UPDATE grants AS t SET revoked = n.revoked, revision = n.revision
FROM unnest(
    :created_by::text[], :grant_id::text[], :revoked::bigint[], :revision::bigint[]
) AS n(created_by, grant_id, revoked, revision)
WHERE t.created_by = n.created_by AND t.grant_id = n.grant_id;

-- name: insert_operation(created_by, reservation_id, operation_id, kind, amount, hold_us, revision)!
INSERT INTO operations (created_by, reservation_id, operation_id, kind, amount, hold_us, revision)
SELECT * FROM unnest(
    :created_by::text[], :reservation_id::text[], :operation_id::text[], :kind::text[], :amount::bigint[],
    :hold_us::bigint[], :revision::bigint[]
);

-- name: insert_account_change(created_by, change_id, account_id, kind, forfeit, reference, revision)!
INSERT INTO account_changes (created_by, change_id, account_id, kind, forfeit, reference, revision)
SELECT * FROM unnest(
    :created_by::text[], :change_id::text[], :account_id::text[], :kind::text[], :forfeit::bigint[],
    :reference::text[], :revision::bigint[]
);

-- name: insert_counter(account_id, counter, day, amount, revision)!
INSERT INTO counters (account_id, counter, day, amount, revision)
SELECT * FROM unnest(
    :account_id::text[], :counter::text[], :day::bigint[], :amount::bigint[], :revision::bigint[]
);

-- name: update_counter(account_id, counter, day, amount, revision)!
UPDATE counters AS t SET amount = n.amount, revision = n.revision
FROM unnest(
    :account_id::text[], :counter::text[], :day::bigint[], :amount::bigint[], :revision::bigint[]
) AS n(account_id, counter, day, amount, revision)
WHERE t.account_id = n.account_id AND t.counter = n.counter AND t.day = n.day;

-- name: insert_earning(created_by, earning_id, account_id, kind, name, tokens, points, day, rules, revision)!
INSERT INTO earnings (created_by, earning_id, account_id, kind, name, tokens, points, day, rules, revision)
SELECT * FROM unnest(
    :created_by::text[], :earning_id::text[], :account_id::text[], :kind::text[], :name::text[], :tokens::bigint[],
    :points::bigint[], :day::bigint[], :rules::text[], :revision::bigint[]
);

-- name: insert_streak(account_id, day, days, best_days, grace_day, revision)!
INSERT INTO streaks (account_id, day, days, best_days, grace_day, revision)
SELECT * FROM unnest(
    :account_id::text[], :day::bigint[], :days::bigint[], :best_days::bigint[], :grace_day::bigint[],
    :revision::bigint[]
);

-- name: update_streak(account_id, day, days, best_days, grace_day, revision)!
UPDATE streaks AS t SET day = n.day, days = n.days, best_days = n.best_days, grace_day = n.grace_day, revision = n.revision
FROM unnest(
    :account_id::text[], :day::bigint[], :days::bigint[], :best_days::bigint[], :grace_day::bigint[],
    :revision::bigint[]
) AS n(account_id, day, days, best_days, grace_day, revision)
WHERE t.account_id = n.account_id;

-- name: insert_rule_set(version, actor, effective_time_us, at_once, rollout_percent, cohort, document, revision)!
INSERT INTO rule_sets (version, actor, effective_time_us, at_once, rollout_percent, cohort, document, revision)
SELECT * FROM unnest(
    :version::text[], :actor::text[], :effective_time_us::bigint[], :at_once::bigint[], :rollout_percent::bigint[],
    :cohort::text[], :document::text[], :revision::bigint[]
);

-- name: insert_team(team_id, created_by, owner_id, members, owners, create_time_us, revision)!
INSERT INTO teams (team_id, created_by, owner_id, members, owners, create_time_us, revision)
SELECT * FROM unnest(
    :team_id::text[], :created_by::text[], :owner_id::text[], :members::bigint[], :owners::bigint[],
    :create_time_us::bigint[], :revision::bigint[]
);

-- name: update_team(team_id, members, owners, revision)!
UPDATE teams AS t SET members = n.members, owners = n.owners, revision = n.revision
FROM unnest(
    :team_id::text[], :members::bigint[], :owners::bigint[], :revision::bigint[]
) AS n(team_id, members, owners, revision)
WHERE t.team_id = n.team_id;

-- name: insert_member(team_id, member_id, role, day_limit, month_limit, revision)!
INSERT INTO members (team_id, member_id, role, day_limit, month_limit, revision)
SELECT * FROM unnest(
    :team_id::text[], :member_id::text[], :role::bigint[], :day_limit::bigint[], :month_limit::bigint[],
    :revision::bigint[]
);

-- name: update_member(team_id, member_id, role, day_limit, month_limit, revision)!
UPDATE members AS t SET role = n.role, day_limit = n.day_limit, month_limit = n.month_limit, revision = n.revision
FROM unnest(
    :team_id::text[], :member_id::text[], :role::bigint[], :day_limit::bigint[], :month_limit::bigint[],
    :revision::bigint[]
) AS n(team_id, member_id, role, day_limit, month_limit, revision)
WHERE t.team_id = n.team_id AND t.member_id = n.member_id;

-- name: insert_team_change(created_by, change_id, team_id, kind, acting_id, member_id, role, day_limit, month_limit, revision)!
INSERT INTO team_changes (created_by, change_id, team_id, kind, acting_id, member_id, role, day_limit, month_limit, revision)
SELECT * FROM unnest(
    :created_by::text[], :change_id::text[], :team_id::text[], :kind::text[], :acting_id::text[],
    :member_id::text[], :role::bigint[], :day_limit::bigint[], :month_limit::bigint[], :revision::bigint[]
);

-- name: insert_gift(created_by, gift_id, account_id, receiver_id, amount, reference, revision)!
INSERT INTO gifts (created_by, gift_id, account_id, receiver_id, amount, reference, revision)
SELECT * FROM unnest(
    :created_by::text[], :gift_id::text[], :account_id::text[], :receiver_id::text[], :amount::bigint[],
    :reference::text[], :revision::bigint[]
);

-- name: insert_offer(account_id, offer_id, created_by, state, tokens, price_points, sold, returned, lifetime_us, reference, day, create_time_us, expire_time_us, number, revision)!
INSERT INTO offers (account_id, offer_id, created_by, state, tokens, price_points, sold, returned,
    lifetime_us, reference, day, create_time_us, expire_time_us, number, revision)
SELECT * FROM unnest(
    :account_id::text[], :offer_id::text[], :created_by::text[], :state::bigint[], :tokens::bigint[],
    :price_points::bigint[], :sold::bigint[], :returned::bigint[], :lifetime_us::bigint[], :reference::text[],
    :day::bigint[], :create_time_us::bigint[], :expire_time_us::bigint[], :number::bigint[],
    :revision::bigint[]
);

-- name: update_offer(account_id, offer_id, state, sold, returned, revision)!
UPDATE offers AS t SET state = n.state, sold = n.sold, returned = n.returned, revision = n.revision
FROM unnest(
    :account_id::text[], :offer_id::text[], :state::bigint[], :sold::bigint[], :returned::bigint[], :revision::bigint[]
) AS n(account_id, offer_id, state, sold, returned, revision)
WHERE t.account_id = n.account_id AND t.offer_id = n.offer_id;

-- name: insert_take(created_by, take_id, account_id, seller_id, offer_id, tokens, points, revision)!
INSERT INTO takes (created_by, take_id, account_id, seller_id, offer_id, tokens, points, revision)
SELECT * FROM unnest(
    :created_by::text[], :take_id::text[], :account_id::text[], :seller_id::text[], :offer_id::text[],
    :tokens::bigint[], :points::bigint[], :revision::bigint[]
);

-- name: insert_spending_limit(account_id, day_limit, month_limit, revision)!
INSERT INTO spending_limits (account_id, day_limit, month_limit, revision)
SELECT * FROM unnest(
    :account_id::text[], :day_limit::bigint[], :month_limit::bigint[], :revision::bigint[]
);

-- name: update_spending_limit(account_id, day_limit, month_limit, revision)!
UPDATE spending_limits AS t SET day_limit = n.day_limit, month_limit = n.month_limit, revision = n.revision
FROM unnest(
    :account_id::text[], :day_limit::bigint[], :month_limit::bigint[], :revision::bigint[]
) AS n(account_id, day_limit, month_limit, revision)
WHERE t.account_id = n.account_id;

-- name: insert_limit_change(created_by, change_id, account_id, day_limit, month_limit, reference, revision)!
INSERT INTO limit_changes (created_by, change_id, account_id, day_limit, month_limit, reference, revision)
SELECT * FROM unnest(
    :created_by::text[], :change_id::text[], :account_id::text[], :day_limit::bigint[], :month_limit::bigint[],
    :reference::text[], :revision::bigint[]
);

-- name: move_system_account(account_id, asset, change)!
INSERT INTO system_accounts (account_id, asset, balance)
SELECT * FROM unnest(:account_id::text[], :asset::text[], :change::bigint[])
ON CONFLICT (account_id, asset) DO UPDATE SET balance = system_accounts.balance + excluded.balance;

-- name: sum_balances()
-- Per asset, all that users and system accounts have: always 0.
SELECT asset, sum(balance)::bigint AS balance FROM (
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
    SELECT 0::bigint AS low, :head::bigint AS high
    UNION ALL
    SELECT CASE WHEN j.time_us <= :time_us::bigint THEN j.revision ELSE search.low END,
        CASE WHEN j.time_us <= :time_us::bigint THEN search.high ELSE j.revision - 1 END
    FROM search JOIN journal j ON j.revision = (search.low + search.high + 1) / 2
    WHERE search.low < search.high
), place AS (SELECT low FROM search WHERE low = high)
SELECT j.revision FROM journal j
WHERE j.revision <= (SELECT low FROM place) AND j.revision > (SELECT low FROM place) - :near::bigint
    AND j.subject = :subject
ORDER BY j.revision DESC LIMIT 1;

-- name: list_wanted(revision, kinds, counterparty, since_us, until_us, scan, count)
-- So many rows of an account's history that are wanted, and the last one that was looked at, on a walk back.
WITH RECURSIVE walk AS (
    SELECT 0::bigint AS revision, :revision::bigint AS previous, :since_us::bigint AS time_us, 0::bigint AS step, 0::bigint AS found, 0::bigint AS matched
    UNION ALL
    SELECT j.revision, j.previous, j.time_us, walk.step + 1, walk.found + walk.matched,
        CASE WHEN j.time_us >= :since_us::bigint AND j.time_us < :until_us::bigint
            AND (:kinds::text = '[]' OR j.kind IN (SELECT jsonb_array_elements_text(:kinds::jsonb)))
            AND (:counterparty::text = '' OR j.body::jsonb ->> 'counterparty' = :counterparty::text
                OR j.body::jsonb -> 'facts' ->> 'peer' = :counterparty::text)
            THEN 1::bigint ELSE 0::bigint END
    FROM walk JOIN journal j ON j.revision = walk.previous
    WHERE walk.found + walk.matched < :count::bigint AND walk.step < :scan::bigint AND walk.time_us >= :since_us::bigint
)
SELECT j.revision, j.time_us, j.kind, j.actor, j.subject, j.previous, j.body, j.hash, walk.matched
FROM walk JOIN journal j ON j.revision = walk.revision
WHERE walk.matched = 1 OR walk.step = (SELECT max(step) FROM walk) ORDER BY walk.step;

-- name: sum_day(revision, since_us, scan)
-- What the rows of a day came to, by what they are, on a walk back from its last one; and the row before the first of them.
WITH RECURSIVE walk AS (
    SELECT revision, previous, time_us, 1::bigint AS step FROM journal WHERE revision = :revision
    UNION ALL
    SELECT j.revision, j.previous, j.time_us, walk.step + 1 FROM walk JOIN journal j ON j.revision = walk.previous
    WHERE walk.step < :scan::bigint AND j.time_us >= :since_us::bigint
), moves AS (
    SELECT j.kind, j.previous, (j.body::jsonb ->> 'balance_change')::bigint AS change,
        CASE WHEN j.kind = 'grant' AND j.actor = '@wallet' THEN coalesce(j.body::jsonb -> 'facts' ->> 'reference', '')
            ELSE coalesce(j.body::jsonb -> 'facts' ->> 'rule', '') || coalesce(':' || (j.body::jsonb -> 'facts' ->> 'name'), '') END AS rule
    FROM walk JOIN journal j ON j.revision = walk.revision
)
SELECT kind, rule, coalesce(sum(CASE WHEN change > 0 THEN change END), 0)::bigint AS amount_in,
    coalesce(-sum(CASE WHEN change < 0 THEN change END), 0)::bigint AS amount_out, count(*) AS rows, min(previous) AS next_revision
FROM moves GROUP BY kind, rule ORDER BY kind, rule;

-- name: sum_spending(revision, after, since_us, days, scan)
-- What the rows of an account spent, by the day (number, begin, end) on which their reservation was made, on a walk back from one
-- of them, and the row before the last one looked at. Day 0 is for all other rows.
WITH RECURSIVE walk AS (
    SELECT revision, previous, time_us, 1::bigint AS step FROM journal
    WHERE revision = :revision AND revision > :after::bigint AND time_us >= :since_us::bigint
    UNION ALL
    SELECT j.revision, j.previous, j.time_us, walk.step + 1 FROM walk JOIN journal j ON j.revision = walk.previous
    WHERE walk.step < :scan::bigint AND j.revision > :after::bigint AND j.time_us >= :since_us::bigint
), days AS MATERIALIZED (
    SELECT (value ->> 0)::bigint AS day, (value ->> 1)::bigint AS begins_us, (value ->> 2)::bigint AS ends_us
    FROM jsonb_array_elements(:days::jsonb) AS k(value)
), moves AS (
    SELECT walk.previous, r.create_time_us, coalesce((j.body::jsonb ->> 'held_change')::bigint, 0)
        + greatest(-coalesce((j.body::jsonb ->> 'balance_change')::bigint, 0), 0) AS change
    FROM walk JOIN journal j ON j.revision = walk.revision
    LEFT JOIN reservations r ON r.created_by = j.body::jsonb ->> 'created_by'
        AND r.reservation_id = j.body::jsonb ->> 'reservation_id'
)
SELECT coalesce(d.day, 0) AS day, sum(m.change)::bigint AS amount, min(m.previous) AS next_revision
FROM moves m LEFT JOIN days d ON m.create_time_us >= d.begins_us AND m.create_time_us < d.ends_us
GROUP BY 1 ORDER BY 1;

-- What an audit asks. A page is walked by key, and takes no lock.

-- name: page_accounts(after_a, after_b, limit)
SELECT * FROM accounts WHERE (account_id, asset) > (:after_a, :after_b) ORDER BY account_id, asset LIMIT :limit::bigint;

-- name: find_accounts(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN accounts t ON t.account_id = k.value ->> 0 AND t.asset = k.value ->> 1;

-- name: count_accounts()
SELECT count(*) AS count FROM accounts;

-- name: page_reservations(after_a, after_b, limit)
SELECT * FROM reservations WHERE (created_by, reservation_id) > (:after_a, :after_b) ORDER BY created_by, reservation_id LIMIT :limit::bigint;

-- name: find_reservations(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN reservations t ON t.created_by = k.value ->> 0 AND t.reservation_id = k.value ->> 1;

-- name: count_reservations()
SELECT count(*) AS count FROM reservations;

-- name: page_lots(after_a, limit)
SELECT * FROM lots WHERE lot_id > :after_a ORDER BY lot_id LIMIT :limit::bigint;

-- name: find_lots(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN lots t ON t.lot_id = (k.value ->> 0)::bigint;

-- name: count_lots()
SELECT count(*) AS count FROM lots;

-- name: page_grants(after_a, after_b, limit)
SELECT * FROM grants WHERE (created_by, grant_id) > (:after_a, :after_b) ORDER BY created_by, grant_id LIMIT :limit::bigint;

-- name: find_grants(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN grants t ON t.created_by = k.value ->> 0 AND t.grant_id = k.value ->> 1;

-- name: count_grants()
SELECT count(*) AS count FROM grants;

-- name: page_operations(after_a, after_b, after_c, limit)
SELECT * FROM operations WHERE (created_by, reservation_id, operation_id) > (:after_a, :after_b, :after_c) ORDER BY created_by, reservation_id, operation_id LIMIT :limit::bigint;

-- name: find_operations(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN operations t ON t.created_by = k.value ->> 0 AND t.reservation_id = k.value ->> 1 AND t.operation_id = k.value ->> 2;

-- name: count_operations()
SELECT count(*) AS count FROM operations;

-- name: page_account_changes(after_a, after_b, limit)
SELECT * FROM account_changes WHERE (created_by, change_id) > (:after_a, :after_b) ORDER BY created_by, change_id LIMIT :limit::bigint;

-- name: find_account_changes(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN account_changes t ON t.created_by = k.value ->> 0 AND t.change_id = k.value ->> 1;

-- name: count_account_changes()
SELECT count(*) AS count FROM account_changes;

-- name: page_counters(after_a, after_b, after_c, limit)
SELECT * FROM counters WHERE (account_id, counter, day) > (:after_a, :after_b, :after_c) ORDER BY account_id, counter, day LIMIT :limit::bigint;

-- name: find_counters(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN counters t ON t.account_id = k.value ->> 0 AND t.counter = k.value ->> 1 AND t.day = (k.value ->> 2)::bigint;

-- name: count_counters()
SELECT count(*) AS count FROM counters;

-- name: page_earnings(after_a, after_b, limit)
SELECT * FROM earnings WHERE (created_by, earning_id) > (:after_a, :after_b) ORDER BY created_by, earning_id LIMIT :limit::bigint;

-- name: find_earnings(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN earnings t ON t.created_by = k.value ->> 0 AND t.earning_id = k.value ->> 1;

-- name: count_earnings()
SELECT count(*) AS count FROM earnings;

-- name: page_streaks(after_a, limit)
SELECT * FROM streaks WHERE account_id > :after_a ORDER BY account_id LIMIT :limit::bigint;

-- name: find_streaks(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN streaks t ON t.account_id = k.value ->> 0;

-- name: count_streaks()
SELECT count(*) AS count FROM streaks;

-- name: page_rule_sets(after_a, limit)
SELECT * FROM rule_sets WHERE version > :after_a ORDER BY version LIMIT :limit::bigint;

-- name: find_rule_sets(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN rule_sets t ON t.version = k.value ->> 0;

-- name: count_rule_sets()
SELECT count(*) AS count FROM rule_sets;

-- name: page_teams(after_a, limit)
SELECT * FROM teams WHERE team_id > :after_a ORDER BY team_id LIMIT :limit::bigint;

-- name: find_teams(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN teams t ON t.team_id = k.value ->> 0;

-- name: count_teams()
SELECT count(*) AS count FROM teams;

-- name: page_members(after_a, after_b, limit)
SELECT * FROM members WHERE (team_id, member_id) > (:after_a, :after_b) ORDER BY team_id, member_id LIMIT :limit::bigint;

-- name: find_members(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN members t ON t.team_id = k.value ->> 0 AND t.member_id = k.value ->> 1;

-- name: count_members()
SELECT count(*) AS count FROM members;

-- name: page_team_changes(after_a, after_b, limit)
SELECT * FROM team_changes WHERE (created_by, change_id) > (:after_a, :after_b) ORDER BY created_by, change_id LIMIT :limit::bigint;

-- name: find_team_changes(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN team_changes t ON t.created_by = k.value ->> 0 AND t.change_id = k.value ->> 1;

-- name: count_team_changes()
SELECT count(*) AS count FROM team_changes;

-- name: page_gifts(after_a, after_b, limit)
SELECT * FROM gifts WHERE (created_by, gift_id) > (:after_a, :after_b) ORDER BY created_by, gift_id LIMIT :limit::bigint;

-- name: find_gifts(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN gifts t ON t.created_by = k.value ->> 0 AND t.gift_id = k.value ->> 1;

-- name: count_gifts()
SELECT count(*) AS count FROM gifts;

-- name: page_offers(after_a, after_b, limit)
SELECT * FROM offers WHERE (account_id, offer_id) > (:after_a, :after_b) ORDER BY account_id, offer_id LIMIT :limit::bigint;

-- name: find_offers(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN offers t ON t.account_id = k.value ->> 0 AND t.offer_id = k.value ->> 1;

-- name: count_offers()
SELECT count(*) AS count FROM offers;

-- name: page_takes(after_a, after_b, limit)
SELECT * FROM takes WHERE (created_by, take_id) > (:after_a, :after_b) ORDER BY created_by, take_id LIMIT :limit::bigint;

-- name: find_takes(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN takes t ON t.created_by = k.value ->> 0 AND t.take_id = k.value ->> 1;

-- name: count_takes()
SELECT count(*) AS count FROM takes;

-- name: page_spending_limits(after_a, limit)
SELECT * FROM spending_limits WHERE account_id > :after_a ORDER BY account_id LIMIT :limit::bigint;

-- name: find_spending_limits(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN spending_limits t ON t.account_id = k.value ->> 0;

-- name: count_spending_limits()
SELECT count(*) AS count FROM spending_limits;

-- name: page_limit_changes(after_a, after_b, limit)
SELECT * FROM limit_changes WHERE (created_by, change_id) > (:after_a, :after_b) ORDER BY created_by, change_id LIMIT :limit::bigint;

-- name: find_limit_changes(keys)
SELECT t.* FROM jsonb_array_elements(:keys::jsonb) AS k(value) JOIN limit_changes t ON t.created_by = k.value ->> 0 AND t.change_id = k.value ->> 1;

-- name: count_limit_changes()
SELECT count(*) AS count FROM limit_changes;

-- name: list_system_accounts()
SELECT account_id, asset, balance FROM system_accounts;

-- name: check_holds()
-- An account whose held tokens are not the sum of its open reservations: what they should be, and what they are.
SELECT a.account_id, a.revision, coalesce(h.held, 0) AS expected, a.held AS found FROM accounts a
LEFT JOIN (
    SELECT payer_account_id, sum(reserved - released)::bigint AS held FROM reservations WHERE state = 1 GROUP BY payer_account_id
) h ON h.payer_account_id = a.account_id
WHERE a.asset = 'TOKEN' AND a.held <> coalesce(h.held, 0) LIMIT 1;

-- name: check_lots()
-- An account that has less than its lots, or another number of them.
SELECT a.account_id, a.revision, l.remaining AS expected, a.balance AS found FROM accounts a
JOIN (
    SELECT account_id, sum(remaining)::bigint AS remaining, sum(held)::bigint AS held, count(*) AS lots
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
FROM (SELECT coalesce(sum(tokens - sold), 0)::bigint AS offered FROM offers WHERE state = 1) o
CROSS JOIN (
    SELECT coalesce(sum(balance), 0)::bigint AS balance FROM system_accounts WHERE account_id = '@escrow' AND asset = 'TOKEN'
) e
WHERE o.offered <> e.balance;
