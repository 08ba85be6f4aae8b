-- name: schema_table()
SELECT name FROM sqlite_schema WHERE type = 'table' AND name = 'schema_migrations';

-- name: schema_versions()
SELECT version FROM schema_migrations ORDER BY version;

-- name: journal_open(epoch, hash, time_us)!
INSERT INTO journal_head (id, epoch, revision, hash, time_us) VALUES (1, :epoch, 0, :hash, :time_us)
ON CONFLICT (id) DO NOTHING;

-- name: journal_head()^
SELECT epoch, revision, hash, time_us FROM journal_head WHERE id = 1;

-- name: journal_lock()^
SELECT epoch, revision, hash, time_us FROM journal_head WHERE id = 1;

-- name: journal_advance(revision, hash, time_us)!
UPDATE journal_head SET revision = :revision, hash = :hash, time_us = :time_us WHERE id = 1;

-- name: journal_append(revision, time_us, kind, actor, subject, previous, body, hash)!
INSERT INTO journal (revision, time_us, kind, actor, subject, previous, body, hash)
VALUES (:revision, :time_us, :kind, :actor, :subject, :previous, :body, :hash);

-- name: journal_after(revision, count)
SELECT revision, time_us, kind, actor, subject, previous, body, hash FROM journal
WHERE revision > :revision ORDER BY revision LIMIT :count;

-- name: journal_back(revision, count)
WITH RECURSIVE walk AS (
    SELECT journal.*, 1 AS step FROM journal WHERE revision = :revision
    UNION ALL
    SELECT journal.*, walk.step + 1 FROM walk JOIN journal ON journal.revision = walk.previous
    WHERE walk.step < :count
)
SELECT revision, time_us, kind, actor, subject, previous, body, hash FROM walk ORDER BY revision DESC;

-- name: journal_page_start(revision, after, count)^
-- The oldest row of the page that a walk back from this revision makes: no more than so many rows, all behind `after`.
WITH RECURSIVE walk AS (
    SELECT revision, previous, time_us, 1 AS step FROM journal WHERE revision = :revision
    UNION ALL
    SELECT journal.revision, journal.previous, journal.time_us, walk.step + 1
    FROM walk JOIN journal ON journal.revision = walk.previous
    WHERE walk.step < :count AND walk.previous > :after
)
SELECT previous, time_us FROM walk ORDER BY revision LIMIT 1;

-- name: lease_acquire(name, holder, now_us, expire_time_us)^
INSERT INTO leases (name, holder, fence, expire_time_us) VALUES (:name, :holder, 1, :expire_time_us)
ON CONFLICT (name) DO UPDATE
SET holder = excluded.holder, fence = leases.fence + 1, expire_time_us = excluded.expire_time_us
WHERE leases.expire_time_us <= :now_us
RETURNING fence;

-- name: lease_renew(name, fence, expire_time_us)!
UPDATE leases SET expire_time_us = :expire_time_us WHERE name = :name AND fence = :fence;

-- name: lease_release(name, fence)!
UPDATE leases SET expire_time_us = 0 WHERE name = :name AND fence = :fence;

-- name: lease_check(name, fence)^
SELECT fence FROM leases WHERE name = :name AND fence = :fence;
