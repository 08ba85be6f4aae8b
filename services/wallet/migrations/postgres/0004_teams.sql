-- migrate:up

-- 1 for a team, which pays for its members alone: the members of an account that is none are never looked for.
ALTER TABLE accounts ADD COLUMN team BIGINT NOT NULL DEFAULT 0 CHECK (team IN (0, 1));

-- The calendar day on which a team counts a reservation for its member; 0 when no team pays.
ALTER TABLE reservations ADD COLUMN spend_day BIGINT NOT NULL DEFAULT 0 CHECK (spend_day >= 0);

-- Accounts whose tokens their members spend.
CREATE TABLE teams (
    team_id TEXT PRIMARY KEY,
    created_by TEXT NOT NULL,
    owner_id TEXT NOT NULL,
    members BIGINT NOT NULL,
    owners BIGINT NOT NULL,
    create_time_us BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    CHECK (owners >= 1 AND members >= owners)
);

-- Who may spend a team's tokens. Roles: 0 REMOVED, 1 OWNER, 2 MANAGER, 3 MEMBER. Without a limit, as many as there are.
CREATE TABLE members (
    team_id TEXT NOT NULL,
    member_id TEXT NOT NULL,
    role BIGINT NOT NULL CHECK (role BETWEEN 0 AND 3),
    day_limit BIGINT CHECK (day_limit >= 0),
    month_limit BIGINT CHECK (month_limit >= 0),
    revision BIGINT NOT NULL,
    PRIMARY KEY (team_id, member_id)
);

-- Changes of members that were made, by their key.
CREATE TABLE team_changes (
    created_by TEXT NOT NULL,
    change_id TEXT NOT NULL,
    team_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('member', 'unmember')),
    acting_id TEXT NOT NULL,
    member_id TEXT NOT NULL,
    role BIGINT NOT NULL CHECK (role BETWEEN 0 AND 3),
    day_limit BIGINT,
    month_limit BIGINT,
    revision BIGINT NOT NULL,
    PRIMARY KEY (created_by, change_id)
);

-- migrate:down

DROP TABLE team_changes;
DROP TABLE members;
DROP TABLE teams;
ALTER TABLE reservations DROP COLUMN spend_day;
ALTER TABLE accounts DROP COLUMN team;
