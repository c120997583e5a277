-- Counters of each device since its first frame; retention never lowers them.
CREATE TABLE devices (
    id INTEGER PRIMARY KEY,
    device TEXT NOT NULL UNIQUE,
    frames INTEGER NOT NULL DEFAULT 0,
    points INTEGER NOT NULL DEFAULT 0,
    duplicates INTEGER NOT NULL DEFAULT 0,
    rejected INTEGER NOT NULL DEFAULT 0,
    last_at_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE boots (
    id INTEGER PRIMARY KEY,
    device INTEGER NOT NULL REFERENCES devices (id),
    boot_id TEXT NOT NULL,
    last_day INTEGER NOT NULL,
    UNIQUE (device, boot_id)
) STRICT;

-- The frames that were taken in, as ranges of their numbers: one row for a boot without gaps, however long it lives. It
-- outlives the frames, so that one sent again after their retention is still known.
CREATE TABLE received (
    boot INTEGER NOT NULL REFERENCES boots (id),
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    PRIMARY KEY (boot, first_seq)
) STRICT, WITHOUT ROWID;

-- `device_ms` is the device's time of its newest point, which may be wrong by years; `received_ms` is ours.
CREATE TABLE frames (
    id INTEGER PRIMARY KEY,
    device INTEGER NOT NULL REFERENCES devices (id),
    received_ms INTEGER NOT NULL,
    device_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX frames_by_device ON frames (device, received_ms);

-- The inferences of one model version on one device.
CREATE TABLE served (
    id INTEGER PRIMARY KEY,
    device INTEGER NOT NULL REFERENCES devices (id),
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    UNIQUE (device, model, version)
) STRICT;

CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    device INTEGER NOT NULL REFERENCES devices (id),
    metric TEXT NOT NULL,
    kind TEXT NOT NULL,
    unit TEXT NOT NULL,
    attributes TEXT NOT NULL,
    served INTEGER,
    last_day INTEGER NOT NULL,
    UNIQUE (device, metric, kind, unit, attributes)
) STRICT;
CREATE INDEX series_by_served ON series (served) WHERE served IS NOT NULL;

-- In the order of arrival, so that writing appends to few pages whatever the number of series. `value` is an integer, a
-- real or a histogram (an encoded data point); `age_ms` is how much older than its frame's newest point a point is.
CREATE TABLE points (
    frame INTEGER NOT NULL,
    series INTEGER NOT NULL,
    age_ms INTEGER NOT NULL,
    value ANY NOT NULL,
    PRIMARY KEY (frame, series, age_ms)
) STRICT, WITHOUT ROWID;

-- The sums of each hour, for questions about many devices or days.
CREATE TABLE hours (
    served INTEGER NOT NULL REFERENCES served (id),
    hour INTEGER NOT NULL,
    inferences INTEGER NOT NULL,
    errors INTEGER NOT NULL,
    bad_requests INTEGER NOT NULL,
    latency BLOB NOT NULL,
    last_at_ms INTEGER NOT NULL,
    PRIMARY KEY (served, hour)
) STRICT, WITHOUT ROWID;
CREATE INDEX hours_by_hour ON hours (hour);
