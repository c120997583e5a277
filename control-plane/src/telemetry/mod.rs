//! Telemetry of the fleet: frames come in, each point is stored once, and questions about it are answered.
//!
//! Not the way to the devices: the `mqtt` edge brings messages and carries acknowledgements. Invariants: a frame is
//! acknowledged only after the COMMIT that stores it; the points stored for a device are those of its distinct frames,
//! however often each was sent; a device's counters never shrink.

pub mod decode;
pub mod ingest;
pub mod query;
mod store;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use skerry_shared::{
    desired::FrameId,
    id::{DeviceId, ModelName, ModelVersion},
};
use utoipa::ToSchema;

use crate::db::Migration;

/// The schema of `telemetry.db`.
pub const MIGRATIONS: &[Migration] = &[Migration {
    number: 1,
    sql: include_str!("../../migrations/telemetry/001_telemetry.sql"),
}];

/// A message as it came from a device. The broker vouches for the device, nobody for the content.
#[derive(Clone, Debug)]
pub struct Message {
    /// From the topic.
    pub device: DeviceId,
    /// A [`skerry_shared::otlp::TelemetryFrame`], or anything else.
    pub payload: Bytes,
}

/// Frames of one device that may be deleted there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acked {
    /// The device.
    pub device: DeviceId,
    /// Its frames: stored now, stored before, or refused for ever.
    pub frames: Vec<FrameId>,
}

/// The inferences of one model version on one device, over all that retention has left.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Summary {
    /// The device.
    #[schema(value_type = String)]
    pub device: DeviceId,
    /// The model.
    #[schema(value_type = String)]
    pub model: ModelName,
    /// Its version.
    #[schema(value_type = u64)]
    pub version: ModelVersion,
    /// Requests that reached the model.
    pub inferences: u64,
    /// Failures that were the bundle's fault.
    pub errors: u64,
    /// Failures that were the request's fault.
    pub bad_requests: u64,
    /// The median of the requests that ended well; absent when none did.
    pub p50_seconds: Option<f64>,
    /// Their 95th percentile.
    pub p95_seconds: Option<f64>,
    /// Their maximum.
    pub max_seconds: Option<f64>,
    /// The server's time of the newest point, in UTC milliseconds.
    pub last_at_ms: u64,
}

/// One stored point.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct StoredPoint {
    /// The metric's name.
    pub metric: String,
    /// `gauge`, `delta`, `cumulative` or `histogram`.
    pub kind: String,
    /// UCUM.
    pub unit: String,
    /// Its dimensions.
    pub attributes: Value,
    /// The server's time, in UTC milliseconds.
    pub received_at_ms: u64,
    /// The device's own time, in UTC milliseconds; it may be wrong by years.
    pub device_time_ms: u64,
    /// A number, or an object with the parts of a histogram.
    pub value: Value,
}

/// What was ever taken in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Totals {
    /// Frames stored.
    pub frames: u64,
    /// Points stored, those that retention has deleted too.
    pub points: u64,
    /// Frames that came again.
    pub duplicates: u64,
    /// Messages that were refused.
    pub rejected: u64,
    /// For each device.
    pub per_device: Vec<DeviceTotal>,
}

/// What was ever taken in from one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct DeviceTotal {
    /// The device.
    #[schema(value_type = String)]
    pub device: DeviceId,
    /// Points stored, those that retention has deleted too.
    pub points: u64,
}
