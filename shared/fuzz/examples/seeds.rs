//! Writes the first inputs of every target into `corpus/`: valid values, so that the fuzzer starts behind the front door.
//!
//! `cargo +nightly run --example seeds`, in this folder.

use std::{fs, path::Path};

use prost::Message;
use serde_json::{Value, json};
use skerry_shared::{
    chunk::{Chunk, ChunkIndex, Codec},
    desired::{DESIRED_PAYLOAD_TYPE, FrameId},
    digest::Digest,
    dsse::Envelope,
    histogram::Histogram,
    otlp::{
        DELTA, ExponentialHistogram, ExportMetricsServiceRequest, Gauge, KeyValue, Metric, MetricData, NumberDataPoint,
        NumberValue, ResourceMetrics, ScopeMetrics, TelemetryFrame,
    },
    transfer::{Part, PartContent},
};

fn write(target: &str, name: &str, content: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder).expect("the corpus folder");
    fs::write(folder.join(name), content).expect("a seed");
}

fn main() {
    chunk_index();
    mqtt();
    oip();
    tuf();
}

fn chunk_index() {
    let chunk = |content: &[u8], codec| Chunk {
        raw: Digest::of(content),
        wire: Digest::of(content),
        raw_len: content.len() as u32,
        wire_len: content.len() as u32 / 2,
        codec,
    };
    let files = vec![
        (
            "manifest.json".parse().expect("a name"),
            Digest::of(b"1"),
            10,
            vec![chunk(&[1; 10], Codec::Zstd)],
        ),
        (
            "model.onnx".parse().expect("a name"),
            Digest::of(b"2"),
            12,
            vec![chunk(&[2; 8], Codec::Shuffle4Zstd), chunk(&[3; 4], Codec::Zstd)],
        ),
    ];
    let index = ChunkIndex::new(files).expect("an index");
    write("chunk_index", "two-files", &index.to_bytes());
}

fn mqtt() {
    let digest = Digest::of(b"index").to_string();
    let boot = "0123456789abcdef0123456789abcdef";
    let desired = json!({"schema": "1.0", "device": "dev-1", "generation": 7, "issued_at_ms": 1_780_000_000_000_u64,
        "bundles": [{"model": "m", "version": 2, "target": "bundles/m", "index": digest, "rollout": 3}]});
    let error = json!({"code": "golden_mismatch", "message": "x"});
    let reported = json!({"schema": "1.0", "device": "dev-1", "boot_id": boot, "seq": 1, "device_time_ms": 2, "generation": 7,
        "agent": {"version": "0.1.0", "platform": "aarch64-unknown-linux-gnu", "inference_address": "127.0.0.1:1"},
        "update": {"state": "download", "model": "m", "version": 2, "rollout": 3, "have_bytes": 1, "total_bytes": 9},
        "bundles": [{"model": "m", "version": 1, "slot": "current", "index": digest}],
        "outcomes": [{"generation": 6, "model": "m", "version": 1, "result": {"kind": "rolled_back", "error": error},
            "wire_bytes": 5}],
        "refused": error});
    let status = json!({"schema": "1.0", "boot_id": boot, "online": true});
    let ack = json!({"schema": "1.0", "frames": [{"boot_id": boot, "seq": 4}]});
    let want = json!({"schema": "1.0", "request": 1, "object": {"chunks": digest}, "parts": [0, 2]});
    for (kind, name, payload) in [
        (0, "desired", &desired),
        (1, "reported", &reported),
        (2, "status", &status),
        (3, "ack", &ack),
        (4, "want", &want),
    ] {
        write(
            "mqtt_payload",
            name,
            &[&[kind], payload.to_string().as_bytes()].concat(),
        );
    }
    let content = PartContent::Data(b"content");
    let part = Part {
        request: 1,
        part: 0,
        parts: 2,
        content,
    };
    write("mqtt_payload", "part", &[&[5], part.to_bytes().as_slice()].concat());
    let id = FrameId {
        boot_id: boot.parse().expect("a boot id"),
        seq: 4,
    };
    let frame = TelemetryFrame {
        id,
        raw_len: 100,
        body: b"body",
    };
    write("mqtt_payload", "frame", &[&[6], frame.to_bytes().as_slice()].concat());
    write("mqtt_payload", "metrics", &[&[7], metrics().as_slice()].concat());
    write("mqtt_payload", "topic", b"\x08skerry/v1/d/dev-1/desired");

    write("dsse", "desired", desired.to_string().as_bytes());
    let key = skerry_tuf::SigningKey::from_seed(&[7; 32]);
    let payload = desired.to_string();
    let sign = |message: &[u8]| key.sign_bytes(message);
    let envelope = Envelope::sign(DESIRED_PAYLOAD_TYPE, payload.as_bytes(), "k", sign);
    write("dsse", "envelope", &envelope.to_json());
}

fn metrics() -> Vec<u8> {
    let mut histogram = Histogram::default();
    for value in [0.0, 0.001, 0.2, 5.0] {
        histogram.record(value);
    }
    let attributes = vec![KeyValue::text("model.name", "m")];
    let number = NumberDataPoint {
        attributes: attributes.clone(),
        start_time_unix_nano: 1,
        time_unix_nano: 2,
        value: Some(NumberValue::AsInt(3)),
    };
    let metric = |name: &str, data| Metric {
        name: name.to_owned(),
        description: String::new(),
        unit: "s".to_owned(),
        data: Some(data),
    };
    let histogram = ExponentialHistogram {
        data_points: vec![histogram.to_point(attributes, 1, 2)],
        aggregation_temporality: DELTA,
    };
    let metrics = vec![
        metric(
            "a",
            MetricData::Gauge(Gauge {
                data_points: vec![number],
            }),
        ),
        metric("b", MetricData::ExponentialHistogram(histogram)),
    ];
    let scope_metrics = vec![ScopeMetrics { scope: None, metrics }];
    let resource_metrics = vec![ResourceMetrics {
        resource: None,
        scope_metrics,
    }];
    ExportMetricsServiceRequest { resource_metrics }.encode_to_vec()
}

