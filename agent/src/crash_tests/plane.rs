//! A control plane in memory: signed metadata of any version, bundles that load, and answers to what a device wants.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use ed25519_dalek::Signer;
use skerry_shared::{
    bundle::{
        Golden, GoldenVector, GoldenVectors, Lineage, MANIFEST_NAME, Manifest, Pipeline, Resource, ResourceKind, Stage,
        StageKind, Tolerance,
    },
    chunk::{Chunk, ChunkIndex, Codec},
    desired::{BundleAssignment, DESIRED_PAYLOAD_TYPE, Desired},
    digest::Digest,
    dsse,
    id::{DeviceId, Generation, ModelName, ModelVersion, ResourceName},
    oip::{Datatype, Tensor, TensorMetadata},
    schema::{Envelope, SchemaVersion},
    time::{TIME_PAYLOAD_TYPE, TimeAnswer, TimeRequest},
    transfer::{Object, PART_BYTES, Part, PartContent, Want},
};
use skerry_tuf::{
    Blocked, KeySet, MetaFile, NewRoot, SigningKey, TargetFile, TargetName, TargetsExtension, UnixTime, new_root,
    new_snapshot, new_targets, new_timestamp, sign_metadata,
};
use tokio::sync::mpsc;

use crate::fetch::Fetcher;

const CHUNK_BYTES: usize = 1500;

/// What is published.
#[derive(Default)]
pub(crate) struct Published {
    metadata: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<Digest, Vec<u8>>,
    chunks: BTreeMap<Digest, Vec<Vec<u8>>>,
    targets: BTreeMap<TargetName, TargetFile>,
    /// What the targets metadata forbids.
    pub(crate) extension: TargetsExtension,
    expires: Option<UnixTime>,
}

/// The control plane; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Plane(Arc<Mutex<Published>>);

/// Which seeds sign timestamp and snapshot: a rotation takes other ones.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    First,
    Second,
}

impl Keys {
    fn timestamp(self) -> SigningKey {
        SigningKey::from_seed(&[if self == Keys::First { 2 } else { 12 }; 32])
    }
}

fn root_key() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn targets_key() -> SigningKey {
    SigningKey::from_seed(&[4; 32])
}

/// Rotated together with the other online keys.
fn assignment_key(keys: Keys) -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&[if keys == Keys::First { 5 } else { 15 }; 32])
}

/// When roots expire, and everything else too unless a test says otherwise.
fn expires() -> UnixTime {
    "2999-01-01T00:00:00Z".parse().unwrap()
}

fn one(key: &SigningKey) -> KeySet {
    KeySet::new([key.public_key()], 1.try_into().unwrap())
}

fn time_key() -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&[6; 32])
}

pub(crate) fn device() -> DeviceId {
    "dev-1".parse().unwrap()
}

pub(crate) fn model() -> ModelName {
    "m".parse().unwrap()
}

fn target(version: u64) -> TargetName {
    TargetName::new(format!("m/{version}/index")).unwrap()
}

impl Plane {
    /// Publishes a root, signed by the one root key, and returns it.
    pub(crate) fn root(&self, version: u64, keys: Keys) -> Vec<u8> {
        let assignment = SigningKey::from_seed(assignment_key(keys).as_bytes());
        let root = new_root(NewRoot {
            version,
            expires: expires(),
            root: one(&root_key()),
            timestamp: one(&keys.timestamp()),
            snapshot: one(&keys.timestamp()),
            targets: one(&targets_key()),
            assignment: Some(one(&assignment)),
            time: Some(one(&SigningKey::from_seed(time_key().as_bytes()))),
        });
        let bytes = sign_metadata(&root, [&root_key()]).unwrap();
        let mut published = self.0.lock().unwrap();
        published.metadata.insert(format!("{version}.root.json"), bytes.clone());
        bytes
    }

    /// Publishes timestamp, snapshot and targets of this version, with all bundles so far.
    pub(crate) fn sign(&self, version: u64, keys: Keys) {
        self.sign_versions(version, version, keys);
    }

    /// Publishes a timestamp and a snapshot of one version over targets of another.
    pub(crate) fn sign_versions(&self, online: u64, targets_version: u64, keys: Keys) {
        let mut published = self.0.lock().unwrap();
        let expires = published.expires.unwrap_or_else(expires);
        let mut targets = new_targets(targets_version, expires);
        targets.extension = Some(published.extension.clone());
        for (name, file) in &published.targets {
            targets.add_target(name.clone(), file.clone());
        }
        let targets = sign_metadata(&targets, [&targets_key()]).unwrap();
        let listed = MetaFile::describe(targets_version, &targets);
        let snapshot = sign_metadata(&new_snapshot(online, expires, listed), [&keys.timestamp()]).unwrap();
        let listed = MetaFile::describe(online, &snapshot);
        let timestamp = sign_metadata(&new_timestamp(online, expires, listed), [&keys.timestamp()]).unwrap();
        let files = &mut published.metadata;
        files.insert(format!("{targets_version}.targets.json"), targets);
        files.insert(format!("{online}.snapshot.json"), snapshot);
        files.insert("timestamp.json".to_owned(), timestamp);
    }

