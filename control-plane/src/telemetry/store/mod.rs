//! The SQL of writing telemetry. That of reading it is in `query`.
//!
//! Invariant: all of one batch is inside one transaction, and whatever the cache remembers was committed or is about to be
//! by the same transaction; who rolls back throws the cache away.

mod hours;
mod rows;

use std::collections::HashMap;

use rusqlite::{CachedStatement, Connection, params};

use super::decode::{Content, Decoded, Frame, PointValue};
use crate::db::DbError;
use hours::Hour;
use rows::Device;

pub(super) use hours::from_blob;
pub(super) use rows::Cache;
#[cfg(test)]
pub(super) use rows::SERIES_MAX;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 86_400_000;
/// Frames deleted in one step: some tens of milliseconds, so that ingest does not wait longer.
const EXPIRE_FRAMES: usize = 2000;
/// After so long without a sign of one start of an agent, its frames would be taken for new ones.
const BOOT_DAYS: u64 = 400;

/// Stores a batch and counts what was not stored.
pub(super) fn insert(conn: &Connection, cache: &mut Cache, batch: &[Decoded], now_ms: u64) -> Result<(), DbError> {
    cache.trim();
    let mut writer = Writer {
        conn,
        now_ms,
        frame: conn.prepare_cached("INSERT INTO frames (device, received_ms, device_ms) VALUES (?1, ?2, ?3)")?,
        point: conn.prepare_cached("INSERT INTO points (frame, series, age_ms, value) VALUES (?1, ?2, ?3, ?4)")?,
        counts: HashMap::new(),
        hours: HashMap::new(),
    };
    for message in batch {
        let device = cache.device(conn, &message.device, now_ms)?;
        writer.message(device, &message.content)?;
    }
    let Writer { counts, hours, .. } = writer;
    for (device, counts) in counts {
        write_counts(conn, device, counts, now_ms)?;
    }
    for ((served, hour), sums) in hours {
        sums.write(conn, served, hour, now_ms)?;
    }
    Ok(())
}

/// What is added to a device's counters.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    frames: i64,
    points: i64,
    duplicates: i64,
    rejected: i64,
}

struct Writer<'a> {
    conn: &'a Connection,
    now_ms: u64,
    frame: CachedStatement<'a>,
    point: CachedStatement<'a>,
    counts: HashMap<i64, Counts>,
    hours: HashMap<(i64, i64), Hour>,
}

impl Writer<'_> {
    fn message(&mut self, device: &mut Device, content: &Content) -> Result<(), DbError> {
        let counts = self.counts.entry(device.row).or_default();
        let id = match content {
            Content::Frame(frame) => &frame.id,
            Content::Malformed(id) => id,
            Content::Unknown => {
                counts.rejected += 1;
                return Ok(());
            }
        };
        let boot = device.boot(self.conn, &id.boot_id, self.now_ms)?;
        // A malformed number beyond all numbers is not remembered, only refused again.
        let seq = i64::try_from(id.seq).ok().filter(|seq| (1..i64::MAX).contains(seq));
        if let Some(seq) = seq
            && !mark_received(self.conn, boot, seq)?
        {
            counts.duplicates += 1;
            return Ok(());
        }
        let stored = match content {
            Content::Frame(frame) => self.store(device, frame)?,
            Content::Malformed(_) | Content::Unknown => None,
        };
        let counts = self.counts.entry(device.row).or_default();
        match stored {
            Some(points) => {
                counts.frames += 1;
                counts.points += points;
            }
            None => counts.rejected += 1,
        }
        Ok(())
    }

    /// The number of points stored; `None` when the frame has too many series, or two points of one series at one time:
    /// then nothing of it is stored.
    fn store(&mut self, device: &mut Device, frame: &Frame) -> Result<Option<i64>, DbError> {
        let mut points = Vec::with_capacity(frame.points.len());
        for point in &frame.points {
            let Some(series) = device.series(self.conn, &point.series, self.now_ms)? else {
                return Ok(None);
            };
            points.push((series.row, frame.device_ms - point.time_ms, series.role, &point.value));
        }
        // In the order of the primary key: each row goes behind the one before.
        points.sort_unstable_by_key(|(series, age_ms, ..)| (*series, *age_ms));
        if points
            .windows(2)
            .any(|pair| (pair[0].0, pair[0].1) == (pair[1].0, pair[1].1))
        {
            return Ok(None);
        }
        self.frame
            .execute(params![device.row, self.now_ms as i64, frame.device_ms])?;
        let row = self.conn.last_insert_rowid();
        for (series, age_ms, role, value) in points {
            match value {
                PointValue::Int(value) => self.point.execute(params![row, series, age_ms, value])?,
                PointValue::Real(value) => self.point.execute(params![row, series, age_ms, value])?,
                PointValue::Histogram(histogram) => {
                    self.point
                        .execute(params![row, series, age_ms, hours::to_blob(histogram)])?
                }
            };
            if let Some((role, served)) = role {
                let hour = (served, (self.now_ms / HOUR_MS) as i64);
                self.hours.entry(hour).or_default().add(role, value);
            }
        }
        Ok(Some(frame.points.len() as i64))
    }
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

fn write_counts(conn: &Connection, device: i64, counts: Counts, now_ms: u64) -> Result<(), DbError> {
    let sql = "UPDATE devices SET frames = frames + ?2, points = points + ?3, duplicates = duplicates + ?4,
               rejected = rejected + ?5, last_at_ms = ?6 WHERE id = ?1";
    conn.prepare_cached(sql)?.execute(params![
        device,
        counts.frames,
        counts.points,
        counts.duplicates,
        counts.rejected,
        now_ms as i64
    ])?;
    Ok(())
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
    // The newest point of these came on an earlier day: none is left.
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
