-- OpenSSF Model Signing: by whom else a registered file is signed. The bundle itself is a blob.
CREATE TABLE model_signatures (
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    bundle TEXT NOT NULL,
    key TEXT NOT NULL,
    subject TEXT NOT NULL,
    verified_at_ms INTEGER NOT NULL,
    PRIMARY KEY (model, version),
    FOREIGN KEY (model, version) REFERENCES model_versions (model, version)
) STRICT, WITHOUT ROWID;
