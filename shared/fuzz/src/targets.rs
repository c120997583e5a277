//! What each fuzz target does with its input.
//!
//! Invariant: no input may panic, and what was accepted must survive being written and read again.

use ed25519_dalek::{Signer, SigningKey};
use prost::Message;
use serde_json::{Value, json};
use skerry_shared::{
    bundle::{GoldenVectors, Manifest, Port},
    chunk::{ChunkIndex, LIMITS},
    desired::{Ack, DESIRED_PAYLOAD_TYPE, Desired, Reported, Status},
    dsse::{self, Signers},
    histogram::Histogram,
    oip::{InferRequest, Tensor, TensorMetadata},
    otlp::{ExportMetricsServiceRequest, MetricData, TelemetryFrame},
    schema::Envelope,
    topic::Topic,
    transfer::{Part, Want},
};
use skerry_tuf::{
    Expiry, FileCheck, Limits, Metadata, Outcome, Role, Root, SearchStep, Signed, Snapshot, TargetName, Targets,
    Timestamp, TrustedSet, UnixTime, parse_strict_json, sign_metadata, to_canonical_json,
};

/// A chunk index from bytes: one that is accepted is within its limits, adds up, and reads back.
pub fn chunk_index(input: &[u8]) {
    let Ok(index) = ChunkIndex::from_bytes(input) else {
        return;
    };
    assert!(index.files().len() <= LIMITS.files && index.total_bytes() <= LIMITS.total_bytes);
    let mut chunks = 0;
    for file in index.files() {
        let own = index.chunks_of(file);
        chunks += own.len();
        let raw: u64 = own.iter().map(|chunk| u64::from(chunk.raw_len)).sum();
        assert_eq!(raw, file.size_bytes);
        assert!(own.iter().all(|chunk| chunk.wire_len <= chunk.raw_len));
        assert!(index.file(file.name.as_str()).is_some());
    }
    assert_eq!(chunks, index.chunks().len());
    assert_eq!(ChunkIndex::from_bytes(&index.to_bytes()).as_ref(), Ok(&index));
}

/// A DSSE envelope from bytes, and the bytes as the payload of an envelope that is properly signed.
pub fn dsse(input: &[u8]) {
    let key = SigningKey::from_bytes(&[7; 32]);
    let signers = Signers {
        keys: vec![key.verifying_key()],
        threshold: 1,
    };
    if let Ok(envelope) = dsse::Envelope::from_json(input) {
        if let Ok(payload) = envelope.verify(DESIRED_PAYLOAD_TYPE, &signers) {
            read_back::<Desired>(&payload);
        }
        let again = dsse::Envelope::from_json(&envelope.to_json());
        assert_eq!(again.ok().as_ref(), Some(&envelope));
    }
    let signed = dsse::Envelope::sign(DESIRED_PAYLOAD_TYPE, input, "", |message| key.sign(message).to_bytes());
    let payload = signed
        .verify(DESIRED_PAYLOAD_TYPE, &signers)
        .expect("its own signature");
    assert_eq!(payload, input);
    read_back::<Desired>(&payload);
    assert!(
        signed.verify("text/x", &signers).is_err(),
        "a signature for another purpose"
    );
}

/// What travels over MQTT besides a desired state. The first byte chooses the kind.
pub fn mqtt_payload(input: &[u8]) {
    let Some((kind, payload)) = input.split_first() else {
        return;
    };
    match kind % 9 {
        0 => read_back::<Desired>(payload),
        1 => read_back::<Reported>(payload),
        2 => read_back::<Status>(payload),
        3 => read_back::<Ack>(payload),
        4 => read_back::<Want>(payload),
        5 => {
            if let Ok(part) = Part::from_bytes(payload) {
                assert_eq!(part.to_bytes(), payload);
            }
        }
        6 => {
            if let Ok(frame) = TelemetryFrame::from_bytes(payload) {
                assert_eq!(frame.to_bytes(), payload);
            }
        }
        7 => metrics(payload),
        _ => {
            if let Ok(text) = std::str::from_utf8(payload)
                && let Ok(topic) = text.parse::<Topic>()
            {
                assert_eq!(topic.to_string(), text);
            }
        }
    }
}

