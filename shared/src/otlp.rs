//! The part of OpenTelemetry's metrics protocol that Skerry speaks, and the frame in which it travels over MQTT.
//!
//! Field names and numbers are those of `opentelemetry/proto/metrics/v1/metrics.proto`; fields that are not listed here are
//! skipped on reading. Any OTLP receiver understands the payload of a frame.

use prost::{Message, Oneof};

use crate::{desired::FrameId, id::BootId};

/// The body of an export: what a frame carries, compressed.
#[derive(Clone, PartialEq, Message)]
pub struct ExportMetricsServiceRequest {
    /// One entry per otlp resource.
    #[prost(message, repeated, tag = "1")]
    pub resource_metrics: Vec<ResourceMetrics>,
}

/// The metrics of one otlp resource.
#[derive(Clone, PartialEq, Message)]
pub struct ResourceMetrics {
    /// Who measured.
    #[prost(message, optional, tag = "1")]
    pub resource: Option<OtlpResource>,
    /// One entry per instrumentation scope.
    #[prost(message, repeated, tag = "2")]
    pub scope_metrics: Vec<ScopeMetrics>,
}

/// Who measured (`Resource` in the protocol's own words).
#[derive(Clone, PartialEq, Message)]
pub struct OtlpResource {
    /// For example `service.name`, `device.id`.
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

/// The metrics of one instrumentation scope.
#[derive(Clone, PartialEq, Message)]
pub struct ScopeMetrics {
    /// Which code measured.
    #[prost(message, optional, tag = "1")]
    pub scope: Option<InstrumentationScope>,
    /// The metrics.
    #[prost(message, repeated, tag = "2")]
    pub metrics: Vec<Metric>,
}

/// Which code measured.
#[derive(Clone, PartialEq, Message)]
pub struct InstrumentationScope {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
}

/// One metric with its data points.
#[derive(Clone, PartialEq, Message)]
pub struct Metric {
    /// For example `skerry.inference.duration`.
    #[prost(string, tag = "1")]
    pub name: String,
    /// One sentence.
    #[prost(string, tag = "2")]
    pub description: String,
    /// UCUM, for example `s`, `By`, `1`.
    #[prost(string, tag = "3")]
    pub unit: String,
    /// The points.
    #[prost(oneof = "MetricData", tags = "5, 7, 10")]
    pub data: Option<MetricData>,
}

/// The kinds of metrics that Skerry sends.
#[derive(Clone, PartialEq, Oneof)]
pub enum MetricData {
    /// A value as it is now.
    #[prost(message, tag = "5")]
    Gauge(Gauge),
    /// A count over time.
    #[prost(message, tag = "7")]
    Sum(Sum),
    /// A distribution that merges without loss.
    #[prost(message, tag = "10")]
    ExponentialHistogram(ExponentialHistogram),
}

/// Values as they are now.
#[derive(Clone, PartialEq, Message)]
pub struct Gauge {
    /// The points.
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<NumberDataPoint>,
}

/// Counts over time.
#[derive(Clone, PartialEq, Message)]
pub struct Sum {
    /// The points.
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<NumberDataPoint>,
    /// [`DELTA`] or [`CUMULATIVE`].
    #[prost(int32, tag = "2")]
    pub aggregation_temporality: i32,
    /// True when it never falls.
    #[prost(bool, tag = "3")]
    pub is_monotonic: bool,
}

/// Distributions.
#[derive(Clone, PartialEq, Message)]
pub struct ExponentialHistogram {
    /// The points.
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<ExponentialHistogramDataPoint>,
    /// [`DELTA`] or [`CUMULATIVE`].
    #[prost(int32, tag = "2")]
    pub aggregation_temporality: i32,
}

/// `AGGREGATION_TEMPORALITY_DELTA`: the point counts since its own start time.
pub const DELTA: i32 = 1;
/// `AGGREGATION_TEMPORALITY_CUMULATIVE`: the point counts since the process began.
pub const CUMULATIVE: i32 = 2;

/// One number at one time.
#[derive(Clone, PartialEq, Message)]
pub struct NumberDataPoint {
    /// Its dimensions.
    #[prost(message, repeated, tag = "7")]
    pub attributes: Vec<KeyValue>,
    /// UTC nanoseconds.
    #[prost(fixed64, tag = "2")]
    pub start_time_unix_nano: u64,
    /// UTC nanoseconds.
    #[prost(fixed64, tag = "3")]
    pub time_unix_nano: u64,
    /// The number.
    #[prost(oneof = "NumberValue", tags = "4, 6")]
    pub value: Option<NumberValue>,
}

/// A number.
#[derive(Clone, Copy, PartialEq, Oneof)]
pub enum NumberValue {
    /// A float.
    #[prost(double, tag = "4")]
    AsDouble(f64),
    /// An integer.
    #[prost(sfixed64, tag = "6")]
    AsInt(i64),
}

/// One distribution over one interval. Bucket `i` of `positive` holds values in
/// `(base^(offset+i), base^(offset+i+1)]` with `base = 2^(2^-scale)`.
#[derive(Clone, PartialEq, Message)]
pub struct ExponentialHistogramDataPoint {
    /// Its dimensions.
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
    /// UTC nanoseconds.
    #[prost(fixed64, tag = "2")]
    pub start_time_unix_nano: u64,
    /// UTC nanoseconds.
    #[prost(fixed64, tag = "3")]
    pub time_unix_nano: u64,
    /// How many values.
    #[prost(fixed64, tag = "4")]
    pub count: u64,
    /// Their sum.
    #[prost(double, optional, tag = "5")]
    pub sum: Option<f64>,
    /// The resolution.
    #[prost(sint32, tag = "6")]
    pub scale: i32,
    /// Values at zero.
    #[prost(fixed64, tag = "7")]
    pub zero_count: u64,
    /// Values above zero.
    #[prost(message, optional, tag = "8")]
    pub positive: Option<Buckets>,
    /// The least value.
    #[prost(double, optional, tag = "12")]
    pub min: Option<f64>,
    /// The greatest value.
    #[prost(double, optional, tag = "13")]
    pub max: Option<f64>,
}

/// Dense buckets from `offset` on.
#[derive(Clone, PartialEq, Message)]
pub struct Buckets {
    /// The index of the first bucket.
    #[prost(sint32, tag = "1")]
    pub offset: i32,
    /// The counts.
    #[prost(uint64, repeated, tag = "2")]
    pub bucket_counts: Vec<u64>,
}

/// An attribute.
#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    /// For example `model.name`.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value.
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

impl KeyValue {
    /// An attribute with a text.
    pub fn text(key: &str, value: impl Into<String>) -> KeyValue {
        let value = AnyValue {
            value: Some(Value::StringValue(value.into())),
        };
        KeyValue {
            key: key.to_owned(),
            value: Some(value),
        }
    }
}

/// An attribute's value.
#[derive(Clone, PartialEq, Message)]
pub struct AnyValue {
    /// The value; lists and maps are not used here.
    #[prost(oneof = "Value", tags = "1, 2, 3, 4")]
    pub value: Option<Value>,
}

/// The kinds of values that Skerry uses.
#[derive(Clone, PartialEq, Oneof)]
pub enum Value {
    /// A text.
    #[prost(string, tag = "1")]
    StringValue(String),
    /// A truth value.
    #[prost(bool, tag = "2")]
    BoolValue(bool),
    /// An integer.
    #[prost(int64, tag = "3")]
    IntValue(i64),
    /// A float.
    #[prost(double, tag = "4")]
    DoubleValue(f64),
}

impl ExportMetricsServiceRequest {
    /// The number of data points, of all kinds.
    pub fn point_count(&self) -> u64 {
        let metrics = self
            .resource_metrics
            .iter()
            .flat_map(|r| &r.scope_metrics)
            .flat_map(|s| &s.metrics);
        metrics
            .map(|metric| match &metric.data {
                Some(MetricData::Gauge(gauge)) => gauge.data_points.len() as u64,
                Some(MetricData::Sum(sum)) => sum.data_points.len() as u64,
                Some(MetricData::ExponentialHistogram(histogram)) => histogram.data_points.len() as u64,
                None => 0,
            })
            .sum()
    }
}

/// One telemetry message: `version u8 = 1 | codec u8 = 1 (zstd) | boot id 16 bytes | seq u64 | raw length u32 | body`,
/// big-endian. The body is a compressed [`ExportMetricsServiceRequest`]; `(boot_id, seq)` makes a repeated frame recognisable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryFrame<'a> {
    /// Which frame.
    pub id: FrameId,
    /// The length of the body after decompression, at most [`TelemetryFrame::RAW_LIMIT_BYTES`].
    pub raw_len: u32,
    /// The zstd-compressed body.
    pub body: &'a [u8],
}

