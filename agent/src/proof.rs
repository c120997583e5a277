//! Proves offline what lies on this device: the trusted metadata, the floors, every installed bundle, and where its model
//! comes from. It reads only, so that it works beside a running agent and without one.
//!
//! It trusts the root on the disk and says its digest, to be compared with what the operator knows. Invariant: everything
//! that is wrong is listed, not only the first thing.

use std::path::Path;

use serde::Serialize;
use skerry_shared::{
    bundle::{GoldenVectors, Manifest},
    digest::Digest,
    error::chain,
    id::{ModelName, ModelVersion, Platform},
    lineage::{self, LineageError, Link},
};
use skerry_tuf::{Limits, Role, StoredMetadata, Targets, TrustedSet, UnixTime, VersionFloors};

use crate::{
    disk::{Disk, DiskError, TwoCopies},
    record::{Installed, Keeper, Record},
    store::Store,
    verify::{self, VerifyError},
};

/// Looks at a state that the agent changes meanwhile: after so many changes the last look counts.
const LOOKS_MAX: usize = 5;

/// What was found.
#[derive(Debug, Serialize)]
pub(crate) struct Proof {
    /// The trusted root; `None` when it is unusable.
    pub(crate) root: Option<RootProof>,
    /// Versions that must never go back.
    pub(crate) floors: VersionFloors,
    /// The targets metadata; `None` when there is none that is believed.
    pub(crate) targets: Option<TargetsProof>,
    /// Every installed bundle.
    pub(crate) bundles: Vec<BundleProof>,
    /// Everything that is wrong.
    pub(crate) broken: Vec<Broken>,
}

/// The root that everything hangs on.
#[derive(Debug, Serialize)]
pub(crate) struct RootProof {
    pub(crate) version: u64,
    /// To be compared with the digest of the operator's root.json.
    pub(crate) digest: Digest,
}

/// The metadata that names the valid bundles.
#[derive(Debug, Serialize)]
pub(crate) struct TargetsProof {
    pub(crate) version: u64,
    pub(crate) expire: String,
    /// Expired metadata allows no new bundle; what is installed goes on.
    pub(crate) expired: bool,
}

/// An installed bundle.
#[derive(Debug, Serialize)]
pub(crate) struct BundleProof {
    pub(crate) model: ModelName,
    pub(crate) slot: &'static str,
    pub(crate) version: ModelVersion,
    pub(crate) index: Digest,
    /// Why it may not run any more, if the signed metadata blocks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) blocked: Option<String>,
    /// The lowest version that a device may be told to install, if this one is below it. What runs goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min_release: Option<u64>,
    /// What else is known, if the bundle is whole.
    #[serde(flatten)]
    pub(crate) content: Option<ContentProof>,
}