/// The body of a telemetry frame, once decompressed.
fn metrics(payload: &[u8]) {
    let Ok(request) = ExportMetricsServiceRequest::decode(payload) else {
        return;
    };
    request.point_count();
    let scopes = request
        .resource_metrics
        .iter()
        .flat_map(|resource| &resource.scope_metrics);
    for metric in scopes.flat_map(|scope| &scope.metrics) {
        let Some(MetricData::ExponentialHistogram(histograms)) = &metric.data else {
            continue;
        };
        for point in &histograms.data_points {
            let Ok(histogram) = Histogram::from_point(point) else {
                continue;
            };
            assert_eq!(histogram.count(), point.count);
            for q in [0.0, 0.5, 0.99, 1.0] {
                assert_eq!(histogram.quantile(q).is_some(), point.count > 0);
            }
            let mut merged = histogram.clone();
            merged.merge(&histogram);
            let again = Histogram::from_point(&histogram.to_point(Vec::new(), 0, 0));
            assert_eq!(again.map(|again| again.count()), Ok(histogram.count()));
        }
    }
}

/// Tensors, inference requests, and the JSON files of a bundle.
pub fn oip(input: &[u8]) {
    let _ = serde_json::from_slice::<TensorMetadata>(input);
    if let Ok(tensor) = serde_json::from_slice::<Tensor>(input) {
        let json = serde_json::to_vec(&tensor).expect("a tensor that came as JSON can go as JSON");
        // A number beyond `f32` reads as infinite, which JSON cannot say.
        if tensor
            .to_f32()
            .is_none_or(|values| values.iter().all(|value| value.is_finite()))
        {
            assert_eq!(serde_json::from_slice::<Tensor>(&json).ok(), Some(tensor));
        }
    }
    if let Ok(request) = serde_json::from_slice::<InferRequest>(input) {
        serde_json::to_vec(&request).expect("a request that came as JSON can go as JSON");
    }
    let _ = serde_json::from_slice::<GoldenVectors>(input);
    read_back::<Manifest>(input);
    if let Ok(manifest) = Manifest::from_json(input) {
        pipeline(&manifest);
    }
}

/// A pipeline that is accepted has every stage once, and each edge goes forwards.
fn pipeline(manifest: &Manifest) {
    let Ok(order) = manifest.pipeline.order() else {
        return;
    };
    let stages = &manifest.pipeline.stages;
    assert_eq!(order.len(), stages.len());
    let at = |port: &Port| order.iter().position(|position| stages[*position].name == port.stage);
    for edge in &manifest.pipeline.edges {
        if let (Some(from), Some(to)) = (at(&edge.from), at(&edge.to)) {
            assert!(from < to, "{edge}");
        }
    }
}

fn read_back<T: Envelope + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(envelope) = T::from_json(bytes) {
        let json = envelope.to_json();
        // White space and unknown members go; escapes may grow.
        if json.len() <= T::LIMIT_BYTES {
            assert_eq!(T::from_json(&json).ok(), Some(envelope));
        }
    }
}

const ROOT: [u8; 32] = [1; 32];
const TIMESTAMP: [u8; 32] = [2; 32];
const SNAPSHOT: [u8; 32] = [3; 32];
const TARGETS: [u8; 32] = [4; 32];

/// A time before everything in the seeds expires.
fn now() -> Expiry {
    Expiry::Enforce(UnixTime::from_seconds(1_780_000_000))
}

/// A repository that speaks line by line. Each line is a metadata file as it stands, or the `signed` part of one, which is
/// signed properly here: the fuzzer cannot sign, and what lies behind the signatures would never be reached.
pub fn tuf_metadata(input: &[u8]) {
    let mut set = TrustedSet::new(&first_root()).expect("a root of its own keys");
    let mut files = Vec::new();
    for line in input.split(|byte| *byte == b'\n').take(16) {
        parse_alone(line);
        let Some((role, file)) = file_of(line) else {
            continue;
        };
        let before = set.clone();
        let taken = match role {
            Role::Root => set.update_root(&file),
            Role::Timestamp => set.update_timestamp(&file, now()),
            Role::Snapshot => set.update_snapshot(&file, now()),
            Role::Targets => set.update_targets(&file, now()),
        };
        match taken {
            Ok(Outcome::Updated) => {
                let (old, new) = (before.floors(), set.floors());
                assert!(new.root >= old.root);
                // Only a root that takes keys away may lower the others.
                if role != Role::Root {
                    assert!(
                        new.timestamp >= old.timestamp && new.snapshot >= old.snapshot && new.targets >= old.targets
                    );
                }
            }
            Ok(Outcome::Unchanged) | Err(_) => assert_eq!(set, before, "a refused file leaves no trace"),
        }
        if role == Role::Targets {
            files.push(file);
        }
    }
    set.wanted_snapshot();
    set.wanted_targets();
    for name in ["bundles/model", "a"] {
        search(&set, &TargetName::new(name).expect("a plain name"), &files);
    }
}

