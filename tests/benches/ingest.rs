//! How many telemetry points a second the control plane stores, with each frame acknowledged after its commit.
//!
//! `cargo bench -p skerry-system-tests --bench ingest [-- SECONDS]`. Frames are like an agent's: the host's metrics, and
//! counts, errors and latency of three models. The peer is the floor that SQLite itself sets in the same run: the same
//! number of rows of three numbers, inserted by one prepared statement, as many in a transaction as an ingest batch has.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use prost::Message as _;
use rusqlite::{Connection, params};
use skerry_control_plane::{
    db::{Db, Durability},
    telemetry::{
        MIGRATIONS, Message,
        ingest::{BATCH_MAX, Ingest},
        query,
    },
};
use skerry_shared::{
    desired::FrameId,
    histogram::Histogram,
    otlp::{
        AnyValue, DELTA, ExponentialHistogram, ExportMetricsServiceRequest, Gauge, KeyValue, Metric, MetricData,
        NumberDataPoint, NumberValue, OtlpResource, ResourceMetrics, ScopeMetrics, Sum, TelemetryFrame, Value,
    },
};
use skerry_system_tests::measure::machine;

const DEVICES: u64 = 1000;
const MODELS: i64 = 3;
const DEFAULT_SECONDS: u64 = 20;

fn main() -> anyhow::Result<()> {
    // `cargo bench` adds `--bench`.
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let budget = Duration::from_secs(seconds.unwrap_or(DEFAULT_SECONDS));
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let mut out = std::io::stdout();
    writeln!(out, "machine: {}", machine())?;
    let frame = frame(1, 1);
    writeln!(
        out,
        "frames: {DEVICES} devices, {} points and {} bytes each, {BATCH_MAX} in a batch",
        frame.points,
        frame.payload.len()
    )?;
    let (points, took) = runtime.block_on(ours(&folder.path().join("telemetry.db"), budget))?;
    let ours = points as f64 / took.as_secs_f64();
    writeln!(
        out,
        "skerry: {points} points stored and acknowledged in {:.1} s: {ours:.0} points/s",
        took.as_secs_f64()
    )?;
    let took = peer(&folder.path().join("peer.db"), points, frame.points * BATCH_MAX as u64)?;
    let peer = points as f64 / took.as_secs_f64();
    writeln!(
        out,
        "bare INSERT: {points} rows in {:.1} s: {peer:.0} rows/s",
        took.as_secs_f64()
    )?;
    writeln!(out, "ratio: {:.2}", ours / peer)?;
    Ok(())
}

async fn ours(path: &std::path::Path, budget: Duration) -> anyhow::Result<(u64, Duration)> {
    let db = Db::open(path, Durability::Normal, MIGRATIONS)?;
    let mut ingest = Ingest::new(db.clone());
    let (mut next, mut points, mut acked) = (0, 0, 0);
    let mut took = Duration::ZERO;
    let mut now_ms = 1_790_000_000_000;
    while took < budget {
        // Making the frames is the devices' work, not ours.
        let mut messages = Vec::with_capacity(BATCH_MAX);
        for _ in 0..BATCH_MAX {
            let made = frame(next % DEVICES, next / DEVICES + 1);
            points += made.points;
            messages.push(Message {
                device: format!("dev-{}", next % DEVICES).parse()?,
                payload: made.payload.into(),
            });
            next += 1;
        }
        now_ms += 500;
        let began = Instant::now();
        let acks = ingest.ingest(messages, now_ms).await?;
        took += began.elapsed();
        acked += acks.iter().map(|ack| ack.frames.len() as u64).sum::<u64>();
    }
    let totals = query::totals(&db).await?;
    anyhow::ensure!(
        acked == next && totals.points == points && totals.rejected == 0,
        "not all was stored: {totals:?}"
    );
    Ok((points, took))
}

fn peer(path: &std::path::Path, rows: u64, batch: u64) -> anyhow::Result<Duration> {
    let conn = Connection::open(path)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.execute_batch(
        "CREATE TABLE points (series INTEGER NOT NULL, at_ms INTEGER NOT NULL, value REAL NOT NULL) STRICT",
    )?;
    let began = Instant::now();
    let mut statement = conn.prepare("INSERT INTO points (series, at_ms, value) VALUES (?1, ?2, ?3)")?;
    for row in 0..rows {
        if row % batch == 0 {
            conn.execute_batch("BEGIN")?;
        }
        statement.execute(params![
            row as i64 % 17_000,
            1_790_000_000_000 + row as i64,
            row as f64 * 0.37
        ])?;
        if row % batch == batch - 1 || row == rows - 1 {
            conn.execute_batch("COMMIT")?;
        }
    }
    Ok(began.elapsed())
}

struct Made {
    payload: Vec<u8>,
    points: u64,
}