/// What a whole bundle holds.
#[derive(Debug, Serialize)]
pub(crate) struct ContentProof {
    /// Files that this device needs of it.
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// Known answers that gate it.
    pub(crate) golden_vectors: usize,
    pub(crate) lineage: Vec<Link>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Broken {
    /// Where: `state`, `root`, `timestamp`, `snapshot`, `targets`, or a slot such as `current of kitchen`.
    pub(crate) place: String,
    /// What.
    pub(crate) reason: String,
}

impl Broken {
    fn new(place: impl Into<String>, error: &dyn std::error::Error) -> Broken {
        Broken {
            place: place.into(),
            reason: chain(error),
        }
    }
}

/// Why an installed bundle is not proved.
#[derive(Debug, thiserror::Error)]
enum BundleError {
    #[error("its chunk index {0} is not in the signed targets metadata")]
    NotSigned(Digest),
    #[error("there is no trusted targets metadata to hold it against")]
    NoTargets,
    #[error("its golden vectors are unreadable or empty")]
    Golden,
    #[error(transparent)]
    Content(#[from] VerifyError),
    #[error(transparent)]
    Lineage(#[from] LineageError),
}

/// Proves what lies in the state folder. An agent that works there meanwhile may move what is looked at: then it is looked
/// at again.
///
/// # Errors
/// When the state cannot be read at all.
pub(crate) fn prove(disk: &Disk, state_dir: &Path, platform: &Platform, now: UnixTime) -> Result<Proof, DiskError> {
    let mut record = Keeper::open(disk, state_dir)?.get().clone();
    let mut proof = look(disk, state_dir, &record, platform, now)?;
    for _ in 1..LOOKS_MAX {
        let after = Keeper::open(disk, state_dir)?.get().clone();
        if proof.broken.is_empty() || after == record {
            break;
        }
        record = after;
        proof = look(disk, state_dir, &record, platform, now)?;
    }
    Ok(proof)
}

fn look(
    disk: &Disk,
    state_dir: &Path,
    record: &Record,
    platform: &Platform,
    now: UnixTime,
) -> Result<Proof, DiskError> {
    let mut proof = Proof {
        root: None,
        floors: record.floors,
        targets: None,
        bundles: Vec::new(),
        broken: Vec::new(),
    };
    for path in TwoCopies::damaged(disk, state_dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        proof.broken.push(Broken {
            place: "state".to_owned(),
            reason: format!("the copy {name} of the state record is damaged; the other one counts"),
        });
    }
    let trusted = metadata(disk, state_dir, &mut proof)?;
    let targets = trusted.as_ref().and_then(TrustedSet::targets);
    if let Some(targets) = targets {
        proof.targets = Some(TargetsProof {
            version: targets.version,
            expire: targets.expires.to_string(),
            expired: targets.expires <= now,
        });
    }
    let store = Store::existing(disk, state_dir);
    for (model, slots) in &record.slots {
        for (slot, installed) in [("current", &slots.current), ("previous", &slots.previous)] {
            let Some(installed) = installed else { continue };
            let content = bundle(&store, targets, (model, installed), platform);
            let content = match content {
                Ok(content) => Some(content),
                Err(error) => {
                    proof.broken.push(Broken::new(format!("{slot} of {model}"), &error));
                    None
                }
            };
            let (blocked, min_release) = taken_back(targets, model, installed.version, installed.index);
            proof.bundles.push(BundleProof {
                model: model.clone(),
                slot,
                version: installed.version,
                index: installed.index,
                blocked,
                min_release,
                content,
            });
        }
    }
    Ok(proof)
}

/// What the signed metadata says against a bundle that it names: why it is blocked, and a lowest version above it.
fn taken_back(
    targets: Option<&Targets>,
    model: &ModelName,
    version: ModelVersion,
    index: Digest,
) -> (Option<String>, Option<u64>) {
    let Some(targets) = targets else { return (None, None) };
    // By its content: what it is called makes no difference.
    let blocked = targets.blocked("", index.as_bytes());
    let lowest = targets.min_release(model.as_str());
    (
        blocked.map(|blocked| blocked.reason.clone()),
        (version.0 < lowest).then_some(lowest),
    )
}

/// Takes up the stored metadata as the agent does at its start, and lists what is not believed.
fn metadata(disk: &Disk, state_dir: &Path, proof: &mut Proof) -> Result<Option<TrustedSet>, DiskError> {
    let read = |role: Role| disk.read(&state_dir.join("trust").join(role.file_name()));
    let stored = StoredMetadata {
        root: read(Role::Root)?.unwrap_or_default(),
        timestamp: read(Role::Timestamp)?,
        snapshot: read(Role::Snapshot)?,
        targets: read(Role::Targets)?,
    };
    let loaded = match TrustedSet::from_stored(&stored, proof.floors, Limits::default()) {
        Ok(loaded) => loaded,
        Err(error) => {
            proof.broken.push(Broken::new("root", &error));
            return Ok(None);
        }
    };
    proof.root = Some(RootProof {
        version: loaded.set.root().version,
        digest: Digest::of(&stored.root),
    });
    let dropped = loaded.dropped.iter();
    proof
        .broken
        .extend(dropped.map(|dropped| Broken::new(dropped.role.as_str(), &dropped.error)));
    Ok(Some(loaded.set))
}

/// Proves one installed bundle: signed, whole, gated by golden vectors that are there, and its lineage its own.
fn bundle(
    store: &Store,
    targets: Option<&Targets>,
    (model, installed): (&ModelName, &Installed),
    platform: &Platform,
) -> Result<ContentProof, BundleError> {
    let targets = targets.ok_or(BundleError::NoTargets)?;
    let signed = |file: &skerry_tuf::TargetFile| file.sha256() == Some(*installed.index.as_bytes());
    if !targets.targets.values().any(signed) {
        return Err(BundleError::NotSigned(installed.index));
    }
    let verified = verify::bundle(store, installed.index, (model, installed.version), platform)?;
    let manifest = verified.manifest();
    lineage::check(manifest)?;
    let golden_vectors = golden_vectors(store, manifest)?;
    Ok(ContentProof {
        files: manifest.needed_on(platform).count(),
        bytes: manifest.needed_on(platform).map(|resource| resource.size_bytes).sum(),
        golden_vectors,
        lineage: lineage::links(manifest),
    })
}

fn golden_vectors(store: &Store, manifest: &Manifest) -> Result<usize, BundleError> {
    let Some(golden) = &manifest.golden else { return Ok(0) };
    let resource = manifest.resource(&golden.resource).ok_or(BundleError::Golden)?;
    let content = store.object(resource.digest).map_err(VerifyError::from)?;
    let vectors: Option<GoldenVectors> = content.and_then(|content| serde_json::from_slice(&content).ok());
    let count = vectors.map_or(0, |golden| golden.vectors.len());
    if count == 0 {
        Err(BundleError::Golden)
    } else {
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_the_metadata_takes_back_is_said_of_its_bundle_and_of_no_other() {
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let targets: Targets = serde_json::from_value(serde_json::json!({
            "spec_version": "1.0.31", "version": 3, "expires": "2030-01-01T00:00:00Z", "targets": {},
            "x_skerry": {
                "blocked": {"har/1/index": {"sha256": one.to_hex(), "reason": "it sees cats"}},
                "min_release": {"har": 2},
            },
        }))
        .unwrap();
        let (har, other): (ModelName, ModelName) = ("har".parse().unwrap(), "other".parse().unwrap());
        let said = |model, version, index| taken_back(Some(&targets), model, ModelVersion(version), index);
        assert_eq!(said(&har, 1, one), (Some("it sees cats".to_owned()), Some(2)));
        assert_eq!(said(&other, 1, one).0.as_deref(), Some("it sees cats"));
        assert_eq!(said(&har, 2, two), (None, None));
        assert_eq!(taken_back(None, &har, ModelVersion(1), one), (None, None));
    }
}
