-- migrate:up
-- What an instant job costs once it has fallen back to the lane BATCH, pinned when it was accepted; 0 where it may not.
ALTER TABLE jobs ADD COLUMN fallback_price BIGINT NOT NULL DEFAULT 0 CHECK (fallback_price >= 0);

-- Holds that are larger than what their job costs since it fell back: one row a job, until the wallet has answered.
CREATE TABLE lowerings (
    uid TEXT PRIMARY KEY REFERENCES jobs (uid),
    amount BIGINT NOT NULL CHECK (amount > 0),
    state TEXT NOT NULL CHECK (state IN ('PENDING', 'DONE', 'REFUSED')),
    create_time_us BIGINT NOT NULL,
    update_time_us BIGINT NOT NULL,
    refusal TEXT NOT NULL,
    CHECK ((state = 'REFUSED') = (refusal <> ''))
);

CREATE INDEX lowerings_pending ON lowerings (uid) WHERE state = 'PENDING';

-- When a job ended; 0 while it has not. Of jobs that had ended before this column came, when they last changed.
ALTER TABLE jobs ADD COLUMN end_time_us BIGINT NOT NULL DEFAULT 0;
UPDATE jobs SET end_time_us = update_time_us
WHERE state IN ('SUCCEEDED', 'FAILED', 'EXPIRED', 'CANCELLED', 'REJECTED');

CREATE INDEX jobs_dead ON jobs (end_time_us, uid) WHERE state IN ('FAILED', 'EXPIRED');

-- migrate:down
DROP INDEX jobs_dead;
ALTER TABLE jobs DROP COLUMN end_time_us;
DROP TABLE lowerings;
ALTER TABLE jobs DROP COLUMN fallback_price;
