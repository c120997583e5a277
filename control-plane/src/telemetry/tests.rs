//! Ingest, storage and queries on a real database.

use proptest::prelude::*;
use prost::Message as _;
use serde_json::json;
use skerry_shared::{
    desired::FrameId,
    histogram::Histogram,
    id::ModelVersion,
    otlp::{
        AnyValue, Buckets, CUMULATIVE, DELTA, ExponentialHistogram, ExponentialHistogramDataPoint,
        ExportMetricsServiceRequest, Gauge, KeyValue, Metric, MetricData, NumberDataPoint, NumberValue,
        ResourceMetrics, ScopeMetrics, Sum, TelemetryFrame, Value,
    },
};

use super::{
    MIGRATIONS, Message,
    decode::{Content, Decoder, POINTS_MAX},
    ingest::Ingest,
    query::{self, PointFilter, SummaryFilter},
    store,
};
use crate::db::{Db, DbError, Durability};

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
const NOW_MS: u64 = 20_000 * DAY_MS;

fn open(folder: &tempfile::TempDir) -> Db {
    Db::open(&folder.path().join("telemetry.db"), Durability::Normal, MIGRATIONS).unwrap()
}

fn id(boot: u8, seq: u64) -> FrameId {
    let boot_id = hex::encode([boot; 16]).parse().unwrap();
    FrameId { boot_id, seq }
}

fn message(device: &str, payload: Vec<u8>) -> Message {
    Message {
        device: device.parse().unwrap(),
        payload: payload.into(),
    }
}

fn frame(id: FrameId, metrics: Vec<Metric>) -> Vec<u8> {
    let raw = request(metrics).encode_to_vec();
    let body = zstd::bulk::compress(&raw, 3).unwrap();
    let raw_len = raw.len() as u32;
    TelemetryFrame {
        id,
        raw_len,
        body: &body,
    }
    .to_bytes()
}

fn request(metrics: Vec<Metric>) -> ExportMetricsServiceRequest {
    let scope = ScopeMetrics { scope: None, metrics };
    let resource_metrics = vec![ResourceMetrics {
        resource: None,
        scope_metrics: vec![scope],
    }];
    ExportMetricsServiceRequest { resource_metrics }
}

fn metric(name: &str, data: MetricData) -> Metric {
    Metric {
        name: name.to_owned(),
        unit: "1".to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn number(value: NumberValue, attributes: Vec<KeyValue>) -> NumberDataPoint {
    NumberDataPoint {
        attributes,
        time_unix_nano: 7_000_000,
        value: Some(value),
        ..NumberDataPoint::default()
    }
}

fn gauge(name: &str, value: f64) -> Metric {
    let data_points = vec![number(NumberValue::AsDouble(value), vec![])];
    metric(name, MetricData::Gauge(Gauge { data_points }))
}

fn model(version: i64) -> Vec<KeyValue> {
    let value = Some(AnyValue {
        value: Some(Value::IntValue(version)),
    });
    vec![
        KeyValue::text("model.name", "m"),
        KeyValue {
            key: "model.version".to_owned(),
            value,
        },
    ]
}

fn count(name: &str, value: i64, attributes: Vec<KeyValue>) -> Metric {
    let data_points = vec![number(NumberValue::AsInt(value), attributes)];
    let sum = Sum {
        data_points,
        aggregation_temporality: DELTA,
        is_monotonic: true,
    };
    metric(name, MetricData::Sum(sum))
}

fn durations(values: &[f64], version: i64) -> Metric {
    let mut histogram = Histogram::default();
    values.iter().for_each(|value| histogram.record(*value));
    let data_points = vec![histogram.to_point(model(version), 1, 2)];
    let histogram = ExponentialHistogram {
        data_points,
        aggregation_temporality: DELTA,
    };
    metric("skerry.inference.duration", MetricData::ExponentialHistogram(histogram))
}

async fn totals(db: &Db) -> (u64, u64, u64, u64) {
    let totals = query::totals(db).await.unwrap();
    (totals.frames, totals.points, totals.duplicates, totals.rejected)
}

async fn stored_points(db: &Db) -> u64 {
    let sql = "SELECT count(*) FROM points";
    db.read(|conn| Ok::<i64, DbError>(conn.query_row(sql, [], |row| row.get(0))?))
        .await
        .unwrap() as u64
}

#[tokio::test]
async fn a_frame_that_comes_twice_is_stored_once_and_acknowledged_twice() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder);
    let mut ingest = Ingest::new(db.clone());
    let one = message("dev-1", frame(id(1, 1), vec![gauge("a", 1.0), gauge("b", 2.0)]));
    for messages in [vec![one.clone(), one.clone()], vec![one.clone()]] {
        let sent = messages.len();
        let acks = ingest.ingest(messages, NOW_MS).await.unwrap();
        assert_eq!(acks.len(), 1);
        assert_eq!(acks[0].frames, vec![id(1, 1); sent]);
    }
    // A new process knows it too.
    let acks = Ingest::new(open(&folder)).ingest(vec![one], NOW_MS).await.unwrap();
    assert_eq!(acks[0].frames, [id(1, 1)]);
    assert_eq!(totals(&db).await, (1, 2, 3, 0));
    assert_eq!(stored_points(&db).await, 2);
}

