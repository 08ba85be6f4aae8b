-- migrate:up
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

-- migrate:down
DROP TABLE leases;
DROP TABLE journal_head;
DROP TABLE journal;
DROP FUNCTION journal_refuse();
