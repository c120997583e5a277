//! Trust: the metadata on disk, the update cycle of `reference` TUF §5, the signed intent, and the check of a whole bundle.
//!
//! Invariant: a [`VerifiedBundle`] exists only for a bundle whose chunk index is a target of trusted metadata, and all of
//! whose files have the digests that the index states.

use std::path::{Path, PathBuf};

use ed25519_dalek::VerifyingKey;
use skerry_shared::{
    bundle::{MANIFEST_NAME, Manifest, Resource},
    chunk::{ChunkIndex, ChunkIndexError, FileEntry},
    desired::{BundleAssignment, DESIRED_PAYLOAD_TYPE, Desired, ReportedError},
    digest::Digest,
    dsse::{DsseError, Envelope as DsseEnvelope, Signers},
    error::chain,
    id::{DeviceId, ModelName, ModelVersion, Platform},
    schema::{Envelope, EnvelopeError},
    time::{TIME_PAYLOAD_TYPE, TimeAnswer},
    transfer::Object,
};
use skerry_tuf::{
    Expiry, KeySet, Limits, Outcome, Role, StoredMetadata, TargetFile, TargetName, TrustedSet, UnixTime, VersionFloors,
};

use crate::{
    disk::{Access, Disk, DiskError},
    fetch::{FetchError, Fetcher},
    record::Installed,
    store::Store,
};

