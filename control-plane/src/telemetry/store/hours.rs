//! The sums of each hour and model version, and histograms as they are stored.

use prost::Message as _;
use rusqlite::{Connection, OptionalExtension, params};
use skerry_shared::{histogram::Histogram, otlp::ExponentialHistogramDataPoint};

use super::rows::Role;
use crate::{
    db::DbError,
    telemetry::decode::{COUNT_MAX, PointValue},
};

/// One hour of one model version, as far as a batch adds to it.
#[derive(Default)]
pub(super) struct Hour {
    inferences: i64,
    errors: i64,
    bad_requests: i64,
    latency: Histogram,
}

impl Hour {
    pub(super) fn add(&mut self, role: Role, value: &PointValue) {
        // Sums of what a device may claim must not leave the range of an integer.
        let within = |count: i64| count.clamp(0, COUNT_MAX as i64);
        match (role, value) {
            (Role::Inferences, PointValue::Int(count)) => self.inferences += within(*count),
            (Role::Errors, PointValue::Int(count)) => self.errors += within(*count),
            (Role::BadRequests, PointValue::Int(count)) => self.bad_requests += within(*count),
            (Role::Latency, PointValue::Histogram(histogram)) => self.latency.merge(histogram),
            // A count that is no integer, or a series that has changed its kind.
            _ => {}
        }
    }

    /// Adds to what is stored.
    pub(super) fn write(&self, conn: &Connection, served: i64, hour: i64, now_ms: u64) -> Result<(), DbError> {
        let stored: Option<Vec<u8>> = conn
            .prepare_cached("SELECT latency FROM hours WHERE served = ?1 AND hour = ?2")?
            .query_row([served, hour], |row| row.get(0))
            .optional()?;
        let mut latency = stored.map(|blob| from_blob(&blob)).transpose()?.unwrap_or_default();
        latency.merge(&self.latency);
        let sql = "INSERT INTO hours (served, hour, inferences, errors, bad_requests, latency, last_at_ms)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                   ON CONFLICT DO UPDATE SET inferences = inferences + excluded.inferences,
                   errors = errors + excluded.errors, bad_requests = bad_requests + excluded.bad_requests,
                   latency = excluded.latency, last_at_ms = excluded.last_at_ms";
        conn.prepare_cached(sql)?.execute(params![
            served,
            hour,
            self.inferences,
            self.errors,
            self.bad_requests,
            to_blob(&latency),
            now_ms as i64
        ])?;
        Ok(())
    }
}

/// A histogram as it is stored.
pub(super) fn to_blob(histogram: &Histogram) -> Vec<u8> {
    histogram.to_point(Vec::new(), 0, 0).encode_to_vec()
}

/// Reads a stored histogram.
pub(in crate::telemetry) fn from_blob(blob: &[u8]) -> Result<Histogram, DbError> {
    let corrupt = |error: &dyn std::fmt::Display| DbError::Corrupt(error.to_string());
    let point = ExponentialHistogramDataPoint::decode(blob).map_err(|error| corrupt(&error))?;
    Histogram::from_point(&point).map_err(|error| corrupt(&error))
}
