//! The SQL of writing telemetry. That of reading it is in `query`.
//!
//! Invariant: all of one batch is inside one transaction, and whatever the cache remembers was committed or is about to be
//! by the same transaction; who rolls back throws the cache away.

use std::collections::HashMap;

use prost::Message as _;
use rusqlite::{CachedStatement, Connection, OptionalExtension, params};
use skerry_shared::{
    histogram::Histogram,
    id::{BootId, DeviceId, ModelName, ModelVersion},
    otlp::ExponentialHistogramDataPoint,
};

use super::decode::{Content, Decoded, Frame, Kind, PointValue, SeriesKey};
use crate::db::{DbError, from_json};

/// Series of one device. A device that invents attributes is refused beyond it, and costs the others nothing.
pub(super) const SERIES_MAX: usize = 4096;
/// Series remembered for all devices: about 60 MB. Above it the cache starts anew.
const CACHED_SERIES_MAX: usize = 250_000;
const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 86_400_000;
/// Frames deleted in one step: some tens of milliseconds, so that ingest does not wait longer.
const EXPIRE_FRAMES: usize = 2000;
/// After so long without a sign of one start of an agent, its frames would be taken for new ones.
const BOOT_DAYS: u64 = 400;

/// Row ids by name, as far as they were needed.
#[derive(Debug, Default)]
pub(super) struct Cache {
    devices: HashMap<DeviceId, Device>,
    series: usize,
}

#[derive(Debug)]
struct Device {
    row: i64,
    boots: HashMap<BootId, Seen>,
    series: HashMap<SeriesKey, Series>,
    /// Not written yet.
    counts: Counts,
}

/// A row that is marked once a day while it is used.
#[derive(Clone, Copy, Debug)]
struct Seen {
    row: i64,
    day: i64,
}

#[derive(Clone, Copy, Debug)]
struct Series {
    seen: Seen,
    role: Option<(Role, i64)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    frames: i64,
    points: i64,
    duplicates: i64,
    rejected: i64,
}

/// What a series means to the sums of its model version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inferences,
    Errors,
    BadRequests,
    Latency,
}

/// One hour of one model version, as far as a batch adds to it.
#[derive(Default)]
struct Hour {
    inferences: i64,
    errors: i64,
    bad_requests: i64,
    latency: Histogram,
}

/// Stores a batch and counts what was not stored.
pub(super) fn insert(conn: &Connection, cache: &mut Cache, batch: &[Decoded], now_ms: u64) -> Result<(), DbError> {
    if cache.series > CACHED_SERIES_MAX {
        *cache = Cache::default();
    }
    let mut writer = Writer {
        conn,
        now_ms,
        frame: conn.prepare_cached("INSERT INTO frames (device, received_ms, device_ms) VALUES (?1, ?2, ?3)")?,
        point: conn.prepare_cached("INSERT INTO points (frame, series, age_ms, value) VALUES (?1, ?2, ?3, ?4)")?,
        hours: HashMap::new(),
    };
    for message in batch {
        if !cache.devices.contains_key(&message.device) {
            let device = load_device(conn, &message.device, now_ms)?;
            cache.series += device.series.len();
            cache.devices.insert(message.device.clone(), device);
        }
        let device = cache.devices.get_mut(&message.device).expect("it was just put there");
        let known = device.series.len();
        writer.message(device, &message.content)?;
        cache.series += device.series.len() - known;
    }
    let hours = writer.hours;
    for ((served, hour), sums) in hours {
        add_to_hour(conn, served, hour, &sums, now_ms)?;
    }
    for message in batch {
        if let Some(device) = cache.devices.get_mut(&message.device) {
            write_counts(conn, device, now_ms)?;
        }
    }
    Ok(())
}

struct Writer<'a> {
    conn: &'a Connection,
    now_ms: u64,
    frame: CachedStatement<'a>,
    point: CachedStatement<'a>,
    hours: HashMap<(i64, i64), Hour>,
}

