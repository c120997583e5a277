//! The keys that the server holds, and what it signs with them: `snapshot`, `timestamp` desired states, times and checkpoints.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use skerry_shared::{
    desired::{DESIRED_PAYLOAD_TYPE, Desired},
    digest::Digest,
    dsse::Envelope as DsseEnvelope,
    schema::Envelope,
};
use skerry_tuf::{
    KeySet, MetaFile, Role, Root, SigningKey, TrustedSet, UnixTime, new_snapshot, new_timestamp, sign_metadata,
};

use super::key_file;

/// One day: an attacker who can only replay is noticed within it.
const TIMESTAMP_DAYS: u32 = 1;
/// One week: renewed together with the timestamp when half of it has passed.
const SNAPSHOT_DAYS: u32 = 7;

/// The online keys with the root that names them.
pub struct OnlineKeys {
    root_bytes: Vec<u8>,
    first_targets: Vec<u8>,
    trusted: TrustedSet,
    snapshot: SigningKey,
    timestamp: SigningKey,
    assignment: SigningKey,
    time: SigningKey,
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

impl OnlineKeys {
    /// Reads the folder that `skerry keys init` made as `online`.
    ///
    /// # Errors
    /// When a file is missing or damaged, or a key is not the one that the root names.
    pub fn read(dir: &Path) -> anyhow::Result<OnlineKeys> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read(&path).with_context(|| format!("cannot read {} (made by `skerry keys init`)", path.display()))
        };
        let root_bytes = read("root.json")?;
        let first_targets = read("targets.json")?;
        let trusted = TrustedSet::new(&root_bytes).context("root.json is unusable")?;
        let key = |role: &str, named: KeySet| {
            let key = key_file::read(&dir.join(format!("{role}.key")), role)?;
            if !named.keys.contains_key(&key.id()) {
                bail!("{role}.key is not the key that root.json names for {role}");
            }
            Ok(key)
        };
        let root = trusted.root();
        let assignment = root.assignment_keys().context("root.json names no assignment key")?;
        let time = root.time_keys().context("root.json names no time key")?;
        Ok(OnlineKeys {
            snapshot: key("snapshot", root.keys_of(Role::Snapshot))?,
            timestamp: key("timestamp", root.keys_of(Role::Timestamp))?,
            assignment: key("assignment", assignment)?,
            time: key("time", time)?,
            root_bytes,
            first_targets,
            trusted,
        })
    }

    /// The root metadata's file.
    pub fn root_bytes(&self) -> &[u8] {
        &self.root_bytes
    }

    /// The digest that enrolment tokens carry.
    pub fn root_digest(&self) -> Digest {
        Digest::of(&self.root_bytes)
    }

    /// The root metadata.
    pub fn root(&self) -> &Root {
        self.trusted.root()
    }

    /// The empty targets metadata that a new repository begins with.
    pub fn first_targets(&self) -> &[u8] {
        &self.first_targets
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
        let bytes = sign_metadata(&snapshot, [&self.snapshot])?;
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
        let bytes = sign_metadata(&timestamp, [&self.timestamp])?;
        Ok(SignedFile {
            bytes,
            version,
            expires_at_ms: expires.as_millis(),
        })
    }

    /// Signs a device's desired state.
    pub fn sign_desired(&self, desired: &Desired) -> Vec<u8> {
        envelope(&self.assignment, DESIRED_PAYLOAD_TYPE, &desired.to_json()).to_json()
    }

    /// Signs a statement that is true at this time, with the key of role `time`: the time itself, or a checkpoint of the
    /// audit log. The payload type tells them apart.
    pub fn sign_time(&self, payload_type: &str, payload: &[u8]) -> DsseEnvelope {
        envelope(&self.time, payload_type, payload)
    }
}

fn envelope(key: &SigningKey, payload_type: &str, payload: &[u8]) -> DsseEnvelope {
    DsseEnvelope::sign(payload_type, payload, key.id().as_str(), |message| {
        key.sign_bytes(message)
    })
}
