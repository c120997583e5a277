//! One collection: what models and host have counted since the last one becomes frames, ready for the spool.
//!
//! Invariant: a model without requests gives no points, and a frame fits its limits by construction.

use std::{path::PathBuf, sync::Arc};

use prost::Message;
use skerry_shared::{
    desired::FrameId,
    id::{BootId, DeviceId, ModelName, ModelVersion},
    otlp::{
        AnyValue, CUMULATIVE, DELTA, ExponentialHistogram, ExportMetricsServiceRequest, Gauge, InstrumentationScope,
        KeyValue, Metric, MetricData, NumberDataPoint, NumberValue, OtlpResource, ResourceMetrics, ScopeMetrics, Sum,
        TelemetryFrame, Value,
    },
};

use super::{host::Host, metrics::Interval};
use crate::serving::Serving;

/// Models in one frame: at most 160 buckets of up to ten bytes and four points each stay below 96 KiB uncompressed.
const MODELS_PER_FRAME: usize = 32;
/// zstd's default: a frame of 2 KiB becomes about 700 bytes in some 20 µs.
const ZSTD_LEVEL: i32 = 3;

/// The time that a collection covers, in UTC nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
}

/// An encoded frame.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) id: FrameId,
    /// Its data points.
    pub(super) points: u32,
    /// A [`TelemetryFrame`] as it goes over the wire.
    pub(super) bytes: Vec<u8>,
}

/// Collects and numbers frames.
pub(super) struct Collector {
    serving: Arc<Serving>,
    host: Host,
    resource: OtlpResource,
    boot_id: BootId,
    seq: u64,
    last_ns: u64,
}

impl Collector {
    pub(super) fn new(
        serving: Arc<Serving>,
        state_dir: PathBuf,
        device: &DeviceId,
        boot_id: BootId,
        now_ns: u64,
    ) -> Collector {
        let resource = OtlpResource {
            attributes: vec![
                KeyValue::text("service.name", "skerry-agent"),
                KeyValue::text("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::text("service.instance.id", boot_id.as_str()),
                KeyValue::text("device.id", device.as_str()),
            ],
        };
        Collector {
            serving,
            host: Host::new(state_dir),
            resource,
            boot_id,
            seq: 0,
            last_ns: now_ns,
        }
    }

    /// Takes everything counted since the last call. `dropped` is the spool's own count of lost points.
    pub(super) fn collect(&mut self, now_ns: u64, dropped: u64) -> Vec<Frame> {
        let span = Span {
            // The clock may have been set back.
            start_ns: self.last_ns.min(now_ns),
            end_ns: now_ns,
        };
        self.last_ns = now_ns;
        let mut metrics = self.host.collect(span);
        if dropped > 0 {
            metrics.push(dropped_metric(dropped, span));
        }
        let models = self.serving.metrics().collect();
        let mut groups = models.chunks(MODELS_PER_FRAME);
        metrics.extend(model_metrics(groups.next().unwrap_or_default(), span));
        let mut frames = vec![self.frame(metrics)];
        for group in groups {
            frames.push(self.frame(model_metrics(group, span)));
        }
        frames
    }

    fn frame(&mut self, metrics: Vec<Metric>) -> Frame {
        self.seq += 1;
        let id = FrameId {
            boot_id: self.boot_id.clone(),
            seq: self.seq,
        };
        let scope = InstrumentationScope {
            name: "skerry".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(scope),
                    metrics,
                }],
            }],
        };
        let raw = request.encode_to_vec();
        let body = zstd::bulk::compress(&raw, ZSTD_LEVEL).expect("compression of a buffer in memory does not fail");
        let frame = TelemetryFrame {
            id: id.clone(),
            raw_len: raw.len() as u32,
            body: &body,
        };
        Frame {
            id,
            points: request.point_count() as u32,
            bytes: frame.to_bytes(),
        }
    }
}

fn model_metrics(models: &[(ModelName, ModelVersion, Interval)], span: Span) -> Vec<Metric> {
    let (mut counts, mut errors, mut durations) = (Vec::new(), Vec::new(), Vec::new());
    for (model, version, interval) in models {
        let attributes = || {
            vec![
                KeyValue::text("model.name", model.as_str()),
                int("model.version", version.0),
            ]
        };
        let number = |count: u64| NumberValue::AsInt(count as i64);
        counts.push(point(attributes(), number(interval.count), span));
        for (kind, count) in [("bundle", interval.bundle_errors), ("request", interval.bad_requests)] {
            if count > 0 {
                let attributes = [attributes(), vec![KeyValue::text("error.type", kind)]].concat();
                errors.push(point(attributes, number(count), span));
            }
        }
        if interval.durations.count() > 0 {
            let histogram = &interval.durations;
            durations.push(histogram.to_point(attributes(), span.start_ns, span.end_ns));
        }
    }
    let mut metrics = Vec::new();
    if !counts.is_empty() {
        metrics.push(sum("skerry.inference.count", "{inference}", counts));
    }
    if !errors.is_empty() {
        metrics.push(sum("skerry.inference.errors", "{inference}", errors));
    }
    if !durations.is_empty() {
        let histogram = ExponentialHistogram {
            data_points: durations,
            aggregation_temporality: DELTA,
        };
        let data = MetricData::ExponentialHistogram(histogram);
        metrics.push(metric("skerry.inference.duration", "s", data));
    }
    metrics
}

