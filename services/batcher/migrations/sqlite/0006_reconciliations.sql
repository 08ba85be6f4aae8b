-- migrate:up
-- When the books of the provider and of the wallet were last read whole. A backup says thereby how far it goes.
CREATE TABLE reconciliations (
    side TEXT PRIMARY KEY CHECK (side IN ('PROVIDER', 'WALLET')),
    begin_time_us INTEGER NOT NULL,
    complete_time_us INTEGER NOT NULL,
    CHECK (begin_time_us <= complete_time_us)
) STRICT;

-- migrate:down
DROP TABLE reconciliations;
