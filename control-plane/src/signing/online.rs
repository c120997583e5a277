//! The keys that the server holds, and what it signs with them: `snapshot`, `timestamp`, desired states, times and
//! checkpoints.
//!
//! Which of the key files in the folder count is said by the newest root: a file that no root names yet, or no longer,
//! does no harm. Invariant: a root is taken only if the folder holds enough keys for every role that it gives to the server.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use anyhow::{Context, bail};
use skerry_shared::{
    desired::{DESIRED_PAYLOAD_TYPE, Desired},
    digest::Digest,
    dsse::{Envelope as DsseEnvelope, pae},
    schema::Envelope,
};
use skerry_tuf::{
    KeyId, KeySet, MetaFile, Role, Root, SigningKey, TrustedSet, UnixTime, new_snapshot, new_timestamp, sign_metadata,
};

use super::{
    key_file::{self, KeyFileError},
    passphrase::Passphrase,
};

/// One day: an attacker who can only replay is noticed within it.
const TIMESTAMP_DAYS: u32 = 1;
/// One week: renewed together with the timestamp when half of it has passed.
const SNAPSHOT_DAYS: u32 = 7;

/// Where the online keys are.
#[derive(Clone, Debug)]
pub struct SigningFolder {
    /// The folder that `skerry keys init` made as `online`.
    pub dir: PathBuf,
    /// The file with the passphrase of its keys, if they are encrypted.
    pub passphrase_file: Option<PathBuf>,
}

/// The online keys in their folder, and those that the newest root names.
pub struct OnlineKeys {
    folder: SigningFolder,
    current: RwLock<Arc<RootKeys>>,
    publishing: tokio::sync::Mutex<()>,
}

/// A root with the keys that the server holds under it.
pub struct RootKeys {
    root_bytes: Vec<u8>,
    trusted: TrustedSet,
    snapshot: Vec<SigningKey>,
    timestamp: Vec<SigningKey>,
    assignment: Vec<SigningKey>,
    time: Vec<SigningKey>,
}

/// Freshly signed metadata of one role.
pub struct SignedFile {
    /// Its file.
    pub bytes: Vec<u8>,
    /// Its version.
    pub version: u64,
    /// When it stops being valid, in UTC milliseconds.
    pub expires_at_ms: i64,
}

impl SigningFolder {
    /// A folder whose keys are not encrypted.
    pub fn plain(dir: impl Into<PathBuf>) -> SigningFolder {
        SigningFolder {
            dir: dir.into(),
            passphrase_file: None,
        }
    }

    fn read(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let path = self.dir.join(name);
        fs::read(&path).with_context(|| format!("cannot read {} (made by `skerry keys init`)", path.display()))
    }

    /// The empty targets metadata that a new repository begins with.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn first_targets(&self) -> anyhow::Result<Vec<u8>> {
        self.read("targets.json")
    }

    /// Reads the keys that a root gives to the server.
    ///
    /// # Errors
    /// When the root is unusable, or too few of its online keys are in the folder.
    pub fn keys_of(&self, root_bytes: &[u8]) -> anyhow::Result<RootKeys> {
        let trusted = TrustedSet::new(root_bytes).context("the root metadata is unusable")?;
        let mut files = self.key_files()?;
        let root = trusted.root();
        let assignment = root.assignment_keys().context("the root names no assignment key")?;
        let time = root.time_keys().context("the root names no time key")?;
        let version = root.version;
        let mut held = |role: &str, named: KeySet| self.held(&mut files, version, role, &named);
        Ok(RootKeys {
            snapshot: held("snapshot", root.keys_of(Role::Snapshot))?,
            timestamp: held("timestamp", root.keys_of(Role::Timestamp))?,
            assignment: held("assignment", assignment)?,
            time: held("time", time)?,
            root_bytes: root_bytes.to_owned(),
            trusted,
        })
    }

    /// The keys of a role that are here; an error names those that are not.
    fn held(&self, files: &mut KeyFiles, version: u64, role: &str, named: &KeySet) -> anyhow::Result<Vec<SigningKey>> {
        let held = named.keys.keys().filter_map(|id| files.keys.get(id).cloned());
        let held: Vec<_> = held.collect();
        if held.len() >= named.threshold.get() as usize {
            return Ok(held);
        }
        let missing = named.keys.keys().filter(|id| !files.keys.contains_key(id.as_str()));
        let missing: Vec<_> = missing.map(KeyId::as_str).collect();
        let mut message = format!(
            "root version {version} wants {} of the {role} keys, and {} holds {}: copy the key file of {} there",
            named.threshold,
            self.dir.display(),
            held.len(),
            missing.join(" or "),
        );
        for error in &files.unreadable {
            let _ = write!(message, "; {error}");
        }
        bail!(message)
    }

    fn key_files(&self) -> anyhow::Result<KeyFiles> {
        let passphrase = self.passphrase_file.as_deref().map(Passphrase::read).transpose()?;
        let dir = self.dir.display();
        let entries = fs::read_dir(&self.dir)
            .with_context(|| format!("cannot read the signing folder {dir} (made by `skerry keys init`)"))?;
        let mut files = KeyFiles::default();
        for entry in entries {
            let path = entry
                .with_context(|| format!("cannot list the signing folder {dir}"))?
                .path();
            if path.extension().is_none_or(|extension| extension != "key") {
                continue;
            }
            let ask = || {
                let needed = || KeyFileError::PassphraseNeeded(path.display().to_string());
                passphrase.clone().ok_or_else(needed)
            };
            match key_file::read(&path, ask) {
                Ok(key) => {
                    files.keys.insert(key.id(), key);
                }
                Err(error) => files.unreadable.push(error),
            }
        }
        Ok(files)
    }
}

