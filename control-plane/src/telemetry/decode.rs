//! From a device's bytes to points within limits. Pure, and the only place that looks at what a device wrote.
//!
//! Invariant: what leaves here can be stored: finite numbers, histograms that add up, names and counts within limits.

use prost::Message as _;
use skerry_shared::{
    desired::FrameId,
    histogram::{Histogram, InvalidHistogram},
    id::DeviceId,
    otlp::{
        CUMULATIVE, DELTA, ExponentialHistogramDataPoint, ExportMetricsServiceRequest, FrameError, KeyValue, Metric,
        MetricData, NumberDataPoint, NumberValue, TelemetryFrame, Value,
    },
};

use super::Message;

/// Points of one frame: ours have fewer than two hundred. Bounds the time that one device can take from the others.
pub const POINTS_MAX: usize = 2048;
/// Attributes of one point.
const ATTRIBUTES_MAX: usize = 16;
/// Bytes of a metric's name, a unit, an attribute's key or its text: that of the longest model name, twice.
const TEXT_MAX_BYTES: usize = 256;
/// Values of one histogram: sums of many stay far from the end of the numbers.
pub(super) const COUNT_MAX: u64 = 1_000_000_000_000;
/// The sum of a histogram, likewise.
const SUM_MAX: f64 = 1e100;

/// A message after decoding.
#[derive(Debug)]
pub struct Decoded {
    /// Who sent it.
    pub device: DeviceId,
    /// What it is.
    pub content: Content,
}

/// What a message is.
#[derive(Debug)]
pub enum Content {
    /// A frame that can be stored.
    Frame(Frame),
    /// A frame that never can: it is acknowledged, or the device would send it for ever.
    Malformed(FrameId),
    /// No frame, or of a format that a newer control plane may know: it is not acknowledged, and stays on the device.
    Unknown,
}

/// A frame within limits.
#[derive(Debug)]
pub struct Frame {
    pub(super) id: FrameId,
    /// The time of its newest point.
    pub(super) device_ms: i64,
    pub(super) points: Vec<Point>,
}

impl Frame {
    /// The number of its points.
    pub fn len(&self) -> usize {
        self.points.len()
    }

    /// True when it has no points.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }
}

#[derive(Debug)]
pub(super) struct Point {
    pub(super) series: SeriesKey,
    pub(super) time_ms: i64,
    pub(super) value: PointValue,
}

/// What makes a series, beside its device.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SeriesKey {
    pub(super) metric: String,
    pub(super) kind: Kind,
    pub(super) unit: String,
    /// A JSON object with sorted keys.
    pub(super) attributes: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Gauge,
    Delta,
    Cumulative,
    Histogram,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::Gauge => "gauge",
            Kind::Delta => "delta",
            Kind::Cumulative => "cumulative",
            Kind::Histogram => "histogram",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Kind> {
        let all = [Kind::Gauge, Kind::Delta, Kind::Cumulative, Kind::Histogram];
        all.into_iter().find(|kind| kind.as_str() == text)
    }
}

#[derive(Debug)]
pub(super) enum PointValue {
    Int(i64),
    Real(f64),
    Histogram(Box<Histogram>),
}

