-- The name of this log: the first entry is chained to it, so no entry fits into another installation's log.
CREATE TABLE audit_log (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    origin TEXT NOT NULL
) STRICT;

INSERT INTO audit_log VALUES (1, 'skerry/' || lower(hex(randomblob(16))));

CREATE TABLE audit_entries (
    seq INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    object TEXT NOT NULL,
    details TEXT NOT NULL,
    prev_hash BLOB NOT NULL,
    hash BLOB NOT NULL
) STRICT;

CREATE INDEX audit_entries_by_object ON audit_entries (object, seq);

CREATE TABLE audit_checkpoints (
    size INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    envelope BLOB NOT NULL
) STRICT;

-- Against mistakes. Whoever can drop them is found by the chain and the checkpoints.
CREATE TRIGGER audit_log_is_fixed BEFORE UPDATE ON audit_log
BEGIN SELECT RAISE(ABORT, 'the audit log keeps its origin'); END;
CREATE TRIGGER audit_log_stays BEFORE DELETE ON audit_log
BEGIN SELECT RAISE(ABORT, 'the audit log keeps its origin'); END;
CREATE TRIGGER audit_entries_are_fixed BEFORE UPDATE ON audit_entries
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_entries_stay BEFORE DELETE ON audit_entries
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
-- REPLACE deletes without asking the trigger above.
CREATE TRIGGER audit_entries_follow BEFORE INSERT ON audit_entries
WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM audit_entries)
BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_checkpoints_are_fixed BEFORE UPDATE ON audit_checkpoints
BEGIN SELECT RAISE(ABORT, 'audit checkpoints are append-only'); END;
CREATE TRIGGER audit_checkpoints_stay BEFORE DELETE ON audit_checkpoints
BEGIN SELECT RAISE(ABORT, 'audit checkpoints are append-only'); END;
CREATE TRIGGER audit_checkpoints_follow BEFORE INSERT ON audit_checkpoints
WHEN NEW.size <= (SELECT coalesce(max(size), -1) FROM audit_checkpoints)
BEGIN SELECT RAISE(ABORT, 'audit checkpoints are append-only'); END;