#[derive(Default)]
struct KeyFiles {
    keys: BTreeMap<KeyId, SigningKey>,
    unreadable: Vec<KeyFileError>,
}

impl OnlineKeys {
    /// Reads the folder that `skerry keys init` made as `online`. `newest_root` is the newest root of a repository that
    /// exists; a new one begins with the folder's root.json.
    ///
    /// # Errors
    /// When a file is missing or damaged, or too few keys are those that the root names.
    pub fn read(folder: SigningFolder, newest_root: Option<Vec<u8>>) -> anyhow::Result<OnlineKeys> {
        let root = match newest_root {
            Some(root) => root,
            None => folder.read("root.json")?,
        };
        let current = RwLock::new(Arc::new(folder.keys_of(&root)?));
        Ok(OnlineKeys {
            folder,
            current,
            publishing: tokio::sync::Mutex::default(),
        })
    }

    /// Where the keys are.
    pub fn folder(&self) -> &SigningFolder {
        &self.folder
    }

    /// The newest root and its keys.
    pub fn current(&self) -> Arc<RootKeys> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Goes over to a newer root, once it is stored.
    pub(crate) fn adopt(&self, newer: Arc<RootKeys>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = newer;
    }

    /// Held by whoever publishes metadata, from the look at the keys to the end of the write: otherwise metadata could be
    /// signed by keys that a root has just taken away.
    pub(crate) async fn publishing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.publishing.lock().await
    }

    /// The digest of the newest root: enrolment tokens carry it.
    pub fn root_digest(&self) -> Digest {
        Digest::of(&self.current().root_bytes)
    }

    /// Signs a device's desired state.
    pub fn sign_desired(&self, desired: &Desired) -> Vec<u8> {
        envelope(&self.current().assignment, DESIRED_PAYLOAD_TYPE, &desired.to_json()).to_json()
    }

    /// Signs a statement that is true at this time, with the keys of role `time`: the time itself, or a checkpoint of the
    /// audit log. The payload type tells them apart.
    pub fn sign_time(&self, payload_type: &str, payload: &[u8]) -> DsseEnvelope {
        envelope(&self.current().time, payload_type, payload)
    }
}

impl RootKeys {
    /// The root metadata's file.
    pub fn root_bytes(&self) -> &[u8] {
        &self.root_bytes
    }

    /// The root metadata.
    pub fn root(&self) -> &Root {
        self.trusted.root()
    }

    /// Takes the next root: signed by enough keys of this one and of its own.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn check_successor(&self, root: &[u8]) -> Result<(), skerry_tuf::Error> {
        TrustedSet::new(&self.root_bytes)?.update_root(root).map(|_| ())
    }

    /// Signs a snapshot of one targets file.
    ///
    /// # Errors
    /// When the metadata breaks a rule of the format.
    pub fn sign_snapshot(
        &self,
        version: u64,
        now_ms: i64,
        targets: (u64, &[u8]),
    ) -> Result<SignedFile, skerry_tuf::Error> {
        let expires = UnixTime::from_millis(now_ms).plus_days(SNAPSHOT_DAYS);
        let snapshot = new_snapshot(version, expires, MetaFile::describe(targets.0, targets.1));
        let bytes = sign_metadata(&snapshot, &self.snapshot)?;
        Ok(SignedFile {
            bytes,
            version,
            expires_at_ms: expires.as_millis(),
        })
    }

    /// Signs a timestamp of one snapshot file.
    ///
    /// # Errors
    /// When the metadata breaks a rule of the format.
    pub fn sign_timestamp(
        &self,
        version: u64,
        now_ms: i64,
        snapshot: (u64, &[u8]),
    ) -> Result<SignedFile, skerry_tuf::Error> {
        let expires = UnixTime::from_millis(now_ms).plus_days(TIMESTAMP_DAYS);
        let timestamp = new_timestamp(version, expires, MetaFile::describe(snapshot.0, snapshot.1));
        let bytes = sign_metadata(&timestamp, &self.timestamp)?;
        Ok(SignedFile {
            bytes,
            version,
            expires_at_ms: expires.as_millis(),
        })
    }
}

fn envelope(keys: &[SigningKey], payload_type: &str, payload: &[u8]) -> DsseEnvelope {
    let message = pae(payload_type, payload);
    let signatures = keys
        .iter()
        .map(|key| (key.id().as_str().to_owned(), key.sign_bytes(&message)));
    DsseEnvelope::with_signatures(payload_type, payload, signatures)
}
