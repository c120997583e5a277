CREATE TABLE api_tokens (
    hash BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE device_tokens (
    hash BLOB PRIMARY KEY,
    labels TEXT NOT NULL,
    uses_left INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE devices (
    id TEXT PRIMARY KEY,
    labels TEXT NOT NULL,
    platform TEXT NOT NULL,
    agent_version TEXT NOT NULL,
    public_key TEXT NOT NULL,
    secret_hash BLOB NOT NULL,
    enrolled_at_ms INTEGER NOT NULL,
    last_seen_at_ms INTEGER,
    connected INTEGER NOT NULL DEFAULT 0,
    generation INTEGER NOT NULL DEFAULT 0,
    published_generation INTEGER NOT NULL DEFAULT 0,
    desired TEXT NOT NULL DEFAULT '[]',
    reported TEXT
) STRICT, WITHOUT ROWID;
