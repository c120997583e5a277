-- Every metadata file ever published, by its file name; `current` names the newest of each role.
CREATE TABLE tuf_files (
    name TEXT PRIMARY KEY,
    content BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tuf_current (
    role TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    name TEXT NOT NULL REFERENCES tuf_files (name),
    expires_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE bundles (
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    target TEXT NOT NULL,
    index_digest TEXT NOT NULL,
    index_bytes INTEGER NOT NULL,
    total_bytes INTEGER NOT NULL,
    wire_bytes INTEGER NOT NULL,
    published_at_ms INTEGER NOT NULL,
    PRIMARY KEY (model, version),
    FOREIGN KEY (model, version) REFERENCES model_versions (model, version)
) STRICT, WITHOUT ROWID;