#[tokio::test]
async fn two_devices_with_the_same_boot_and_number_do_not_clash() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder);
    let mut ingest = Ingest::new(db.clone());
    let payload = frame(id(1, 1), vec![gauge("a", 1.0)]);
    let messages = vec![message("dev-1", payload.clone()), message("dev-2", payload)];
    let acks = ingest.ingest(messages, NOW_MS).await.unwrap();
    assert_eq!(acks.len(), 2);
    let totals = query::totals(&db).await.unwrap();
    assert_eq!(
        totals.per_device.iter().map(|device| device.points).collect::<Vec<_>>(),
        [1, 1]
    );
}

#[tokio::test]
async fn what_cannot_be_committed_is_not_acknowledged_and_comes_again() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder);
    let mut ingest = Ingest::new(db.clone());
    let known = message("dev-1", frame(id(1, 1), vec![gauge("a", 1.0)]));
    ingest.ingest(vec![known], NOW_MS).await.unwrap();
    // The disk is full at the first page more.
    let pages = |limit: &'static str| {
        db.write(move |conn| {
            let sql = if limit.is_empty() {
                "PRAGMA max_page_count = 1000000"
            } else {
                limit
            };
            Ok::<i64, DbError>(conn.query_row(sql, [], |row| row.get(0))?)
        })
    };
    pages("PRAGMA max_page_count = 1").await.unwrap();
    let metrics = (0..POINTS_MAX)
        .map(|n| gauge(&format!("metric {n} {}", "x".repeat(200)), 1.0))
        .collect();
    let large = message("dev-2", frame(id(1, 1), metrics));
    let also = message("dev-1", frame(id(1, 2), vec![gauge("a", 2.0), gauge("new", 2.0)]));
    ingest
        .ingest(vec![also.clone(), large.clone()], NOW_MS)
        .await
        .unwrap_err();
    assert_eq!(totals(&db).await, (1, 1, 0, 0));
    pages("").await.unwrap();
    let acks = ingest.ingest(vec![also, large], NOW_MS).await.unwrap();
    assert_eq!(acks.len(), 2);
    assert_eq!(totals(&db).await, (3, 3 + POINTS_MAX as u64, 0, 0));
    assert_eq!(stored_points(&db).await, 3 + POINTS_MAX as u64);
}

#[tokio::test]
async fn a_malformed_frame_is_acknowledged_once_and_for_all_and_an_unknown_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder);
    let mut ingest = Ingest::new(db.clone());
    let malformed = message("dev-1", frame(id(1, 1), vec![gauge("", 1.0)]));
    let mut newer = frame(id(1, 2), vec![gauge("a", 1.0)]);
    newer[0] = 2;
    let messages = vec![
        malformed.clone(),
        message("dev-1", newer),
        message("dev-1", b"hello".to_vec()),
        malformed,
    ];
    let acks = ingest.ingest(messages, NOW_MS).await.unwrap();
    assert_eq!(acks[0].frames, [id(1, 1), id(1, 1)]);
    assert_eq!(totals(&db).await, (0, 0, 1, 3));
}

fn is_refused(payload: Vec<u8>) -> bool {
    let decoded = Decoder::new().unwrap().decode(message("dev-1", payload));
    !matches!(decoded.content, Content::Frame(_))
}

