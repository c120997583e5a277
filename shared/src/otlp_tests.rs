//! Telemetry from anybody: what we encode we decode, and any bytes give a value or an error.
#![allow(clippy::unwrap_used)]

use proptest::{collection::vec, option, prelude::*};
use prost::Message;

use crate::otlp::{
    AnyValue, Buckets, ExponentialHistogram, ExponentialHistogramDataPoint, ExportMetricsServiceRequest, Gauge,
    InstrumentationScope, KeyValue, Metric, MetricData, NumberDataPoint, NumberValue, OtlpResource, ResourceMetrics,
    ScopeMetrics, Sum, TelemetryFrame, Value,
};

/// Not a number is not equal to itself.
fn number() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("a number", |value| !value.is_nan())
}

fn attribute() -> impl Strategy<Value = KeyValue> {
    let value = prop_oneof![
        ".{0,20}".prop_map(Value::StringValue),
        any::<bool>().prop_map(Value::BoolValue),
        any::<i64>().prop_map(Value::IntValue),
        number().prop_map(Value::DoubleValue),
    ];
    let value = option::of(option::of(value).prop_map(|value| AnyValue { value }));
    (".{0,20}", value).prop_map(|(key, value)| KeyValue { key, value })
}

fn attributes() -> impl Strategy<Value = Vec<KeyValue>> {
    vec(attribute(), 0..3)
}

fn point() -> impl Strategy<Value = NumberDataPoint> {
    let value = prop_oneof![
        number().prop_map(NumberValue::AsDouble),
        any::<i64>().prop_map(NumberValue::AsInt),
    ];
    (attributes(), any::<u64>(), any::<u64>(), option::of(value)).prop_map(
        |(attributes, start_time_unix_nano, time_unix_nano, value)| NumberDataPoint {
            attributes,
            start_time_unix_nano,
            time_unix_nano,
            value,
        },
    )
}

fn histogram_point() -> impl Strategy<Value = ExponentialHistogramDataPoint> {
    let buckets = (any::<i32>(), vec(any::<u64>(), 0..6));
    let buckets = buckets.prop_map(|(offset, bucket_counts)| Buckets { offset, bucket_counts });
    let times = (any::<u64>(), any::<u64>());
    let counts = (any::<u64>(), any::<i32>(), any::<u64>());
    let numbers = (option::of(number()), option::of(number()), option::of(number()));
    (attributes(), times, counts, option::of(buckets), numbers).prop_map(
        |(attributes, times, (count, scale, zero_count), positive, (sum, min, max))| ExponentialHistogramDataPoint {
            attributes,
            start_time_unix_nano: times.0,
            time_unix_nano: times.1,
            count,
            sum,
            scale,
            zero_count,
            positive,
            min,
            max,
        },
    )
}

fn metric() -> impl Strategy<Value = Metric> {
    let data = prop_oneof![
        vec(point(), 0..3).prop_map(|data_points| MetricData::Gauge(Gauge { data_points })),
        (vec(point(), 0..3), any::<i32>(), any::<bool>()).prop_map(
            |(data_points, aggregation_temporality, is_monotonic)| MetricData::Sum(Sum {
                data_points,
                aggregation_temporality,
                is_monotonic,
            })
        ),
        (vec(histogram_point(), 0..3), any::<i32>()).prop_map(|(data_points, aggregation_temporality)| {
            MetricData::ExponentialHistogram(ExponentialHistogram {
                data_points,
                aggregation_temporality,
            })
        }),
    ];
    (".{0,20}", ".{0,20}", ".{0,5}", option::of(data)).prop_map(|(name, description, unit, data)| Metric {
        name,
        description,
        unit,
        data,
    })
}

fn export() -> impl Strategy<Value = ExportMetricsServiceRequest> {
    let scope = option::of((".{0,10}", ".{0,10}"));
    let scope = scope.prop_map(|scope| scope.map(|(name, version)| InstrumentationScope { name, version }));
    let scope_metrics = (scope, vec(metric(), 0..4));
    let scope_metrics = scope_metrics.prop_map(|(scope, metrics)| ScopeMetrics { scope, metrics });
    let resource = option::of(attributes().prop_map(|attributes| OtlpResource { attributes }));
    let resource_metrics = (resource, vec(scope_metrics, 0..3));
    let resource_metrics = resource_metrics.prop_map(|(resource, scope_metrics)| ResourceMetrics {
        resource,
        scope_metrics,
    });
    vec(resource_metrics, 0..3).prop_map(|resource_metrics| ExportMetricsServiceRequest { resource_metrics })
}

/// What is read once is read again, and counted without a panic.
fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(export) = ExportMetricsServiceRequest::decode(bytes) {
        let _ = export.point_count();
        let again = export.encode_to_vec();
        let read = ExportMetricsServiceRequest::decode(again.as_slice());
        // By bytes: a damaged number may be none.
        prop_assert_eq!(read.unwrap().encode_to_vec(), again);
    }
    Ok(())
}

proptest! {
    #[test]
    fn an_export_reads_back(export in export()) {
        let bytes = export.encode_to_vec();
        prop_assert_eq!(ExportMetricsServiceRequest::decode(bytes.as_slice()).unwrap(), export);
    }

    #[test]
    fn any_bytes_are_an_export_or_an_error(bytes in vec(any::<u8>(), 0..300)) { check(&bytes)? }

    #[test]
    fn a_damaged_export_is_an_export_or_an_error(
        export in export(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
    ) {
        let mut bytes = export.encode_to_vec();
        prop_assume!(!bytes.is_empty());
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        check(&bytes)?;
        check(&bytes[..end.index(bytes.len())])?;
    }

    #[test]
    fn what_looks_like_a_frame_is_that_frame_or_an_error(
        codec in prop_oneof![Just([1, 1]), any::<[u8; 2]>()],
        raw_len in prop_oneof![0..=TelemetryFrame::RAW_LIMIT_BYTES, any::<u32>()],
        id in any::<[u8; 24]>(),
        body in vec(any::<u8>(), 0..100),
    ) {
        let bytes = [codec.as_slice(), &id, &raw_len.to_be_bytes(), &body].concat();
        let good = codec == [1, 1] && raw_len <= TelemetryFrame::RAW_LIMIT_BYTES;
        match TelemetryFrame::from_bytes(&bytes) {
            Ok(frame) => prop_assert_eq!((good, frame.to_bytes()), (true, bytes)),
            Err(_) => prop_assert!(!good),
        }
    }
}

#[test]
fn a_frame_has_a_limit_on_both_sides() {
    let mut frame = vec![1, 1];
    frame.resize(TelemetryFrame::LIMIT_BYTES, 0);
    assert!(TelemetryFrame::from_bytes(&frame).is_ok());
    frame.push(0);
    assert!(TelemetryFrame::from_bytes(&frame).is_err());
}