/// Follows delegations through the given files.
fn search(set: &TrustedSet, name: &TargetName, files: &[Vec<u8>]) {
    let Ok(mut search) = set.search(name, now()) else {
        return;
    };
    // One role more than may ever be asked: a search that does not end fails here.
    for _ in 0..=Limits::default().delegated_roles {
        match search.step() {
            Ok(SearchStep::Needs { .. }) => {
                if !files.iter().any(|file| search.offer(file).is_ok()) {
                    return;
                }
            }
            Ok(SearchStep::Found(file)) => {
                assert!(set.targets().is_some());
                let _: FileCheck<'_> = file.begin_check(name);
                let _ = set.target_path(name, &file);
                return;
            }
            Ok(SearchStep::Absent) | Err(_) => return,
        }
    }
    panic!("the search does not end");
}

/// A line as each kind of file, without a set around it.
fn parse_alone(line: &[u8]) {
    let _ = TrustedSet::new(line);
    parse_as::<Root>(line);
    parse_as::<Timestamp>(line);
    parse_as::<Snapshot>(line);
    parse_as::<Targets>(line);
}

fn parse_as<T: Metadata>(bytes: &[u8]) {
    let Ok(file) = Signed::<T>::parse(bytes, &Limits::default()) else {
        return;
    };
    // What was parsed can be written, and is then the same to whoever signs it.
    if let Ok(again) = sign_metadata(file.unverified(), []) {
        let again = Signed::<T>::parse(&again, &Limits::default()).expect("what we write we read");
        assert_eq!(again.unverified().version(), file.unverified().version());
        assert_eq!(again.unverified().expires(), file.unverified().expires());
    }
}

/// The metadata file that a line stands for.
fn file_of(line: &[u8]) -> Option<(Role, Vec<u8>)> {
    let mut value = parse_strict_json(line).ok()?;
    let whole = value.get("signatures").is_some();
    let signed = if whole { value.get_mut("signed")?.take() } else { value };
    let (role, seed) = match signed.get("_type")?.as_str()? {
        "root" => (Role::Root, ROOT),
        "timestamp" => (Role::Timestamp, TIMESTAMP),
        "snapshot" => (Role::Snapshot, SNAPSHOT),
        "targets" => (Role::Targets, TARGETS),
        _ => return None,
    };
    if whole {
        return Some((role, line.to_vec()));
    }
    let canonical = to_canonical_json(&signed).ok()?;
    Some((role, sign_value(&signed, &canonical, seed)))
}

fn sign_value(signed: &Value, canonical: &[u8], seed: [u8; 32]) -> Vec<u8> {
    let key = skerry_tuf::SigningKey::from_seed(&seed);
    let signature = json!({"keyid": key.id().as_str(), "sig": hex::encode(key.sign_bytes(canonical))});
    json!({"signatures": [signature], "signed": signed})
        .to_string()
        .into_bytes()
}

/// Root 1: one key a role, good until 2038.
fn first_root() -> Vec<u8> {
    let mut keys = serde_json::Map::new();
    let mut roles = serde_json::Map::new();
    for (role, seed) in [
        ("root", ROOT),
        ("timestamp", TIMESTAMP),
        ("snapshot", SNAPSHOT),
        ("targets", TARGETS),
    ] {
        let key = skerry_tuf::SigningKey::from_seed(&seed);
        let public = serde_json::to_value(key.public_key()).expect("a key is plain JSON");
        keys.insert(key.id().as_str().to_owned(), public);
        roles.insert(role.to_owned(), json!({"keyids": [key.id().as_str()], "threshold": 1}));
    }
    let signed = json!({"_type": "root", "spec_version": "1.0.31", "version": 1, "expires": "2038-01-01T00:00:00Z",
        "consistent_snapshot": true, "keys": keys, "roles": roles});
    let canonical = to_canonical_json(&signed).expect("integers and strings only");
    sign_value(&signed, &canonical, ROOT)
}
