-- Every root that this repository ever had, by the digest that enrolment tokens carry. Its file is in tuf_files.
CREATE TABLE tuf_roots (
    version INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE
) STRICT;

-- Whether the rollout's devices may go below the model's min_release.
ALTER TABLE rollouts ADD COLUMN allow_downgrade INTEGER NOT NULL DEFAULT 0;

-- Published bundles that the newest targets metadata forbids: blocked, or below their model's min_release.
CREATE TABLE bundle_refusals (
    target TEXT PRIMARY KEY,
    code TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;
