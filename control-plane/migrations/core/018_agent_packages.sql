-- The agent's packages that the control plane hands out to new devices: the newest of each kind. The bytes are blobs.
CREATE TABLE agent_packages (
    architecture    TEXT NOT NULL,
    format          TEXT NOT NULL,
    file            TEXT NOT NULL UNIQUE,
    version         TEXT NOT NULL,
    digest          TEXT NOT NULL,
    size_bytes      INTEGER NOT NULL,
    published_at_ms INTEGER NOT NULL,
    PRIMARY KEY (architecture, format)
) STRICT;