    /// Lets what is signed from now on expire at this time.
    pub(crate) fn expire_at(&self, ms: u64) {
        self.0.lock().unwrap().expires = Some(UnixTime::from_millis(ms as i64));
    }

    /// Publishes a bundle. Its golden vectors are right or wrong.
    pub(crate) fn bundle(&self, version: u64, right: bool) {
        let tensor =
            |name: &str, value: f32| Tensor::new(name, Datatype::Fp32, vec![1], value.to_le_bytes().to_vec()).unwrap();
        let vector = GoldenVector {
            inputs: vec![tensor("x", 2.0)],
            outputs: vec![tensor("y", if right { 2.0 } else { 3.0 })],
        };
        let golden = serde_json::to_vec(&GoldenVectors { vectors: vec![vector] }).unwrap();
        // More than one chunk, and half of it in every version.
        let notes: Vec<u8> = (0..2 * CHUNK_BYTES)
            .map(|at| if at < CHUNK_BYTES { at as u8 } else { version as u8 })
            .collect();
        let files = [
            ("model.onnx", ResourceKind::OnnxModel, identity_model()),
            ("golden.json", ResourceKind::GoldenVectors, golden),
            ("notes", ResourceKind::Document, notes),
        ];
        let resources = files.iter().map(|(name, kind, bytes)| Resource {
            name: name.parse().unwrap(),
            digest: Digest::of(bytes),
            size_bytes: bytes.len() as u64,
            kind: kind.clone(),
        });
        let metadata = |name: &str| TensorMetadata {
            name: name.to_owned(),
            datatype: Datatype::Fp32,
            shape: vec![1],
        };
        let kind = StageKind::Model {
            resource: "model.onnx".parse().unwrap(),
        };
        let manifest = Manifest {
            schema: SchemaVersion::CURRENT,
            model: model(),
            version: ModelVersion(version),
            created_at_ms: 0,
            resources: resources.collect(),
            pipeline: Pipeline {
                inputs: vec![metadata("x")],
                outputs: vec![metadata("y")],
                stages: vec![Stage {
                    name: "identity".parse().unwrap(),
                    kind,
                    batch: None,
                }],
                edges: vec![],
            },
            golden: Some(Golden {
                resource: "golden.json".parse().unwrap(),
                tolerance: Tolerance {
                    absolute: 0.01,
                    relative: 0.0,
                },
            }),
            lineage: Lineage::default(),
        };
        let mut all = vec![(MANIFEST_NAME, manifest.to_json())];
        all.extend(files.into_iter().map(|(name, _, bytes)| (name, bytes)));
        let mut wire = Vec::new();
        let entries = all.iter().map(|(name, bytes)| {
            let chunks = bytes.chunks(CHUNK_BYTES).map(|raw| {
                wire.push(raw.to_vec());
                Chunk {
                    raw: Digest::of(raw),
                    wire: Digest::of(raw),
                    raw_len: raw.len() as u32,
                    wire_len: raw.len() as u32,
                    codec: Codec::Raw,
                }
            });
            let name: ResourceName = name.parse().unwrap();
            (name, Digest::of(bytes), bytes.len() as u64, chunks.collect())
        });
        let index = ChunkIndex::new(entries.collect()).unwrap().to_bytes();
        let mut published = self.0.lock().unwrap();
        published.targets.insert(target(version), TargetFile::describe(&index));
        published.chunks.insert(Digest::of(&index), wire);
        published.blobs.insert(Digest::of(&index), index);
    }

    /// Loses every chunk index, though the metadata goes on to list them.
    pub(crate) fn lose_the_bundles(&self) {
        self.0.lock().unwrap().blobs.clear();
    }

    /// Blocks a bundle in the metadata that is signed next.
    pub(crate) fn block(&self, version: u64) {
        let mut published = self.0.lock().unwrap();
        let digest = published.targets[&target(version)].sha256().unwrap();
        let blocked = Blocked {
            sha256: hex::encode(digest),
            reason: "it sees cats everywhere".to_owned(),
            extra: serde_json::Map::new(),
        };
        published.extension.blocked.insert(target(version), blocked);
    }