/// Cumulative over the device's life: a frame with a difference could itself be dropped.
fn dropped_metric(dropped: u64, span: Span) -> Metric {
    let sum = Sum {
        data_points: vec![point(vec![], NumberValue::AsInt(dropped as i64), span)],
        aggregation_temporality: CUMULATIVE,
        is_monotonic: true,
    };
    metric("skerry.telemetry.dropped", "{point}", MetricData::Sum(sum))
}

fn metric(name: &str, unit: &str, data: MetricData) -> Metric {
    Metric {
        name: name.to_owned(),
        // The names are documented once, not with every message.
        description: String::new(),
        unit: unit.to_owned(),
        data: Some(data),
    }
}

pub(super) fn gauge(name: &str, unit: &str, data_points: Vec<NumberDataPoint>) -> Metric {
    metric(name, unit, MetricData::Gauge(Gauge { data_points }))
}

/// A count since the last collection.
pub(super) fn sum(name: &str, unit: &str, data_points: Vec<NumberDataPoint>) -> Metric {
    let sum = Sum {
        data_points,
        aggregation_temporality: DELTA,
        is_monotonic: true,
    };
    metric(name, unit, MetricData::Sum(sum))
}

pub(super) fn point(attributes: Vec<KeyValue>, value: NumberValue, span: Span) -> NumberDataPoint {
    NumberDataPoint {
        attributes,
        start_time_unix_nano: span.start_ns,
        time_unix_nano: span.end_ns,
        value: Some(value),
    }
}

fn int(key: &str, value: u64) -> KeyValue {
    let value = AnyValue {
        value: Some(Value::IntValue(value as i64)),
    };
    KeyValue {
        key: key.to_owned(),
        value: Some(value),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::metrics::Ended;

    fn collector(serving: &Arc<Serving>) -> (Collector, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let device = "dev-1".parse().unwrap();
        let boot_id = "0".repeat(32).parse().unwrap();
        let collector = Collector::new(Arc::clone(serving), folder.path().to_owned(), &device, boot_id, 5);
        (collector, folder)
    }

    fn decode(frame: &Frame) -> ExportMetricsServiceRequest {
        let parsed = TelemetryFrame::from_bytes(&frame.bytes).unwrap();
        assert_eq!(parsed.id, frame.id);
        let raw = zstd::bulk::decompress(parsed.body, parsed.raw_len as usize).unwrap();
        let request = ExportMetricsServiceRequest::decode(raw.as_slice()).unwrap();
        assert_eq!(request.point_count(), u64::from(frame.points));
        request
    }

    fn names(request: &ExportMetricsServiceRequest) -> Vec<&str> {
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let names = metrics.iter().map(|metric| metric.name.as_str());
        names.filter(|name| name.starts_with("skerry.")).collect()
    }

    #[test]
    fn models_without_requests_give_no_points() {
        let serving = Arc::new(Serving::default());
        let (mut collector, _folder) = collector(&serving);
        let metrics = serving.metrics().of(&"m".parse().unwrap(), ModelVersion(1));
        assert!(names(&decode(&collector.collect(9, 0)[0])).is_empty());
        metrics.record(Duration::from_millis(3), Ended::Well);
        let request = decode(&collector.collect(10, 0)[0]);
        assert_eq!(names(&request), ["skerry.inference.count", "skerry.inference.duration"]);
        metrics.record(Duration::from_millis(3), Ended::BundleError);
        let request = decode(&collector.collect(11, 7)[0]);
        let expected = [
            "skerry.telemetry.dropped",
            "skerry.inference.count",
            "skerry.inference.errors",
        ];
        assert_eq!(names(&request), expected);
    }

    #[test]
    fn the_greatest_collection_fits_into_frames() {
        let serving = Arc::new(Serving::default());
        let (mut collector, _folder) = collector(&serving);
        for model in 0..2 * MODELS_PER_FRAME + 1 {
            let name = format!("{model:0>128}").parse().unwrap();
            let metrics = serving.metrics().of(&name, ModelVersion(u64::MAX >> 1));
            for step in 0..600_u32 {
                // All buckets in use, with counts that do not compress.
                for _ in 0..step.wrapping_mul(2_654_435_761) >> 27 {
                    metrics.record(Duration::from_secs_f64(1.02_f64.powi(step as i32) * 1e-6), Ended::Well);
                }
            }
            metrics.record(Duration::ZERO, Ended::BadRequest);
            metrics.record(Duration::ZERO, Ended::BundleError);
        }
        let frames = collector.collect(9, 1);
        assert_eq!(frames.len(), 3);
        let seqs: Vec<u64> = frames.iter().map(|frame| frame.id.seq).collect();
        assert_eq!(seqs, [1, 2, 3]);
        let request = decode(&frames[1]);
        assert_eq!(request.point_count(), 4 * MODELS_PER_FRAME as u64);
    }
}