/// Why something is not trusted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifyError {
    #[error("metadata is refused")]
    Metadata(#[from] skerry_tuf::Error),
    #[error("the root metadata names no assignment key")]
    NoAssignmentKey,
    #[error("the signed message is refused")]
    Dsse(#[from] DsseError),
    #[error("the signed message is refused")]
    Envelope(#[from] EnvelopeError),
    #[error("the root metadata names no time key")]
    NoTimeKey,
    #[error("the signed message is for device `{0}`")]
    OtherDevice(DeviceId),
    #[error("bundle `{0}` is not in the signed targets metadata")]
    NotATarget(String),
    #[error("bundle `{0}` has another digest in the signed targets metadata")]
    OtherDigest(String),
    #[error("bundle `{target}` is blocked: {reason}")]
    Blocked { target: String, reason: String },
    #[error("version {version} is below {lowest}, the lowest that signed metadata allows")]
    MinRelease { version: ModelVersion, lowest: u64 },
    #[error("the chunk index is refused")]
    Index(#[from] ChunkIndexError),
    #[error("the bundle has no readable manifest")]
    Manifest(#[source] Option<EnvelopeError>),
    #[error("the bundle is of another model or version than assigned")]
    OtherModel,
    #[error("resource `{0}` of the manifest is not in the chunk index")]
    Resource(String),
    #[error("file `{0}` of the bundle is not whole")]
    File(String),
    #[error("the disk has {free_bytes} bytes free, the bundle needs {needed_bytes}")]
    DiskFull { free_bytes: u64, needed_bytes: u64 },
    #[error("cannot fetch")]
    Fetch(#[from] FetchError),
    #[error("the disk failed")]
    Disk(#[from] DiskError),
}

impl VerifyError {
    /// True when the network said nothing for too long: nothing is wrong with what was asked for.
    pub(crate) fn is_stalled(&self) -> bool {
        matches!(self, VerifyError::Fetch(FetchError::Stalled(_)))
    }

    /// True when the same bundle may be installed later without anybody asking for it again: metadata is late, or whoever
    /// answers lags behind. What fresh and valid metadata says is final for this intent: a target that it does not list was
    /// taken back, and the next intent asks anew. So is a root under the name of a later one: whoever lags has none there.
    pub(crate) fn may_pass(&self) -> bool {
        use skerry_tuf::Error::{Expired, Rollback};
        match self {
            VerifyError::Metadata(Rollback { role, .. }) => *role != Role::Root,
            VerifyError::Metadata(Expired { .. })
            | VerifyError::Fetch(FetchError::NotFound(_) | FetchError::Closed) => true,
            _ => false,
        }
    }

    /// True when metadata that is too old comes: nobody signs any more, or somebody replays what was signed before.
    pub(crate) fn is_stale(&self) -> bool {
        matches!(self, VerifyError::Metadata(skerry_tuf::Error::Expired { .. }))
    }

    /// The stable word for the report.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            VerifyError::Metadata(error) => error.code(),
            VerifyError::NoAssignmentKey => "no_assignment_key",
            VerifyError::NoTimeKey => "no_time_key",
            VerifyError::Dsse(DsseError::Threshold { .. }) => "sig_threshold",
            VerifyError::Dsse(_) | VerifyError::Envelope(_) => "parse",
            VerifyError::OtherDevice(_) => "other_device",
            VerifyError::NotATarget(_) => "not_listed",
            VerifyError::OtherDigest(_) => "mix_and_match",
            VerifyError::Blocked { .. } => "blocked",
            VerifyError::MinRelease { .. } => "min_release",
            VerifyError::Index(_) => "chunk_index",
            VerifyError::Manifest(_) | VerifyError::OtherModel | VerifyError::Resource(_) => "manifest",
            VerifyError::File(_) => "hash",
            VerifyError::DiskFull { .. } => "enospc",
            VerifyError::Fetch(error) => error.code(),
            VerifyError::Disk(error) if error.is_full() => "enospc",
            VerifyError::Disk(_) => "disk",
        }
    }

    /// For the control plane: the chain in one line.
    pub(crate) fn report(&self) -> ReportedError {
        ReportedError {
            code: self.code().to_owned(),
            message: chain(self),
        }
    }
}

/// A desired state that enough keys signed.
#[derive(Debug)]
pub(crate) struct SignedDesired {
    pub(crate) desired: Desired,
    /// Those keys, in hexadecimal.
    pub(crate) signed_by: Vec<String>,
}

fn key_in_hex(key: &VerifyingKey) -> String {
    hex::encode(key.as_bytes())
}

/// The trusted metadata with its place on disk.
pub(crate) struct Trust {
    disk: Disk,
    folder: PathBuf,
    set: TrustedSet,
    /// What lies on the disk, by role.
    written: [Written; 4],
}

/// The roles in the order in which their files are written: what a new root made the set forget goes before it, so that
/// after a power cut in between the old root is walked again.
const WRITING_ORDER: [Role; 4] = [Role::Timestamp, Role::Snapshot, Role::Targets, Role::Root];

/// What is known of a file on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// It is not there.
    Nothing,
    /// It has this content, and a power cut changes nothing about that.
    Content(Digest),
    /// It could not be written or removed, or it is not believed.
    Unknown,
}

impl Trust {
    /// Loads what is trusted. The root that enrolment left must be there.
    pub(crate) fn open(disk: &Disk, state_dir: &Path, floors: VersionFloors) -> Result<Trust, VerifyError> {
        let folder = state_dir.join("trust");
        let read = |role: Role| disk.read(&folder.join(role.file_name()));
        let stored = StoredMetadata {
            root: read(Role::Root)?.unwrap_or_default(),
            timestamp: read(Role::Timestamp)?,
            snapshot: read(Role::Snapshot)?,
            targets: read(Role::Targets)?,
        };
        let loaded = TrustedSet::from_stored(&stored, floors, Limits::default())?;
        for dropped in &loaded.dropped {
            tracing::warn!(role = dropped.role.as_str(), error = %dropped.error, "stored metadata is not believed");
        }
        let is_stored = |role| match role {
            Role::Timestamp => stored.timestamp.is_some(),
            Role::Snapshot => stored.snapshot.is_some(),
            _ => stored.targets.is_some(),
        };
        let written = WRITING_ORDER.map(|role| match loaded.set.bytes(role) {
            Some(bytes) => Written::Content(Digest::of(bytes)),
            None if is_stored(role) => Written::Unknown,
            None => Written::Nothing,
        });
        Ok(Trust {
            disk: disk.clone(),
            folder,
            set: loaded.set,
            written,
        })
    }

    /// The lowest versions that are still acceptable.
    pub(crate) fn floors(&self) -> VersionFloors {
        self.set.floors()
    }

    /// The keys that may sign a desired state.
    fn assigners(&self) -> Result<Signers, VerifyError> {
        let root = self.set.usable_root()?;
        let keys = root.assignment_keys().ok_or(VerifyError::NoAssignmentKey)?;
        Ok(signers(&keys))
    }

    /// Checks a signed desired state for this device.
    pub(crate) fn desired(&self, bytes: &[u8], device: &DeviceId) -> Result<SignedDesired, VerifyError> {
        let signers = self.assigners()?;
        let envelope = DsseEnvelope::from_json(bytes)?;
        let payload = envelope.verify(DESIRED_PAYLOAD_TYPE, &signers)?;
        let desired = Desired::from_json(&payload)?;
        if desired.device != *device {
            return Err(VerifyError::OtherDevice(desired.device));
        }
        let signed = |key: &&VerifyingKey| {
            let alone = Signers {
                keys: vec![**key],
                threshold: 1,
            };
            envelope.verify(DESIRED_PAYLOAD_TYPE, &alone).is_ok()
        };
        let signed_by = signers.keys.iter().filter(signed).map(key_in_hex).collect();
        Ok(SignedDesired { desired, signed_by })
    }

    /// True when the keys that signed an earlier intent could sign it today. If root has taken them away, whoever stole them
    /// may have signed the highest generation: then that intent holds nothing back (as §5.3.11 has it for metadata).
    ///
    /// Where there is no answer (the root is older than its floor, or names no key at all) it is yes: nobody can sign a newer
    /// intent then either, and no would let an older one take its place as soon as somebody can.
    pub(crate) fn still_assigns(&self, signed_by: &[String]) -> bool {
        // Nobody knows who signed it: it holds.
        if signed_by.is_empty() {
            return true;
        }
        self.assigners().map_or(true, |signers| {
            let held = signers.keys.iter().filter(|key| signed_by.contains(&key_in_hex(key)));
            held.count() >= signers.threshold
        })
    }

    /// Why an installed bundle must not serve, if the newest targets metadata that was accepted blocks it. That it may have
    /// expired does not matter: nobody can take a word back by keeping the next one from us.
    pub(crate) fn blocked(&self, installed: &Installed) -> Option<ReportedError> {
        let blocked = self.set.targets()?.blocked("", installed.index.as_bytes())?;
        let error = VerifyError::Blocked {
            target: format!("version {}", installed.version),
            reason: blocked.reason.clone(),
        };
        Some(error.report())
    }

    /// True when the device may go back to an installed bundle by itself.
    pub(crate) fn may_return_to(&self, model: &ModelName, installed: &Installed) -> bool {
        let lowest = self.set.targets().map(|targets| targets.min_release(model.as_str()));
        self.blocked(installed).is_none() && installed.version.0 >= lowest.unwrap_or(0)
    }

    /// Checks a signed time for this device.
    pub(crate) fn time_answer(&self, bytes: &[u8], device: &DeviceId) -> Result<TimeAnswer, VerifyError> {
        let keys = self.set.usable_root()?.time_keys().ok_or(VerifyError::NoTimeKey)?;
        let payload = DsseEnvelope::from_json(bytes)?.verify(TIME_PAYLOAD_TYPE, &signers(&keys))?;
        let answer = TimeAnswer::from_json(&payload)?;
        if answer.device != *device {
            return Err(VerifyError::OtherDevice(answer.device));
        }
        Ok(answer)
    }

    /// Brings the metadata up to date (TUF §5.3–5.6). `floors_changed` is told before a file that raised them is written.
    ///
    /// # Errors
    /// [`VerifyError`]. A disk that takes nothing more is the last one to be told: what was blocked is learned all the same.
    pub(crate) async fn refresh(
        &mut self,
        fetcher: &mut Fetcher,
        now_ms: u64,
        floors_changed: impl Fn(VersionFloors) -> Result<(), DiskError> + Send,
    ) -> Result<(), VerifyError> {
        let expiry = Expiry::Enforce(unix_time(now_ms));
        // What an earlier look took and could not write down: the set says that it has it, and nobody would write it again.
        // Each call writes all that is left, so the newest result is the one that counts.
        let mut written = self.write(&floors_changed);
        // §5.3: the chain of roots, one by one.
        for _ in 0..self.set.limits().root_steps {
            let next = self.set.next_root_file();
            let Some(bytes) = fetcher.file(Object::Metadata(next.file_name), next.max_bytes).await? else {
                break;
            };
            self.set.update_root(&bytes)?;
            written = self.write(&floors_changed);
        }
        // §5.4: the timestamp.
        let limit = self.set.limits().bytes_for(Role::Timestamp);
        let name = Role::Timestamp.file_name().to_owned();
        let bytes = fetcher.file(Object::Metadata(name.clone()), limit).await?;
        let bytes = bytes.ok_or(FetchError::NotFound(name))?;
        if self.set.update_timestamp(&bytes, expiry)? == Outcome::Updated {
            written = self.write(&floors_changed);
        }
        // §5.5 and §5.6: snapshot and targets, if the ones we have are not the listed ones.
        while let Some((role, wanted)) = self.wanted() {
            let bytes = fetcher
                .file(Object::Metadata(wanted.file_name.clone()), wanted.max_bytes)
                .await?;
            let bytes = bytes.ok_or(FetchError::NotFound(wanted.file_name))?;
            match role {
                Role::Snapshot => self.set.update_snapshot(&bytes, expiry)?,
                _ => self.set.update_targets(&bytes, expiry)?,
            };
            written = self.write(&floors_changed);
        }
        self.set.fresh_targets(expiry)?;
        Ok(written?)
    }

    fn wanted(&self) -> Option<(Role, skerry_tuf::Wanted)> {
        let snapshot = self.set.wanted_snapshot().map(|wanted| (Role::Snapshot, wanted));
        snapshot.or_else(|| self.set.wanted_targets().map(|wanted| (Role::Targets, wanted)))
    }

    /// Writes down what is trusted and not on the disk yet, the floors first. After an error the next call writes the rest.
    fn write(&mut self, floors_changed: &impl Fn(VersionFloors) -> Result<(), DiskError>) -> Result<(), DiskError> {
        floors_changed(self.set.floors())?;
        for (role, written) in WRITING_ORDER.iter().zip(&mut self.written) {
            let path = self.folder.join(role.file_name());
            let bytes = self.set.bytes(*role);
            let wanted = bytes.map_or(Written::Nothing, |bytes| Written::Content(Digest::of(bytes)));
            if *written == wanted {
                continue;
            }
            // Until it has succeeded nobody knows what is there.
            *written = Written::Unknown;
            match bytes {
                Some(bytes) => self.disk.write(&path, bytes, Access::Everybody)?,
                None => self.disk.remove(&path)?,
            }
            *written = wanted;
        }
        Ok(())
    }

    /// Refuses a bundle that the newest accepted targets metadata forbids. That it may have expired does not matter: nobody can
    /// take a word back by keeping the next one from us.
    pub(crate) fn not_forbidden(&self, assignment: &BundleAssignment) -> Result<(), VerifyError> {
        let Some(targets) = self.set.targets() else {
            return Ok(());
        };
        if let Some(blocked) = targets.blocked(&assignment.target, assignment.index.as_bytes()) {
            return Err(VerifyError::Blocked {
                target: assignment.target.clone(),
                reason: blocked.reason.clone(),
            });
        }
        let lowest = targets.min_release(assignment.model.as_str());
        if assignment.version.0 < lowest && !assignment.allow_downgrade {
            return Err(VerifyError::MinRelease {
                version: assignment.version,
                lowest,
            });
        }
        Ok(())
    }

    /// The target of an assigned bundle, if all metadata down to it is fresh, lists it, and does not forbid it.
    pub(crate) fn permits(&self, assignment: &BundleAssignment, now_ms: u64) -> Result<&TargetFile, VerifyError> {
        let targets = self.set.fresh_targets(Expiry::Enforce(unix_time(now_ms)))?;
        let file = targets.find(&target_name(assignment)?);
        let file = file.ok_or_else(|| VerifyError::NotATarget(assignment.target.clone()))?;
        if file.sha256() != Some(*assignment.index.as_bytes()) {
            return Err(VerifyError::OtherDigest(assignment.target.clone()));
        }
        self.not_forbidden(assignment)?;
        Ok(file)
    }

    /// Fetches the chunk index of an assigned bundle and checks it against its target (security order, steps 5 and 7).
    pub(crate) async fn fetch_index(
        &self,
        fetcher: &mut Fetcher,
        assignment: &BundleAssignment,
        now_ms: u64,
    ) -> Result<Vec<u8>, VerifyError> {
        let file = self.permits(assignment, now_ms)?;
        let limit = usize::try_from(file.length)
            .unwrap_or(usize::MAX)
            .min(skerry_shared::chunk::LIMITS.index_bytes);
        let bytes = fetcher.file(Object::Blob(assignment.index), limit).await?;
        let bytes = bytes.ok_or_else(|| FetchError::NotFound(assignment.target.clone()))?;
        file.check(&target_name(assignment)?, &bytes)?;
        ChunkIndex::from_bytes(&bytes)?;
        Ok(bytes)
    }
}

fn target_name(assignment: &BundleAssignment) -> Result<TargetName, VerifyError> {
    TargetName::new(assignment.target.clone()).map_err(|_| VerifyError::NotATarget(assignment.target.clone()))
}

fn signers(keys: &KeySet) -> Signers {
    let key = |bytes: [u8; 32]| VerifyingKey::from_bytes(&bytes).ok();
    let keys_of = keys.keys.values().filter_map(|key| key.ed25519_bytes());
    Signers {
        keys: keys_of.filter_map(key).collect(),
        threshold: keys.threshold.get() as usize,
    }
}

/// A time so far away that it does not fit is the last one there is: everything has expired then.
fn unix_time(ms: u64) -> UnixTime {
    UnixTime::from_millis(i64::try_from(ms).unwrap_or(i64::MAX))
}

/// Reads the manifest of a bundle whose manifest file is on disk.
pub(crate) fn manifest(store: &Store, index: &ChunkIndex) -> Result<Manifest, VerifyError> {
    let file = index.file(MANIFEST_NAME).ok_or(VerifyError::Manifest(None))?;
    let bytes = store.object(file.digest)?.ok_or(VerifyError::Manifest(None))?;
    Manifest::from_json(&bytes).map_err(|error| VerifyError::Manifest(Some(error)))
}

/// The files that a device of `platform` needs of a bundle.
pub(crate) fn needed_files<'a>(
    index: &'a ChunkIndex,
    manifest: &Manifest,
    platform: &Platform,
) -> Result<Vec<&'a FileEntry>, VerifyError> {
    let file = |resource: &Resource| {
        let file = index
            .file(resource.name.as_str())
            .filter(|file| file.digest == resource.digest);
        file.ok_or_else(|| VerifyError::Resource(resource.name.to_string()))
    };
    manifest.needed_on(platform).map(file).collect()
}

/// A bundle that may be installed. Only [`bundle`] makes one.
#[derive(Debug)]
pub(crate) struct VerifiedBundle {
    manifest: Manifest,
}

impl VerifiedBundle {
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

/// Checks that every file this device needs of a bundle is whole. The index was checked against its target when it was
/// fetched, and is named by its digest since then.
pub(crate) fn bundle(
    store: &Store,
    digest: Digest,
    assigned: (&ModelName, ModelVersion),
    platform: &Platform,
) -> Result<VerifiedBundle, VerifyError> {
    let index = store
        .index(digest)?
        .ok_or_else(|| VerifyError::File("the chunk index".to_owned()))?;
    let manifest = manifest(store, &index)?;
    if (&manifest.model, manifest.version) != assigned {
        return Err(VerifyError::OtherModel);
    }
    for file in needed_files(&index, &manifest, platform)? {
        if !store.has_object(file.digest)? {
            return Err(VerifyError::File(file.name.to_string()));
        }
    }
    Ok(VerifiedBundle { manifest })
}
