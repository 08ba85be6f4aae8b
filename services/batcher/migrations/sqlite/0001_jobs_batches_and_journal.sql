-- migrate:up
-- What an account has uploaded. The bytes are in the object store, under object_key.
CREATE TABLE images (
    account_id TEXT NOT NULL,
    image_id TEXT NOT NULL CHECK (length(image_id) = 64),
    media_type TEXT NOT NULL,
    width_pixels INTEGER NOT NULL CHECK (width_pixels > 0),
    height_pixels INTEGER NOT NULL CHECK (height_pixels > 0),
    size_bytes INTEGER NOT NULL CHECK (size_bytes > 0),
    object_key TEXT NOT NULL,
    create_time_us INTEGER NOT NULL,
    PRIMARY KEY (account_id, image_id)
) STRICT;

-- A job is written once with what was asked, and changed only by the state machine. superseded: the same job_id was
-- submitted again after the wallet had refused it, under a new uid.
CREATE TABLE jobs (
    uid TEXT PRIMARY KEY,
    account_id TEXT NOT NULL,
    job_id TEXT NOT NULL,
    superseded INTEGER NOT NULL DEFAULT 0,
    payer_account_id TEXT NOT NULL,
    lane TEXT NOT NULL CHECK (lane IN ('BATCH', 'INSTANT')),
    model TEXT NOT NULL,
    detail TEXT NOT NULL CHECK (detail IN ('LOW', 'HIGH', 'AUTO')),
    max_output_tokens INTEGER NOT NULL CHECK (max_output_tokens > 0),
    price INTEGER NOT NULL CHECK (price > 0 AND price <= 1000000000000000),
    price_version TEXT NOT NULL,
    line_bytes INTEGER NOT NULL CHECK (line_bytes > 0),
    deadline_us INTEGER NOT NULL,
    hold_duration_us INTEGER NOT NULL CHECK (hold_duration_us > 0),
    create_time_us INTEGER NOT NULL,
    update_time_us INTEGER NOT NULL,
    queue_time_us INTEGER NOT NULL,
    not_before_us INTEGER NOT NULL,
    hold_expire_time_us INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (
        state IN ('ADMITTING', 'QUEUED', 'BATCHED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'EXPIRED', 'CANCELLED', 'REJECTED')
    ),
    attempt INTEGER NOT NULL CHECK (attempt >= 0),
    batch_id TEXT NOT NULL,
    cancel_requested INTEGER NOT NULL,
    last_revision INTEGER NOT NULL CHECK (last_revision > 0),
    -- The request as the client sent it, as JSON: the fingerprint of the key job_id.
    request TEXT NOT NULL,
    answer TEXT,
    finish_reason TEXT,
    input_tokens INTEGER,
    output_tokens INTEGER,
    failure_code TEXT,
    failure_message TEXT,
    CHECK ((state = 'SUCCEEDED') = (finish_reason IS NOT NULL)),
    CHECK ((state IN ('FAILED', 'EXPIRED', 'CANCELLED', 'REJECTED')) = (failure_code IS NOT NULL)),
    CHECK (state <> 'BATCHED' OR batch_id <> '')
) STRICT;

CREATE UNIQUE INDEX jobs_by_key ON jobs (account_id, job_id) WHERE NOT superseded;
CREATE INDEX jobs_by_account ON jobs (account_id, uid) WHERE NOT superseded;
CREATE INDEX jobs_admitting ON jobs (uid) WHERE state = 'ADMITTING';
CREATE INDEX jobs_waiting ON jobs (deadline_us) WHERE state IN ('ADMITTING', 'QUEUED');
CREATE INDEX jobs_in_batch ON jobs (batch_id, uid) WHERE state IN ('BATCHED', 'RUNNING');
CREATE INDEX jobs_held ON jobs (hold_expire_time_us) WHERE state IN ('QUEUED', 'BATCHED', 'RUNNING');

CREATE TABLE batches (
    batch_id TEXT PRIMARY KEY,
    model TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('PLANNED', 'SUBMITTING', 'RUNNING', 'INGESTING', 'CLOSED')),
    jobs INTEGER NOT NULL CHECK (jobs >= 0),
    create_time_us INTEGER NOT NULL,
    update_time_us INTEGER NOT NULL,
    not_before_us INTEGER NOT NULL,
    submission INTEGER NOT NULL CHECK (submission >= 0),
    provider_batch_id TEXT NOT NULL,
    provider_state TEXT NOT NULL,
    total INTEGER NOT NULL CHECK (total >= 0),
    completed INTEGER NOT NULL CHECK (completed >= 0),
    failed INTEGER NOT NULL CHECK (failed >= 0),
    output_file_id TEXT NOT NULL,
    error_file_id TEXT NOT NULL,
    cancel_sent INTEGER NOT NULL,
    problem TEXT NOT NULL,
    last_revision INTEGER NOT NULL CHECK (last_revision > 0),
    CHECK (state NOT IN ('RUNNING', 'INGESTING') OR provider_batch_id <> '')
) STRICT;