fn frame(device: u64, seq: u64) -> Made {
    let time = 1_790_000_000_000_000_000 + seq * 60_000_000_000;
    let noise = (device * 7919 + seq * 104_729) % 1000;
    let mut metrics = vec![
        sum(
            "process.cpu.time",
            "s",
            ["user", "system"].map(|mode| {
                point(
                    vec![KeyValue::text("cpu.mode", mode)],
                    NumberValue::AsDouble(noise as f64 / 100.0),
                    time,
                )
            }),
        ),
        gauge(
            "system.cpu.utilization",
            "1",
            [point(vec![], NumberValue::AsDouble(noise as f64 / 1000.0), time)],
        ),
    ];
    for name in [
        "process.memory.usage",
        "system.memory.limit",
        "system.memory.linux.available",
    ] {
        let bytes = NumberValue::AsInt(40_000_000 + noise as i64 * 4096);
        metrics.push(gauge(name, "By", [point(vec![], bytes, time)]));
    }
    metrics.push(gauge(
        "system.filesystem.usage",
        "By",
        ["used", "free"].map(|state| {
            let attributes = vec![KeyValue::text("system.filesystem.state", state)];
            point(
                attributes,
                NumberValue::AsInt(8_000_000_000 + noise as i64 * 4096),
                time,
            )
        }),
    ));
    let counts = (1..=MODELS).map(|version| point(model(version), NumberValue::AsInt(600), time));
    metrics.push(sum("skerry.inference.count", "{inference}", counts));
    let errors = (1..=MODELS).map(|version| {
        let attributes = [model(version), vec![KeyValue::text("error.type", "request")]].concat();
        point(attributes, NumberValue::AsInt(2), time)
    });
    metrics.push(sum("skerry.inference.errors", "{inference}", errors));
    let durations = (1..=MODELS).map(|version| {
        let mut histogram = Histogram::default();
        // Ten a second for a minute, around four milliseconds with a tail.
        for request in 0..600_u64 {
            let spread = (request * 2_654_435_761 + noise) % 1000;
            let tail = if spread > 985 { 5.0 } else { 1.0 };
            histogram.record((0.003 + spread as f64 * 2e-6) * tail);
        }
        histogram.to_point(model(version), time - 60_000_000_000, time)
    });
    let durations = ExponentialHistogram {
        data_points: durations.collect(),
        aggregation_temporality: DELTA,
    };
    metrics.push(metric(
        "skerry.inference.duration",
        "s",
        MetricData::ExponentialHistogram(durations),
    ));

    let boot_id = format!("{device:032x}").parse().expect("32 hex digits");
    let resource = OtlpResource {
        attributes: vec![
            KeyValue::text("service.name", "skerry-agent"),
            KeyValue::text("service.version", "0.1.0"),
            KeyValue::text("service.instance.id", format!("{device:032x}")),
            KeyValue::text("device.id", format!("dev-{device}")),
        ],
    };
    let request = ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource),
            scope_metrics: vec![ScopeMetrics { scope: None, metrics }],
        }],
    };
    let raw = request.encode_to_vec();
    let body = zstd::bulk::compress(&raw, 3).expect("compression in memory does not fail");
    let frame = TelemetryFrame {
        id: FrameId { boot_id, seq },
        raw_len: raw.len() as u32,
        body: &body,
    };
    Made {
        payload: frame.to_bytes(),
        points: request.point_count(),
    }
}

fn model(version: i64) -> Vec<KeyValue> {
    let value = Some(AnyValue {
        value: Some(Value::IntValue(version)),
    });
    vec![
        KeyValue::text("model.name", "activity-recognition"),
        KeyValue {
            key: "model.version".to_owned(),
            value,
        },
    ]
}

fn point(attributes: Vec<KeyValue>, value: NumberValue, time: u64) -> NumberDataPoint {
    NumberDataPoint {
        attributes,
        start_time_unix_nano: time - 60_000_000_000,
        time_unix_nano: time,
        value: Some(value),
    }
}

fn gauge(name: &str, unit: &str, points: impl IntoIterator<Item = NumberDataPoint>) -> Metric {
    metric(
        name,
        unit,
        MetricData::Gauge(Gauge {
            data_points: points.into_iter().collect(),
        }),
    )
}

fn sum(name: &str, unit: &str, points: impl IntoIterator<Item = NumberDataPoint>) -> Metric {
    let sum = Sum {
        data_points: points.into_iter().collect(),
        aggregation_temporality: DELTA,
        is_monotonic: true,
    };
    metric(name, unit, MetricData::Sum(sum))
}

fn metric(name: &str, unit: &str, data: MetricData) -> Metric {
    Metric {
        name: name.to_owned(),
        description: String::new(),
        unit: unit.to_owned(),
        data: Some(data),
    }
}