#[test]
fn contents_that_lie_about_their_size_are_refused() {
    let raw = request(vec![gauge("a", 1.0)]).encode_to_vec();
    let body = zstd::bulk::compress(&raw, 3).unwrap();
    let stating = |raw_len: u32, body: &[u8]| {
        TelemetryFrame {
            id: id(1, 1),
            raw_len,
            body,
        }
        .to_bytes()
    };
    assert!(!is_refused(stating(raw.len() as u32, &body)));
    for raw_len in [
        0,
        1,
        raw.len() as u32 - 1,
        raw.len() as u32 + 1,
        1024 * 1024,
        1024 * 1024 + 1,
        u32::MAX,
    ] {
        assert!(is_refused(stating(raw_len, &body)), "{raw_len}");
    }
    let bomb = zstd::bulk::compress(&vec![0; 64 * 1024 * 1024], 19).unwrap();
    assert!(bomb.len() < TelemetryFrame::LIMIT_BYTES / 2);
    for raw_len in [100, 1024 * 1024] {
        assert!(is_refused(stating(raw_len, &bomb)), "{raw_len}");
    }
}

#[test]
fn a_longer_frame_before_does_not_let_a_shorter_one_lie() {
    let mut decoder = Decoder::new().unwrap();
    let long = frame(id(1, 1), vec![gauge(&"a".repeat(250), 1.0)]);
    assert!(matches!(
        decoder.decode(message("dev-1", long)).content,
        Content::Frame(_)
    ));
    let mut lying = frame(id(1, 2), vec![gauge("a", 1.0)]);
    lying[29] -= 1;
    assert!(matches!(
        decoder.decode(message("dev-1", lying)).content,
        Content::Malformed(_)
    ));
}

#[test]
fn what_cannot_be_stored_is_malformed() {
    let refused = |metric: Metric| assert!(is_refused(frame(id(1, 1), vec![metric.clone()])), "{metric:?}");
    refused(gauge("", 1.0));
    refused(gauge(&"x".repeat(300), 1.0));
    refused(gauge("a", f64::NAN));
    refused(Metric {
        data: None,
        ..gauge("a", 1.0)
    });
    refused(count("a", 1, vec![KeyValue::text("k", "1"), KeyValue::text("k", "2")]));
    refused(count("a", 1, vec![KeyValue::text("k", "x".repeat(300))]));
    refused(count(
        "a",
        1,
        vec![KeyValue {
            key: "k".to_owned(),
            value: None,
        }],
    ));
    refused(count(
        "a",
        1,
        (0..17).map(|n| KeyValue::text(&n.to_string(), "x")).collect(),
    ));
    refused(metric(
        "a",
        MetricData::Sum(Sum {
            aggregation_temporality: 0,
            ..Sum::default()
        }),
    ));
    let cumulative = ExponentialHistogram {
        data_points: vec![],
        aggregation_temporality: CUMULATIVE,
    };
    refused(metric("a", MetricData::ExponentialHistogram(cumulative)));
    let many = vec![number(NumberValue::AsInt(1), vec![]); POINTS_MAX + 1];
    refused(metric("a", MetricData::Gauge(Gauge { data_points: many })));
    assert!(is_refused(frame(id(1, 0), vec![])) && is_refused(frame(id(1, u64::MAX), vec![])));
}

proptest! {
    #[test]
    fn arbitrary_messages_never_panic(
        header in any::<bool>(), raw_len in 0..400_u32, raw in prop::collection::vec(any::<u8>(), 0..300)
    ) {
        let body = zstd::bulk::compress(&raw, 1).unwrap();
        let raw_len = if header { raw.len() as u32 } else { raw_len };
        is_refused(TelemetryFrame { id: id(1, 1), raw_len, body: &body }.to_bytes());
        is_refused(raw);
    }
}

#[tokio::test]
async fn a_frame_with_the_same_point_twice_is_refused_whole() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder);
    let mut ingest = Ingest::new(db.clone());
    let payload = frame(id(1, 1), vec![gauge("b", 1.0), gauge("a", 1.0), gauge("a", 2.0)]);
    let acks = ingest.ingest(vec![message("dev-1", payload)], NOW_MS).await.unwrap();
    assert_eq!(acks[0].frames, [id(1, 1)]);
    assert_eq!((totals(&db).await, stored_points(&db).await), ((0, 0, 0, 1), 0));
}