impl Writer<'_> {
    fn message(&mut self, device: &mut Device, content: &Content) -> Result<(), DbError> {
        let id = match content {
            Content::Frame(frame) => &frame.id,
            Content::Malformed(id) => id,
            Content::Unknown => {
                device.counts.rejected += 1;
                return Ok(());
            }
        };
        let boot = boot_row(self.conn, device, &id.boot_id, self.now_ms)?;
        // A malformed number beyond all numbers is not remembered, only refused again.
        let seq = i64::try_from(id.seq).ok().filter(|seq| (1..i64::MAX).contains(seq));
        if let Some(seq) = seq
            && !mark_received(self.conn, boot, seq)?
        {
            device.counts.duplicates += 1;
            return Ok(());
        }
        let stored = match content {
            Content::Frame(frame) => self.store(device, frame)?,
            Content::Malformed(_) | Content::Unknown => false,
        };
        if stored {
            device.counts.frames += 1;
        } else {
            device.counts.rejected += 1;
        }
        Ok(())
    }

    /// False when the frame has too many series, or two points of one series at one time: then nothing of it is stored.
    fn store(&mut self, device: &mut Device, frame: &Frame) -> Result<bool, DbError> {
        let mut points = Vec::with_capacity(frame.points.len());
        for point in &frame.points {
            let Some(series) = series(self.conn, device, &point.series, self.now_ms)? else {
                return Ok(false);
            };
            points.push((series.seen.row, frame.device_ms - point.time_ms, series, &point.value));
        }
        // In the order of the primary key: each row goes behind the one before.
        points.sort_unstable_by_key(|(row, age_ms, ..)| (*row, *age_ms));
        if points
            .windows(2)
            .any(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1))
        {
            return Ok(false);
        }
        self.frame
            .execute(params![device.row, self.now_ms as i64, frame.device_ms])?;
        let row = self.conn.last_insert_rowid();
        for (series_row, age_ms, series, value) in points {
            match value {
                PointValue::Int(value) => self.point.execute(params![row, series_row, age_ms, value])?,
                PointValue::Real(value) => self.point.execute(params![row, series_row, age_ms, value])?,
                PointValue::Histogram(histogram) => {
                    self.point
                        .execute(params![row, series_row, age_ms, to_blob(histogram)])?
                }
            };
            if let Some((role, served)) = series.role {
                let hour = self.hours.entry((served, (self.now_ms / HOUR_MS) as i64)).or_default();
                match (role, value) {
                    (Role::Inferences, PointValue::Int(count)) => hour.inferences += (*count).max(0),
                    (Role::Errors, PointValue::Int(count)) => hour.errors += (*count).max(0),
                    (Role::BadRequests, PointValue::Int(count)) => hour.bad_requests += (*count).max(0),
                    (Role::Latency, PointValue::Histogram(histogram)) => hour.latency.merge(histogram),
                    _ => {}
                }
            }
        }
        device.counts.points += frame.points.len() as i64;
        Ok(true)
    }
}

