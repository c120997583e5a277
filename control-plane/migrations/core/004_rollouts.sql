CREATE TABLE rollouts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    -- What devices are told, apart from the rollout's own number: target and chunk index of the bundle, probation.
    target TEXT NOT NULL,
    index_digest TEXT NOT NULL,
    probation_ms INTEGER NOT NULL,
    silent_after_ms INTEGER NOT NULL,
    selector TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    groups TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    ended_at_ms INTEGER,
    FOREIGN KEY (model, version) REFERENCES bundles (model, version)
) STRICT;

CREATE TABLE rollout_devices (
    rollout INTEGER NOT NULL REFERENCES rollouts (id),
    device TEXT NOT NULL REFERENCES devices (id),
    group_number INTEGER NOT NULL,
    state TEXT NOT NULL,
    -- The rest of the device's progress, as JSON: only the rollout itself reads it.
    progress TEXT NOT NULL,
    PRIMARY KEY (rollout, device)
) STRICT, WITHOUT ROWID;

CREATE INDEX rollout_devices_by_device ON rollout_devices (device);