CREATE INDEX batches_open ON batches (batch_id) WHERE state <> 'CLOSED';

-- Each try to buy a batch, written before the try. doubt_time_us: since when its input file is gone, or
-- when it was found in the provider's list; 0 while neither was needed.
CREATE TABLE submissions (
    batch_id TEXT NOT NULL REFERENCES batches (batch_id),
    attempt INTEGER NOT NULL CHECK (attempt > 0),
    intent_id TEXT NOT NULL UNIQUE,
    provider_identity TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    provider_batch_id TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('OPEN', 'ADOPTED', 'ABANDONED')),
    create_time_us INTEGER NOT NULL,
    doubt_time_us INTEGER NOT NULL,
    PRIMARY KEY (batch_id, attempt),
    CHECK ((state = 'ADOPTED') = (provider_batch_id <> ''))
) STRICT;

CREATE UNIQUE INDEX submissions_open ON submissions (batch_id) WHERE state = 'OPEN';
CREATE INDEX submissions_by_time ON submissions (create_time_us);

-- Each try to answer a job. A batch's members are its attempts, for ever. lease_time_us: until when an instant try is
-- left to the process that began it.
CREATE TABLE attempts (
    uid TEXT NOT NULL REFERENCES jobs (uid),
    attempt INTEGER NOT NULL CHECK (attempt > 0),
    batch_id TEXT NOT NULL,
    start_time_us INTEGER NOT NULL,
    end_time_us INTEGER NOT NULL,
    lease_time_us INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (uid, attempt)
) STRICT;

CREATE INDEX attempts_in_batch ON attempts (batch_id, uid) WHERE outcome = '';

-- What an ended job owes the wallet: one row a job, so that nobody is charged twice.
CREATE TABLE settlements (
    uid TEXT PRIMARY KEY REFERENCES jobs (uid),
    action TEXT NOT NULL CHECK (action IN ('COMMIT', 'RELEASE')),
    amount INTEGER NOT NULL CHECK (amount >= 0),
    state TEXT NOT NULL CHECK (state IN ('PENDING', 'SETTLED', 'REFUSED')),
    create_time_us INTEGER NOT NULL,
    update_time_us INTEGER NOT NULL,
    refusal TEXT NOT NULL,
    CHECK ((action = 'COMMIT') = (amount > 0)),
    CHECK ((state = 'REFUSED') = (refusal <> ''))
) STRICT;

CREATE INDEX settlements_pending ON settlements (uid) WHERE state = 'PENDING';

CREATE TABLE journal (
    revision INTEGER PRIMARY KEY,
    time_us INTEGER NOT NULL,
    kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    subject TEXT NOT NULL,
    previous INTEGER NOT NULL CHECK (previous >= 0 AND previous < revision),
    body TEXT NOT NULL,
    hash TEXT NOT NULL CHECK (length(hash) = 64)
) STRICT;

CREATE TRIGGER journal_refuses_update BEFORE UPDATE ON journal
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only');
END;

CREATE TRIGGER journal_refuses_delete BEFORE DELETE ON journal
BEGIN
    SELECT RAISE(ABORT, 'the journal is append-only');
END;

CREATE TABLE journal_head (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch TEXT NOT NULL,
    revision INTEGER NOT NULL CHECK (revision >= 0),
    hash TEXT NOT NULL CHECK (length(hash) = 64),
    time_us INTEGER NOT NULL
) STRICT;

CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    fence INTEGER NOT NULL CHECK (fence > 0),
    expire_time_us INTEGER NOT NULL
) STRICT;

-- migrate:down
DROP TABLE settlements;
DROP TABLE attempts;
DROP TABLE submissions;
DROP TABLE batches;
DROP TABLE jobs;
DROP TABLE images;
DROP TABLE leases;
DROP TABLE journal_head;
DROP TABLE journal;