    /// Sets the lowest version in the metadata that is signed next.
    pub(crate) fn min_release(&self, version: u64) {
        let mut published = self.0.lock().unwrap();
        published.extension.min_release.insert(model().to_string(), version);
    }

    /// The signed intent that asks for this version.
    pub(crate) fn desired(&self, generation: u64, version: u64) -> Vec<u8> {
        self.desired_by(Keys::First, generation, version, false)
    }

    /// The same, by other keys, for a device that may be below the lowest version.
    pub(crate) fn desired_by(&self, keys: Keys, generation: u64, version: u64, allow_downgrade: bool) -> Vec<u8> {
        let published = self.0.lock().unwrap();
        let index = *published.targets[&target(version)].sha256().as_ref().unwrap();
        let desired = Desired {
            schema: SchemaVersion::CURRENT,
            device: device(),
            generation: Generation(generation),
            issued_at_ms: 1_790_000_000_000 + generation.min(1000),
            bundles: vec![BundleAssignment {
                model: model(),
                version: ModelVersion(version),
                target: target(version).as_str().to_owned(),
                index: Digest::from_bytes(index),
                rollout: None,
                probation_ms: 0,
                allow_downgrade,
            }],
        };
        let sign = |message: &[u8]| assignment_key(keys).sign(message).to_bytes();
        dsse::Envelope::sign(DESIRED_PAYLOAD_TYPE, &desired.to_json(), "assignment", sign).to_json()
    }

    /// A signed answer to the question what time it is.
    pub(crate) fn time(request: &TimeRequest, device: &str, time_ms: u64) -> Vec<u8> {
        Plane::time_by(&time_key(), request, device, time_ms)
    }

    /// The same by any key.
    pub(crate) fn time_by(
        key: &ed25519_dalek::SigningKey,
        request: &TimeRequest,
        device: &str,
        time_ms: u64,
    ) -> Vec<u8> {
        let answer = TimeAnswer {
            schema: SchemaVersion::CURRENT,
            device: device.parse().unwrap(),
            nonce: request.nonce,
            time_ms,
        };
        let sign = |message: &[u8]| key.sign(message).to_bytes();
        dsse::Envelope::sign(TIME_PAYLOAD_TYPE, &answer.to_json(), "time", sign).to_json()
    }

    /// A link that answers at once.
    pub(crate) fn fetcher(&self) -> Fetcher {
        let (sender, parts) = mpsc::channel(256);
        let plane = self.clone();
        let answer = move |want: Vec<u8>| {
            let want = Want::from_json(&want).unwrap();
            for message in plane.answers(&want) {
                sender.try_send(message).unwrap();
            }
        };
        Fetcher::new(Box::new(answer), parts, None)
    }

    fn answers(&self, want: &Want) -> Vec<Vec<u8>> {
        let published = self.0.lock().unwrap();
        let whole = |bytes: &Vec<u8>| bytes.chunks(PART_BYTES).map(<[u8]>::to_vec).collect();
        let parts: Option<Vec<Vec<u8>>> = match &want.object {
            Object::Metadata(name) => published.metadata.get(name).map(whole),
            Object::Blob(digest) => published.blobs.get(digest).map(whole),
            Object::Chunks(digest) => published.chunks.get(digest).cloned(),
        };
        let answer = |part: u32| {
            let content = parts.as_ref().and_then(|parts| parts.get(part as usize));
            Part {
                request: want.request,
                part,
                parts: parts.as_ref().map_or(0, |parts| parts.len() as u32),
                content: content.map_or(PartContent::NotFound, |bytes| PartContent::Data(bytes)),
            }
            .to_bytes()
        };
        want.parts.iter().map(|part| answer(*part)).collect()
    }
}

/// An ONNX file of one node: `y = Identity(x)`, one float.
fn identity_model() -> Vec<u8> {
    let field = |number: u8, content: &[u8]| [&[number << 3 | 2, content.len() as u8], content].concat();
    let number = |number: u8, value: u8| vec![number << 3, value];
    let shape = field(2, &field(1, &number(1, 1)));
    let tensor = field(2, &field(1, &[number(1, 1), shape].concat()));
    let value = |name: &[u8]| [field(1, name), tensor.clone()].concat();
    let node = [field(1, b"x"), field(2, b"y"), field(4, b"Identity")].concat();
    let graph = [
        field(1, &node),
        field(2, b"g"),
        field(11, &value(b"x")),
        field(12, &value(b"y")),
    ]
    .concat();
    [number(1, 8), field(7, &graph), field(8, &number(2, 13))].concat()
}
