//! Questions about stored telemetry.

use std::collections::BTreeMap;

use rusqlite::{Connection, Row, params, types::ValueRef};
use serde_json::{Value, json};
use skerry_shared::{
    histogram::Histogram,
    id::{DeviceId, ModelName, ModelVersion},
};

use super::{DeviceTotal, StoredPoint, Summary, Totals, store::from_blob};
use crate::db::{Db, DbError, from_json};

/// Points in one answer when the caller says nothing.
pub const LIMIT_DEFAULT: u32 = 1000;
/// Points in one answer at most.
pub const LIMIT_MAX: u32 = 10_000;
const HOUR_MS: u64 = 3_600_000;

/// Which model versions a summary is about; nothing chosen is all.
#[derive(Clone, Debug, Default)]
pub struct SummaryFilter {
    /// Only this device.
    pub device: Option<DeviceId>,
    /// Only this model.
    pub model: Option<ModelName>,
    /// Only from the hour of this time on (the server's, UTC milliseconds).
    pub since_ms: u64,
}

/// Inferences, errors and latency per device and model version, by device, model and version.
///
/// # Errors
/// The database's.
pub async fn summary(db: &Db, filter: SummaryFilter) -> Result<Vec<Summary>, DbError> {
    db.read(move |conn| read_summary(conn, &filter)).await
}

#[derive(Default)]
struct Sums {
    inferences: u64,
    errors: u64,
    bad_requests: u64,
    latency: Histogram,
    last_at_ms: u64,
}

fn read_summary(conn: &Connection, filter: &SummaryFilter) -> Result<Vec<Summary>, DbError> {
    // CROSS JOIN keeps this order: each model version's hours lie side by side.
    let sql = "SELECT d.device, s.model, s.version, h.inferences, h.errors, h.bad_requests, h.latency, h.last_at_ms
               FROM devices d CROSS JOIN served s CROSS JOIN hours h
               WHERE s.device = d.id AND h.served = s.id
               AND (?1 IS NULL OR d.device = ?1) AND (?2 IS NULL OR s.model = ?2) AND h.hour >= ?3";
    let device = filter.device.as_ref().map(DeviceId::as_str);
    let model = filter.model.as_ref().map(ModelName::as_str);
    let mut statement = conn.prepare_cached(sql)?;
    let mut rows = statement.query(params![device, model, (filter.since_ms / HOUR_MS) as i64])?;
    let mut all: BTreeMap<(DeviceId, ModelName, ModelVersion), Sums> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let key = (parsed(row, 0)?, parsed(row, 1)?, ModelVersion(unsigned(row, 2)?));
        let sums = all.entry(key).or_default();
        sums.inferences += unsigned(row, 3)?;
        sums.errors += unsigned(row, 4)?;
        sums.bad_requests += unsigned(row, 5)?;
        sums.latency.merge(&from_blob(&row.get::<_, Vec<u8>>(6)?)?);
        sums.last_at_ms = sums.last_at_ms.max(unsigned(row, 7)?);
    }
    let summary = |((device, model, version), sums): (_, Sums)| Summary {
        device,
        model,
        version,
        inferences: sums.inferences,
        errors: sums.errors,
        bad_requests: sums.bad_requests,
        p50_seconds: sums.latency.quantile(0.5),
        p95_seconds: sums.latency.quantile(0.95),
        max_seconds: sums.latency.max(),
        last_at_ms: sums.last_at_ms,
    };
    Ok(all.into_iter().map(summary).collect())
}

/// Which points.
#[derive(Clone, Debug)]
pub struct PointFilter {
    /// Of this device.
    pub device: DeviceId,
    /// Only of this metric.
    pub metric: Option<String>,
    /// Received at this time or later (the server's, UTC milliseconds).
    pub since_ms: u64,
    /// At most so many.
    pub limit: u32,
}

/// Stored points, the newest first.
///
/// # Errors
/// The database's.
pub async fn points(db: &Db, filter: PointFilter) -> Result<Vec<StoredPoint>, DbError> {
    db.read(move |conn| read_points(conn, &filter)).await
}

fn read_points(conn: &Connection, filter: &PointFilter) -> Result<Vec<StoredPoint>, DbError> {
    // CROSS JOIN keeps this order: the device's frames by time, then the points of each by primary key.
    let sql = "SELECT s.metric, s.kind, s.unit, s.attributes, f.received_ms, f.device_ms - p.age_ms, p.value
               FROM devices d CROSS JOIN frames f CROSS JOIN points p CROSS JOIN series s
               WHERE d.device = ?1 AND f.device = d.id AND f.received_ms >= ?2 AND p.frame = f.id AND s.id = p.series
               AND (?3 IS NULL OR s.metric = ?3)
               ORDER BY f.received_ms DESC, f.id DESC LIMIT ?4";
    let mut statement = conn.prepare_cached(sql)?;
    let since_ms = i64::try_from(filter.since_ms).unwrap_or(i64::MAX);
    let limit = filter.limit.min(LIMIT_MAX);
    let mut rows = statement.query(params![filter.device.as_str(), since_ms, filter.metric, limit])?;
    let mut points = Vec::new();
    while let Some(row) = rows.next()? {
        points.push(StoredPoint {
            metric: row.get(0)?,
            kind: row.get(1)?,
            unit: row.get(2)?,
            attributes: from_json(&row.get::<_, String>(3)?)?,
            received_at_ms: unsigned(row, 4)?,
            device_time_ms: unsigned(row, 5)?,
            value: value(row.get_ref(6)?)?,
        });
    }
    Ok(points)
}

fn value(stored: ValueRef<'_>) -> Result<Value, DbError> {
    match stored {
        ValueRef::Integer(value) => Ok(json!(value)),
        ValueRef::Real(value) => Ok(json!(value)),
        ValueRef::Blob(blob) => {
            let point = from_blob(blob)?.to_point(Vec::new(), 0, 0);
            let buckets = point.positive.unwrap_or_default();
            Ok(json!({
                "count": point.count, "sum": point.sum, "min": point.min, "max": point.max, "scale": point.scale,
                "zero_count": point.zero_count, "offset": buckets.offset, "bucket_counts": buckets.bucket_counts,
            }))
        }
        ValueRef::Null | ValueRef::Text(_) => Err(DbError::Corrupt("a point without a number".to_owned())),
    }
}

/// What was ever taken in, by device.
///
/// # Errors
/// The database's.
pub async fn totals(db: &Db) -> Result<Totals, DbError> {
    db.read(|conn| {
        let sql = "SELECT device, points, frames, duplicates, rejected FROM devices ORDER BY device";
        let mut statement = conn.prepare_cached(sql)?;
        let mut rows = statement.query([])?;
        let mut totals = Totals::default();
        while let Some(row) = rows.next()? {
            let points = unsigned(row, 1)?;
            let device = parsed(row, 0)?;
            totals.points += points;
            totals.frames += unsigned(row, 2)?;
            totals.duplicates += unsigned(row, 3)?;
            totals.rejected += unsigned(row, 4)?;
            totals.per_device.push(DeviceTotal { device, points });
        }
        Ok(totals)
    })
    .await
}

fn unsigned(row: &Row<'_>, column: usize) -> Result<u64, DbError> {
    Ok(row.get::<_, i64>(column)?.max(0) as u64)
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(row: &Row<'_>, column: usize) -> Result<T, DbError> {
    let text: String = row.get(column)?;
    text.parse()
        .map_err(|error: T::Err| DbError::Corrupt(error.to_string()))
}