/// A message that is not a telemetry frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than its header or longer than a frame may be.
    #[error("a telemetry frame of {0} bytes")]
    Length(usize),
    /// Another version or codec.
    #[error("telemetry frame version {version} with codec {codec} is not supported")]
    Unknown {
        /// The version found.
        version: u8,
        /// The codec found.
        codec: u8,
    },
    /// The stated raw length exceeds the limit.
    #[error("a telemetry frame states {0} bytes of content")]
    RawLength(u32),
}

const FRAME_HEADER_BYTES: usize = 30;

impl<'a> TelemetryFrame<'a> {
    /// The most bytes on the wire: below the smallest packet limit of the brokers we support.
    pub const LIMIT_BYTES: usize = 96 * 1024;
    /// The most bytes after decompression: what a hostile device can make the control plane allocate.
    pub const RAW_LIMIT_BYTES: u32 = 1024 * 1024;

    /// Encodes the frame.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FRAME_HEADER_BYTES + self.body.len());
        out.extend_from_slice(&[1, 1]);
        let boot = hex::decode(self.id.boot_id.as_str()).expect("a boot id is 32 hex digits");
        out.extend_from_slice(&boot);
        out.extend_from_slice(&self.id.seq.to_be_bytes());
        out.extend_from_slice(&self.raw_len.to_be_bytes());
        out.extend_from_slice(self.body);
        out
    }

    /// Reads a frame; the body is borrowed and still compressed.
    ///
    /// # Errors
    /// [`FrameError`] when it is not a frame or exceeds a limit.
    pub fn from_bytes(bytes: &'a [u8]) -> Result<TelemetryFrame<'a>, FrameError> {
        if bytes.len() < FRAME_HEADER_BYTES || bytes.len() > Self::LIMIT_BYTES {
            return Err(FrameError::Length(bytes.len()));
        }
        let (header, body) = bytes.split_at(FRAME_HEADER_BYTES);
        if header[..2] != [1, 1] {
            return Err(FrameError::Unknown {
                version: header[0],
                codec: header[1],
            });
        }
        let boot_id: BootId = hex::encode(&header[2..18])
            .parse()
            .expect("sixteen bytes are 32 hex digits");
        let seq = u64::from_be_bytes(header[18..26].try_into().expect("eight bytes"));
        let raw_len = u32::from_be_bytes(header[26..30].try_into().expect("four bytes"));
        if raw_len > Self::RAW_LIMIT_BYTES {
            return Err(FrameError::RawLength(raw_len));
        }
        Ok(TelemetryFrame {
            id: FrameId { boot_id, seq },
            raw_len,
            body,
        })
    }
}