#[tokio::test]
async fn a_device_that_invents_series_without_end_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder);
    let mut ingest = Ingest::new(db.clone());
    let mut accepted = 0;
    for seq in 1..=4 {
        let metrics = (0..1500).map(|n| gauge(&format!("{seq}-{n}"), 1.0)).collect();
        ingest
            .ingest(vec![message("dev-1", frame(id(1, seq), metrics))], NOW_MS)
            .await
            .unwrap();
        accepted += u64::from(seq * 1500 <= store::SERIES_MAX as u64);
    }
    let well_behaved = message("dev-2", frame(id(1, 1), vec![gauge("a", 1.0)]));
    ingest.ingest(vec![well_behaved], NOW_MS).await.unwrap();
    assert_eq!(totals(&db).await, (accepted + 1, accepted * 1500 + 1, 0, 4 - accepted));
}

#[tokio::test]
async fn a_summary_adds_counts_and_merges_scales() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder);
    let mut ingest = Ingest::new(db.clone());
    let error = |kind: &str| [model(1), vec![KeyValue::text("error.type", kind)]].concat();
    // Close together: a fine scale. Far apart: a coarse one.
    let (fine, coarse) = ([0.0100, 0.0101, 0.0102, 0.0103], [1e-6, 1e-3, 1.0, 50.0]);
    let first = vec![
        count("skerry.inference.count", 6, model(1)),
        count("skerry.inference.errors", 1, error("bundle")),
        count("skerry.inference.errors", 1, error("request")),
        durations(&fine, 1),
    ];
    let second = vec![count("skerry.inference.count", 4, model(1)), durations(&coarse, 1)];
    let other = vec![count("skerry.inference.count", 1, model(2)), durations(&[0.5], 2)];
    ingest
        .ingest(vec![message("dev-1", frame(id(1, 1), first))], NOW_MS)
        .await
        .unwrap();
    let later = NOW_MS + 2 * HOUR_MS;
    let messages = vec![
        message("dev-1", frame(id(1, 2), second)),
        message("dev-1", frame(id(1, 3), other)),
    ];
    ingest.ingest(messages, later).await.unwrap();

    let rows = query::summary(&db, SummaryFilter::default()).await.unwrap();
    assert_eq!(rows.len(), 2);
    let row = &rows[0];
    assert_eq!(
        (row.version, row.inferences, row.errors, row.bad_requests),
        (ModelVersion(1), 10, 1, 1)
    );
    assert_eq!((row.max_seconds, row.last_at_ms), (Some(50.0), later));
    let mut exact = Histogram::default();
    fine.iter().chain(&coarse).for_each(|value| exact.record(*value));
    assert_eq!(
        (row.p50_seconds, row.p95_seconds),
        (exact.quantile(0.5), exact.quantile(0.95))
    );

    let filter = SummaryFilter {
        since_ms: later,
        ..SummaryFilter::default()
    };
    assert_eq!(query::summary(&db, filter).await.unwrap()[0].inferences, 4);
    let filter = SummaryFilter {
        device: Some("dev-2".parse().unwrap()),
        ..SummaryFilter::default()
    };
    assert!(query::summary(&db, filter).await.unwrap().is_empty());
    let filter = SummaryFilter {
        model: Some("m".parse().unwrap()),
        ..SummaryFilter::default()
    };
    assert_eq!(query::summary(&db, filter).await.unwrap(), rows);
}

