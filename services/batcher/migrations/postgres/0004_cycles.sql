-- migrate:up
-- The start of the last cycle whose batches are formed, by whichever replica: one row. 0: there was none yet.
CREATE TABLE planner (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    cycle_start_us BIGINT NOT NULL CHECK (cycle_start_us >= 0)
);

INSERT INTO planner (id, cycle_start_us) VALUES (1, 0);

-- migrate:down
DROP TABLE planner;
