-- Keys that may enrol without a token: from a list of the factory, or approved by an operator. By the digest of the public key.
CREATE TABLE device_keys (
    fingerprint BLOB PRIMARY KEY CHECK (length(fingerprint) = 32),
    state TEXT NOT NULL CHECK (state IN ('listed', 'pending', 'approved', 'rejected')),
    -- The id that its device gets; none: the one it asks for.
    device TEXT,
    labels TEXT NOT NULL,
    -- What a pending device says of itself. Nobody has checked it.
    asked TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    -- A pending key is forgotten then, unless its device asks again.
    expires_at_ms INTEGER
) STRICT;
CREATE INDEX device_keys_by_state ON device_keys (state, created_at_ms);
-- When two agents with one identity were last seen to take turns.
ALTER TABLE devices ADD COLUMN duplicate_seen_at_ms INTEGER;