#[tokio::test]
async fn claims_beyond_all_measure_do_not_stop_later_batches() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder);
    let mut ingest = Ingest::new(db.clone());
    let histogram = |count: u64, sum: f64| {
        let point = ExponentialHistogramDataPoint {
            attributes: model(1),
            count,
            sum: Some(sum),
            positive: Some(Buckets {
                offset: 0,
                bucket_counts: vec![count],
            }),
            ..ExponentialHistogramDataPoint::default()
        };
        let histogram = ExponentialHistogram {
            data_points: vec![point],
            aggregation_temporality: DELTA,
        };
        metric("skerry.inference.duration", MetricData::ExponentialHistogram(histogram))
    };
    let mut seq = 0;
    for (count_of, sum) in [(u64::MAX, 1.0), (1, f64::MAX), (1_000_000_000_000, 1e100)] {
        for _ in 0..3 {
            seq += 1;
            let metrics = vec![
                count("skerry.inference.count", i64::MAX, model(1)),
                histogram(count_of, sum),
            ];
            let acks = ingest
                .ingest(vec![message("dev-1", frame(id(1, seq), metrics))], NOW_MS)
                .await
                .unwrap();
            assert_eq!(acks.len(), 1);
        }
    }
    assert_eq!(totals(&db).await, (3, 6, 0, 6));
    assert_eq!(query::summary(&db, SummaryFilter::default()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn points_are_asked_for_by_the_servers_time_and_come_newest_first() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder);
    let mut ingest = Ingest::new(db.clone());
    for seq in 1..=3 {
        let metrics = vec![gauge("a", seq as f64 / 2.0), durations(&[1.0], 1)];
        ingest
            .ingest(vec![message("dev-1", frame(id(1, seq), metrics))], NOW_MS + seq)
            .await
            .unwrap();
    }
    let ask = |metric: &str, since_ms, limit| {
        let (device, metric) = ("dev-1".parse().unwrap(), Some(metric.to_owned()));
        query::points(
            &db,
            PointFilter {
                device,
                metric,
                since_ms,
                limit,
            },
        )
    };
    let points = ask("a", NOW_MS + 2, 10).await.unwrap();
    let values: Vec<_> = points
        .iter()
        .map(|point| (point.received_at_ms, point.value.clone()))
        .collect();
    assert_eq!(values, [(NOW_MS + 3, json!(1.5)), (NOW_MS + 2, json!(1.0))]);
    assert_eq!((points[0].kind.as_str(), points[0].device_time_ms), ("gauge", 7));
    assert_eq!(ask("a", 0, 1).await.unwrap().len(), 1);
    let histogram = &ask("skerry.inference.duration", 0, 1).await.unwrap()[0];
    assert_eq!(histogram.attributes, json!({"model.name": "m", "model.version": 1}));
    assert_eq!(
        (&histogram.value["count"], &histogram.value["bucket_counts"]),
        (&json!(1), &json!([1]))
    );
}

#[tokio::test]
async fn retention_deletes_points_and_keeps_counters_and_what_was_received() {
    let folder = tempfile::tempdir().unwrap();
    let db = open(&folder);
    let mut ingest = Ingest::new(db.clone());
    let old = |seq| {
        message(
            "dev-1",
            frame(
                id(1, seq),
                vec![gauge("a", 1.0), count("skerry.inference.count", 1, model(1))],
            ),
        )
    };
    // More than one step deletes.
    for from in (1..=2500).step_by(500) {
        ingest
            .ingest((from..from + 500).map(old).collect(), NOW_MS)
            .await
            .unwrap();
    }
    let now_ms = NOW_MS + 40 * DAY_MS;
    let new = message("dev-1", frame(id(2, 1), vec![gauge("b", 1.0)]));
    ingest.ingest(vec![new], now_ms).await.unwrap();
    assert!(ingest.expire(30, now_ms).await.unwrap(), "one step is bounded");
    while ingest.expire(30, now_ms).await.unwrap() {}
    assert_eq!(stored_points(&db).await, 1);
    assert!(query::summary(&db, SummaryFilter::default()).await.unwrap().is_empty());
    ingest.ingest(vec![old(7)], now_ms).await.unwrap();
    assert_eq!(totals(&db).await, (2501, 5001, 1, 0));
    // The series that went is made anew.
    ingest.ingest(vec![old(2501)], now_ms).await.unwrap();
    assert_eq!(stored_points(&db).await, 3);
    assert_eq!(
        query::summary(&db, SummaryFilter::default()).await.unwrap()[0].inferences,
        1
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn each_number_is_received_once_in_any_order(seqs in prop::collection::vec(1..40_i64, 1..120)) {
        let conn = rusqlite::Connection::open_in_memory().unwrap();
        conn.execute_batch(MIGRATIONS[0].sql).unwrap();
        conn.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        let mut known = std::collections::BTreeSet::new();
        for seq in seqs {
            prop_assert_eq!(store::mark_received(&conn, 1, seq).unwrap(), known.insert(seq));
        }
        let ranges: i64 = conn.query_row("SELECT count(*) FROM received", [], |row| row.get(0)).unwrap();
        let gaps = known.iter().filter(|seq| !known.contains(&(**seq - 1))).count();
        prop_assert_eq!(ranges, gaps as i64, "neighbours are one range");
    }
}