/// Why a frame is malformed.
#[derive(Debug, thiserror::Error)]
enum Malformed {
    #[error("its number {0} is out of range")]
    Seq(u64),
    #[error("its content does not decompress to the {0} bytes it states")]
    Decompress(u32),
    #[error("its content is no OTLP")]
    Parse(#[from] prost::DecodeError),
    #[error("it has more than {POINTS_MAX} points")]
    Points,
    #[error("a metric has no data, or data of an unknown kind")]
    Data,
    #[error("a point has no value, or one that is no number")]
    Value,
    #[error("{0} is empty, too long or repeated")]
    Text(&'static str),
    #[error("a point has an attribute that is no single value")]
    Attribute,
    #[error(transparent)]
    Histogram(#[from] InvalidHistogram),
    #[error("a histogram counts more than anything can")]
    Count,
}

/// Decodes messages; keeps its buffers from one to the next.
pub struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
    raw: Vec<u8>,
}

impl Decoder {
    /// A decoder.
    ///
    /// # Errors
    /// When zstd has no memory for its context.
    pub fn new() -> std::io::Result<Decoder> {
        Ok(Decoder {
            zstd: zstd::bulk::Decompressor::new()?,
            raw: Vec::new(),
        })
    }

    /// Decodes a message. What is wrong with it is logged here, without its content.
    pub fn decode(&mut self, message: Message) -> Decoded {
        let Message { device, payload } = message;
        let frame = match TelemetryFrame::from_bytes(&payload) {
            Ok(frame) => frame,
            Err(error) => {
                unknown(&device, &error);
                let content = Content::Unknown;
                return Decoded { device, content };
            }
        };
        let id = frame.id.clone();
        let content = self.content(frame).map_or_else(
            |error| {
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::warn!(device.id = %device, frame.seq = id.seq, error, "a telemetry frame is malformed");
                Content::Malformed(id)
            },
            Content::Frame,
        );
        Decoded { device, content }
    }

    fn content(&mut self, frame: TelemetryFrame<'_>) -> Result<Frame, Malformed> {
        if frame.id.seq == 0 || frame.id.seq >= i64::MAX as u64 {
            return Err(Malformed::Seq(frame.id.seq));
        }
        // The stated length is within its limit (`from_bytes`), and zstd writes no byte beyond the buffer's capacity.
        let raw_len = frame.raw_len as usize;
        self.raw.clear();
        self.raw.reserve_exact(raw_len);
        // A buffer kept from a longer frame would let this one be longer than it states: the length is checked.
        let written = self.zstd.decompress_to_buffer(frame.body, &mut self.raw);
        if !written.is_ok_and(|written| written == raw_len) {
            return Err(Malformed::Decompress(frame.raw_len));
        }
        let request = ExportMetricsServiceRequest::decode(self.raw.as_slice())?;
        if request.point_count() > POINTS_MAX as u64 {
            return Err(Malformed::Points);
        }
        let metrics = request.resource_metrics.into_iter().flat_map(|r| r.scope_metrics);
        let mut points = Vec::new();
        for metric in metrics.flat_map(|scope| scope.metrics) {
            read_metric(metric, &mut points)?;
        }
        let newest = points.iter().map(|point| point.time_ms).max();
        Ok(Frame {
            id: frame.id,
            device_ms: newest.unwrap_or_default(),
            points,
        })
    }
}

fn unknown(device: &DeviceId, error: &FrameError) {
    tracing::warn!(device.id = %device, %error, "a telemetry message is no frame that is known here");
}

fn read_metric(metric: Metric, points: &mut Vec<Point>) -> Result<(), Malformed> {
    let Metric { name, unit, data, .. } = metric;
    if name.is_empty() || name.len() > TEXT_MAX_BYTES {
        return Err(Malformed::Text("a metric's name"));
    }
    if unit.len() > TEXT_MAX_BYTES {
        return Err(Malformed::Text("a unit"));
    }
    let series = |kind, attributes| SeriesKey {
        metric: name.clone(),
        kind,
        unit: unit.clone(),
        attributes,
    };
    let (kind, numbers) = match data.ok_or(Malformed::Data)? {
        MetricData::Gauge(gauge) => (Kind::Gauge, gauge.data_points),
        MetricData::Sum(sum) if sum.aggregation_temporality == DELTA => (Kind::Delta, sum.data_points),
        MetricData::Sum(sum) if sum.aggregation_temporality == CUMULATIVE => (Kind::Cumulative, sum.data_points),
        MetricData::ExponentialHistogram(histogram) if histogram.aggregation_temporality == DELTA => {
            for point in histogram.data_points {
                points.push(Point {
                    series: series(Kind::Histogram, attributes(&point.attributes)?),
                    time_ms: millis(point.time_unix_nano),
                    value: histogram_value(&point)?,
                });
            }
            return Ok(());
        }
        MetricData::Sum(_) | MetricData::ExponentialHistogram(_) => return Err(Malformed::Data),
    };
    for point in numbers {
        points.push(Point {
            series: series(kind, attributes(&point.attributes)?),
            time_ms: millis(point.time_unix_nano),
            value: number(&point)?,
        });
    }
    Ok(())
}

fn millis(nanoseconds: u64) -> i64 {
    (nanoseconds / 1_000_000) as i64
}

fn number(point: &NumberDataPoint) -> Result<PointValue, Malformed> {
    match point.value {
        Some(NumberValue::AsInt(value)) => Ok(PointValue::Int(value)),
        Some(NumberValue::AsDouble(value)) if value.is_finite() => Ok(PointValue::Real(value)),
        Some(NumberValue::AsDouble(_)) | None => Err(Malformed::Value),
    }
}

fn histogram_value(point: &ExponentialHistogramDataPoint) -> Result<PointValue, Malformed> {
    let histogram = Histogram::from_point(point)?;
    if histogram.count() > COUNT_MAX || histogram.sum().abs() > SUM_MAX {
        return Err(Malformed::Count);
    }
    Ok(PointValue::Histogram(Box::new(histogram)))
}

/// Attributes as a JSON object with sorted keys: equal sets are equal texts.
fn attributes(attributes: &[KeyValue]) -> Result<String, Malformed> {
    if attributes.len() > ATTRIBUTES_MAX {
        return Err(Malformed::Attribute);
    }
    let mut sorted: Vec<&KeyValue> = attributes.iter().collect();
    sorted.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    let repeated = sorted.windows(2).any(|pair| pair[0].key == pair[1].key);
    if repeated || sorted.iter().any(|a| a.key.is_empty() || a.key.len() > TEXT_MAX_BYTES) {
        return Err(Malformed::Text("an attribute's key"));
    }
    let mut json = String::from("{");
    for attribute in sorted {
        if json.len() > 1 {
            json.push(',');
        }
        json.push_str(&quoted(&attribute.key));
        json.push(':');
        match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(Value::StringValue(text)) if text.len() <= TEXT_MAX_BYTES => json.push_str(&quoted(text)),
            Some(Value::StringValue(_)) => return Err(Malformed::Text("an attribute's text")),
            Some(Value::BoolValue(value)) => json.push_str(if *value { "true" } else { "false" }),
            Some(Value::IntValue(value)) => json.push_str(&value.to_string()),
            Some(Value::DoubleValue(value)) if value.is_finite() => json.push_str(&format!("{value:?}")),
            Some(Value::DoubleValue(_)) | None => return Err(Malformed::Attribute),
        }
    }
    json.push('}');
    Ok(json)
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a text always encodes")
}