fn load_device(conn: &Connection, id: &DeviceId, now_ms: u64) -> Result<Device, DbError> {
    conn.prepare_cached("INSERT INTO devices (device, last_at_ms) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
        .execute(params![id.as_str(), now_ms as i64])?;
    let row: i64 = conn
        .prepare_cached("SELECT id FROM devices WHERE device = ?1")?
        .query_row([id.as_str()], |row| row.get(0))?;
    let mut series = HashMap::new();
    let sql = "SELECT id, last_day, metric, kind, unit, attributes, served FROM series WHERE device = ?1";
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query([row])?;
    while let Some(row) = rows.next()? {
        let seen = Seen {
            row: row.get(0)?,
            day: row.get(1)?,
        };
        let kind: String = row.get(3)?;
        let kind = Kind::parse(&kind).ok_or_else(|| DbError::Corrupt(format!("`{kind}` is no kind of a metric")))?;
        let key = SeriesKey {
            metric: row.get(2)?,
            kind,
            unit: row.get(4)?,
            attributes: row.get(5)?,
        };
        let served: Option<i64> = row.get(6)?;
        let role = served.zip(role(&key)?).map(|(served, (role, ..))| (role, served));
        series.insert(key, Series { seen, role });
    }
    Ok(Device {
        row,
        boots: HashMap::new(),
        series,
        counts: Counts::default(),
    })
}

fn boot_row(conn: &Connection, device: &mut Device, boot_id: &BootId, now_ms: u64) -> Result<i64, DbError> {
    let today = (now_ms / DAY_MS) as i64;
    if let Some(seen) = device.boots.get(boot_id)
        && seen.day == today
    {
        return Ok(seen.row);
    }
    let sql = "INSERT INTO boots (device, boot_id, last_day) VALUES (?1, ?2, ?3)
               ON CONFLICT DO UPDATE SET last_day = excluded.last_day RETURNING id";
    let row = conn
        .prepare_cached(sql)?
        .query_row(params![device.row, boot_id.as_str(), today], |row| row.get(0))?;
    // A device has one boot at a time; the others are found in the table.
    device.boots.clear();
    device.boots.insert(boot_id.clone(), Seen { row, day: today });
    Ok(row)
}

/// Notes a frame's number; false when it was noted before.
pub(super) fn mark_received(conn: &Connection, boot: i64, seq: i64) -> Result<bool, DbError> {
    let sql = "SELECT first_seq, last_seq FROM received WHERE boot = ?1 AND first_seq <= ?2 + 1
               ORDER BY first_seq DESC LIMIT 2";
    let mut statement = conn.prepare_cached(sql)?;
    let ranges = statement.query_map(params![boot, seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let ranges = ranges.collect::<Result<Vec<(i64, i64)>, _>>()?;
    if ranges.iter().any(|(first, last)| (*first..=*last).contains(&seq)) {
        return Ok(false);
    }
    let after = ranges.iter().find(|(first, _)| *first == seq + 1);
    let before = ranges.iter().find(|(_, last)| *last == seq - 1);
    if let Some((first, _)) = after {
        conn.prepare_cached("DELETE FROM received WHERE boot = ?1 AND first_seq = ?2")?
            .execute([boot, *first])?;
    }
    let (first, last) = (
        before.map_or(seq, |(first, _)| *first),
        after.map_or(seq, |(_, last)| *last),
    );
    let sql = "INSERT INTO received (boot, first_seq, last_seq) VALUES (?1, ?2, ?3)
               ON CONFLICT DO UPDATE SET last_seq = excluded.last_seq";
    conn.prepare_cached(sql)?.execute([boot, first, last])?;
    Ok(true)
}

/// The row of a series; `None` when the device has too many.
fn series(conn: &Connection, device: &mut Device, key: &SeriesKey, now_ms: u64) -> Result<Option<Series>, DbError> {
    let today = (now_ms / DAY_MS) as i64;
    if let Some(series) = device.series.get_mut(key) {
        if series.seen.day != today {
            series.seen.day = today;
            conn.prepare_cached("UPDATE series SET last_day = ?2 WHERE id = ?1")?
                .execute([series.seen.row, today])?;
        }
        return Ok(Some(*series));
    }
    if device.series.len() >= SERIES_MAX {
        return Ok(None);
    }
    let role = match role(key)? {
        Some((role, model, version)) => Some((role, served_row(conn, device.row, &model, version)?)),
        None => None,
    };
    let sql = "INSERT INTO series (device, metric, kind, unit, attributes, served, last_day)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let served = role.map(|(_, served)| served);
    let (kind, unit) = (key.kind.as_str(), &key.unit);
    conn.prepare_cached(sql)?.execute(params![
        device.row,
        key.metric,
        kind,
        unit,
        key.attributes,
        served,
        today
    ])?;
    let row = conn.last_insert_rowid();
    let series = Series {
        seen: Seen { row, day: today },
        role,
    };
    device.series.insert(key.clone(), series);
    Ok(Some(series))
}

/// What a series means, by its names; `None` for those that are only stored.
fn role(key: &SeriesKey) -> Result<Option<(Role, ModelName, ModelVersion)>, DbError> {
    if !key.metric.starts_with("skerry.inference.") {
        return Ok(None);
    }
    let attributes: serde_json::Value = from_json(&key.attributes)?;
    let role = match (key.metric.as_str(), key.kind, attributes["error.type"].as_str()) {
        ("skerry.inference.count", Kind::Delta, None) => Role::Inferences,
        ("skerry.inference.errors", Kind::Delta, Some("bundle")) => Role::Errors,
        ("skerry.inference.errors", Kind::Delta, Some("request")) => Role::BadRequests,
        ("skerry.inference.duration", Kind::Histogram, None) => Role::Latency,
        _ => return Ok(None),
    };
    let model = attributes["model.name"].as_str().and_then(|name| name.parse().ok());
    let version = attributes["model.version"].as_u64().map(ModelVersion);
    Ok(model.zip(version).map(|(model, version)| (role, model, version)))
}

fn served_row(conn: &Connection, device: i64, model: &ModelName, version: ModelVersion) -> Result<i64, DbError> {
    let version = version.0 as i64;
    conn.prepare_cached("INSERT INTO served (device, model, version) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?
        .execute(params![device, model.as_str(), version])?;
    let sql = "SELECT id FROM served WHERE device = ?1 AND model = ?2 AND version = ?3";
    let row = conn
        .prepare_cached(sql)?
        .query_row(params![device, model.as_str(), version], |row| row.get(0))?;
    Ok(row)
}

fn add_to_hour(conn: &Connection, served: i64, hour: i64, sums: &Hour, now_ms: u64) -> Result<(), DbError> {
    let stored: Option<Vec<u8>> = conn
        .prepare_cached("SELECT latency FROM hours WHERE served = ?1 AND hour = ?2")?
        .query_row([served, hour], |row| row.get(0))
        .optional()?;
    let mut latency = stored.map(|blob| from_blob(&blob)).transpose()?.unwrap_or_default();
    latency.merge(&sums.latency);
    let sql = "INSERT INTO hours (served, hour, inferences, errors, bad_requests, latency, last_at_ms)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
               ON CONFLICT DO UPDATE SET inferences = inferences + excluded.inferences, errors = errors + excluded.errors,
               bad_requests = bad_requests + excluded.bad_requests, latency = excluded.latency,
               last_at_ms = excluded.last_at_ms";
    conn.prepare_cached(sql)?.execute(params![
        served,
        hour,
        sums.inferences,
        sums.errors,
        sums.bad_requests,
        to_blob(&latency),
        now_ms as i64
    ])?;
    Ok(())
}

fn write_counts(conn: &Connection, device: &mut Device, now_ms: u64) -> Result<(), DbError> {
    let counts = std::mem::take(&mut device.counts);
    if counts.frames + counts.duplicates + counts.rejected == 0 {
        // Another message of the same device in this batch has written them.
        return Ok(());
    }
    let sql = "UPDATE devices SET frames = frames + ?2, points = points + ?3, duplicates = duplicates + ?4,
               rejected = rejected + ?5, last_at_ms = ?6 WHERE id = ?1";
    conn.prepare_cached(sql)?.execute(params![
        device.row,
        counts.frames,
        counts.points,
        counts.duplicates,
        counts.rejected,
        now_ms as i64
    ])?;
    Ok(())
}

/// A histogram as it is stored.
pub(super) fn to_blob(histogram: &Histogram) -> Vec<u8> {
    histogram.to_point(Vec::new(), 0, 0).encode_to_vec()
}

/// Reads a stored histogram.
pub(super) fn from_blob(blob: &[u8]) -> Result<Histogram, DbError> {
    let corrupt = |error: &dyn std::fmt::Display| DbError::Corrupt(error.to_string());
    let point = ExponentialHistogramDataPoint::decode(blob).map_err(|error| corrupt(&error))?;
    Histogram::from_point(&point).map_err(|error| corrupt(&error))
}

/// What a step of expiry has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expired {
    /// There is more to delete.
    Some,
    /// Everything older is gone.
    All,
}

/// Deletes the oldest points that were received before `before_ms`, one bounded step. Counters and `received` stay.
pub(super) fn expire(conn: &Connection, before_ms: u64, now_ms: u64) -> Result<Expired, DbError> {
    let mut statement = conn.prepare_cached("SELECT id, received_ms FROM frames ORDER BY id LIMIT ?1")?;
    let oldest = statement.query_map([EXPIRE_FRAMES as i64], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let oldest = oldest.collect::<Result<Vec<(i64, i64)>, _>>()?;
    let old = oldest
        .iter()
        .take_while(|(_, received_ms)| *received_ms < before_ms as i64);
    let (count, last) = old.fold((0, None), |(count, _), (id, _)| (count + 1, Some(*id)));
    if let Some(last) = last {
        conn.prepare_cached("DELETE FROM points WHERE frame <= ?1")?
            .execute([last])?;
        conn.prepare_cached("DELETE FROM frames WHERE id <= ?1")?
            .execute([last])?;
    }
    if count == EXPIRE_FRAMES {
        return Ok(Expired::Some);
    }
    conn.execute("DELETE FROM hours WHERE hour < ?1", [(before_ms / HOUR_MS) as i64])?;
    // A series is marked once a day: the day of the mark may have gone on after it.
    conn.execute("DELETE FROM series WHERE last_day < ?1", [(before_ms / DAY_MS) as i64])?;
    conn.execute(
        "DELETE FROM served WHERE NOT EXISTS (SELECT 1 FROM hours WHERE hours.served = served.id)
         AND NOT EXISTS (SELECT 1 FROM series WHERE series.served = served.id)",
        [],
    )?;
    let boots_before = (now_ms / DAY_MS).saturating_sub(BOOT_DAYS) as i64;
    conn.execute(
        "DELETE FROM received WHERE boot IN (SELECT id FROM boots WHERE last_day < ?1)",
        [boots_before],
    )?;
    conn.execute("DELETE FROM boots WHERE last_day < ?1", [boots_before])?;
    Ok(Expired::All)
}
