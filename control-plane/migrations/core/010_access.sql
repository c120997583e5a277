-- A password is a PHC string of argon2id; without one the user signs in by other means. `epoch` grows when every session of
-- the user must end. `subject` is who the identity provider says it is: its issuer and subject.
CREATE TABLE users (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    password TEXT,
    subject TEXT UNIQUE,
    disabled INTEGER NOT NULL DEFAULT 0,
    epoch INTEGER NOT NULL DEFAULT 0,
    created_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The tokens from before had neither a role nor an end: they are forgotten, and the next start shows a new first one.
DROP TABLE api_tokens;

-- `owner` is the user that it acts for. `person` answers for one that stands alone: who made it.
CREATE TABLE access_tokens (
    id TEXT PRIMARY KEY,
    hash BLOB NOT NULL,
    name TEXT NOT NULL,
    owner TEXT REFERENCES users (name),
    person TEXT NOT NULL,
    role TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER,
    last_used_at_ms INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX access_tokens_by_owner ON access_tokens (owner);