fn oip() {
    let tensor = |datatype: &str, shape: Value, data: Value| json!({"name": "x", "datatype": datatype, "shape": shape, "data": data});
    let float = tensor("FP32", json!([2, 2]), json!([[1, 2], [3, 4.5]]));
    for (name, value) in [
        ("tensor-fp32", float.clone()),
        (
            "tensor-int64",
            tensor("INT64", json!([2]), json!([-1, 9_007_199_254_740_993_i64])),
        ),
        ("tensor-bool", tensor("BOOL", json!([2]), json!([true, false]))),
        ("tensor-bytes", tensor("BYTES", json!([2]), json!(["Walking", ""]))),
        ("request", json!({"id": "1", "inputs": [float]})),
        ("golden", json!({"vectors": [{"inputs": [float], "outputs": []}]})),
        ("metadata", json!({"name": "x", "datatype": "FP32", "shape": [-1, 6]})),
    ] {
        write("oip", name, value.to_string().as_bytes());
    }
    let digest = Digest::of(b"x").to_string();
    let kind = json!({"kind": "compiled_component", "component": "c.wasm", "platform": "p", "wasmtime": "48"});
    let mut resource = json!({"name": "r", "digest": digest, "size_bytes": 1});
    for (key, value) in kind.as_object().expect("an object") {
        resource[key] = value.clone();
    }
    let tensor = json!({"name": "x", "datatype": "FP32", "shape": [-1]});
    let manifest = json!({"schema": "1.0", "model": "m", "version": 1, "created_at_ms": 1, "resources": [resource],
        "pipeline": {"inputs": [tensor], "outputs": [tensor], "stages": [
            {"name": "s", "kind": "step", "component": "c.wasm", "parameters": {"a": "b"},
                "limits": {"memory_bytes": 1, "timeout_ms": 1}},
            {"name": "m", "kind": "model", "resource": "r"}]},
        "golden": {"resource": "g", "tolerance": {"absolute": 0.001, "relative": 0.5}},
        "lineage": {"run_id": "0123456789abcdef0123456789abcdef", "dataset": digest}});
    write("oip", "manifest", manifest.to_string().as_bytes());
    let mut graph = manifest;
    graph["schema"] = json!("2.0");
    graph["pipeline"]["stages"][1]["batch"] = json!(8);
    graph["pipeline"]["edges"] = json!([
        {"from": "m:y", "to": "outputs:x"}, {"from": "inputs:x", "to": "s:x"}, {"from": "s:y", "to": "m:x"}]);
    write("oip", "manifest-graph", graph.to_string().as_bytes());
}

fn tuf() {
    let keys = |seeds: &[u8]| {
        let key = |seed: &u8| skerry_tuf::SigningKey::from_seed(&[*seed; 32]);
        let ids: Vec<String> = seeds.iter().map(|seed| key(seed).id().as_str().to_owned()).collect();
        let objects: serde_json::Map<String, Value> = seeds
            .iter()
            .map(|seed| {
                (
                    key(seed).id().as_str().to_owned(),
                    serde_json::to_value(key(seed).public_key()).expect("a key"),
                )
            })
            .collect();
        (ids, objects)
    };
    let head = |role: &str, version: u64| json!({"_type": role, "spec_version": "1.0.31", "version": version, "expires": "2038-01-01T00:00:00Z"});
    let with = |mut head: Value, more: Value| {
        for (key, value) in more.as_object().expect("an object") {
            head[key] = value.clone();
        }
        head
    };
    let role = |seed| json!({"keyids": keys(&[seed]).0, "threshold": 1});
    let roles = json!({"root": role(1), "timestamp": role(2), "snapshot": role(3), "targets": role(4)});
    let root = with(
        head("root", 2),
        json!({"consistent_snapshot": true, "keys": keys(&[1, 2, 3, 4]).1, "roles": roles}),
    );
    let timestamp = with(head("timestamp", 1), json!({"meta": {"snapshot.json": {"version": 1}}}));
    let snapshot = with(
        head("snapshot", 1),
        json!({"meta": {"targets.json": {"version": 1}, "camera.json": {"version": 1}}}),
    );
    let file = json!({"length": 1, "hashes": {"sha256": "00".repeat(32)}, "custom": {"a": [1]}});
    let (ids, objects) = keys(&[4]);
    let delegations = json!({"keys": objects, "roles": [
        {"name": "camera", "keyids": ids, "threshold": 1, "terminating": true, "paths": ["bundles/*"]}]});
    let targets = with(
        head("targets", 1),
        json!({"targets": {"a": file}, "delegations": delegations}),
    );
    let camera = with(head("targets", 1), json!({"targets": {"bundles/model": file}}));
    let lines = [&root, &timestamp, &snapshot, &targets, &camera].map(Value::to_string);
    write("tuf_metadata", "cycle", lines.join("\n").as_bytes());
    for (name, line) in ["root", "timestamp", "snapshot", "targets"].iter().zip(&lines) {
        let signed: Value = serde_json::from_str(line).expect("JSON");
        let whole = json!({"signatures": [{"keyid": "k", "sig": "00"}], "signed": signed});
        write("tuf_metadata", name, whole.to_string().as_bytes());
    }
}
