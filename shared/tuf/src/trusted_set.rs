//! What a client trusts now, and the rules by which it takes new metadata (TUF §5, the client workflow).
//!
//! Pure state: the caller fetches files, keeps them, and says what time it is. One cycle is: [`TrustedSet::update_root`]
//! until there is no newer root (at most [`Limits::root_steps`] times), [`TrustedSet::update_timestamp`], then what
//! [`TrustedSet::wanted_snapshot`] and [`TrustedSet::wanted_targets`] ask for. Use one `now` for the whole cycle
//! (§5.1). After each accepted step keep [`TrustedSet::floors`] and the files, as `stored` says.
//!
//! Invariants: a rejected file changes nothing, and no version falls below its floor unless a new root took the keys of
//! timestamp or snapshot away.

use crate::delegation::percent_encoded;
use crate::error::Error;
use crate::limits::Limits;
use crate::metadata::{MetaFile, Metadata, Role, Root, Snapshot, TargetFile, Targets, Timestamp};
use crate::signed::{Signed, Verified};
use crate::stored::VersionFloors;
use crate::target_name::TargetName;
use crate::threshold::KeySet;
use crate::time::UnixTime;

/// The trusted metadata of one repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedSet {
    root: Verified<Root>,
    timestamp: Option<Verified<Timestamp>>,
    snapshot: Option<Verified<Snapshot>>,
    targets: Option<Verified<Targets>>,
    floors: VersionFloors,
    limits: Limits,
}

/// Whether expired metadata is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Refuse what has expired at this time.
    Enforce(UnixTime),
    /// Accept expired metadata: the clock is not trusted. Version rules still hold, so the worst case is a freeze.
    Ignore,
}

/// What an accepted file changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The file is trusted now: keep it.
    Updated,
    /// The version was trusted already: nothing to keep.
    Unchanged,
}

/// A file to fetch next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Name in the repository, such as `3.targets.json`.
    pub file_name: String,
    /// Version that the file must have.
    pub version: u64,
    /// Number of bytes after which fetching can stop.
    pub max_bytes: usize,
}

impl Expiry {
    pub(crate) fn check<T: Metadata>(self, metadata: &T) -> Result<(), Error> {
        match self {
            Self::Enforce(now) if metadata.expires() <= now => Err(Error::Expired {
                role: T::ROLE,
                expires: metadata.expires(),
                now,
            }),
            Self::Enforce(_) | Self::Ignore => Ok(()),
        }
    }
}

impl TrustedSet {
    /// Starts from a root that is trusted because of where it comes from, such as the device image (§5.2).
    ///
    /// # Errors
    ///
    /// The root cannot be parsed or is not signed by its own keys. Its expiry does not matter yet.
    pub fn new(root: &[u8]) -> Result<Self, Error> {
        Self::with_limits(root, Limits::default(), VersionFloors::default())
    }

    /// Starts like [`TrustedSet::new`], with other limits and with floors from an earlier life.
    pub(crate) fn with_limits(root: &[u8], limits: Limits, floors: VersionFloors) -> Result<Self, Error> {
        let root = Signed::<Root>::parse(root, &limits)?;
        let (own_keys, version) = (root.unverified().keys_of(Role::Root), root.unverified().version);
        let root = root.verify(&own_keys, version)?;
        let floors = VersionFloors {
            root: floors.root.max(version),
            ..floors
        };
        Ok(Self {
            root,
            timestamp: None,
            snapshot: None,
            targets: None,
            floors,
            limits,
        })
    }

    /// Takes the next root (§5.3). Repeat with [`TrustedSet::next_root_file`] until the repository has no newer one.
    ///
    /// Forgets timestamp, snapshot and their floors if the new root takes away a key of timestamp or snapshot, and
    /// forgets every file that the new root's keys did not sign.
    ///
    /// # Errors
    ///
    /// The root cannot be parsed, is not signed by enough keys of the trusted **and** of the new root, or is not
    /// exactly the next version. The trusted root stays.
    pub fn update_root(&mut self, bytes: &[u8]) -> Result<Outcome, Error> {
        let trusted = self.root.metadata();
        let new = Signed::<Root>::parse(bytes, &self.limits)?;
        // §5.3.4: signed by a threshold of the keys of version N and of version N+1.
        new.check(&trusted.keys_of(Role::Root), trusted.version)?;
        let (own_keys, found) = (new.unverified().keys_of(Role::Root), new.unverified().version);
        let new = new.verify(&own_keys, found)?;
        // §5.3.5: exactly version N+1.
        if found <= trusted.version {
            return Err(Error::Rollback {
                role: Role::Root,
                trusted: trusted.version,
                found,
            });
        }
        if found - trusted.version != 1 {
            return Err(Error::RootVersionGap {
                expected: trusted.version + 1,
                found,
            });
        }
        // §5.3.6: expiry does not matter on the way; §5.3.10 is checked by the step after the last root.

        let lost_key = |role| trusted.keys_of(role).loses_key_in(&new.metadata().keys_of(role));
        if lost_key(Role::Timestamp) || lost_key(Role::Snapshot) {
            // §5.3.11: recovery from a fast-forward attack. The snapshot holds the version of targets, so that floor
            // goes too.
            self.timestamp = None;
            self.snapshot = None;
            // Off-spec: not when a lost root is walked again. Then the floors are from a time after this rotation, and an
            // old root must not lower them.
            if found > self.floors.root {
                self.floors = VersionFloors {
                    root: found,
                    ..VersionFloors::default()
                };
            }
        }
        self.floors.root = self.floors.root.max(found);
        self.root = new;
        // Off-spec: what was trusted under the old keys is asked again under the new ones, so that a revoked key is without
        // effect at once.
        let (root, limits) = (self.root.metadata(), &self.limits);
        drop_unless_signed(&mut self.timestamp, root, limits);
        drop_unless_signed(&mut self.snapshot, root, limits);
        drop_unless_signed(&mut self.targets, root, limits);
        Ok(Outcome::Updated)
    }

    /// Takes a timestamp (§5.4), after the last root of the cycle.
    ///
    /// # Errors
    ///
    /// The trusted root has expired or is below its floor; or the timestamp cannot be parsed, is not signed by enough
    /// keys, is older than the trusted one, lists an older snapshot, or has expired. An expired timestamp of the trusted
    /// version is an error too: someone freezes the repository.
    pub fn update_timestamp(&mut self, bytes: &[u8], expiry: Expiry) -> Result<Outcome, Error> {
        let root = self.usable_root()?;
        // §5.3.10: the last root must not have expired.
        expiry.check(root)?;
        // §5.4.2: signatures.
        let new =
            Signed::<Timestamp>::parse(bytes, &self.limits)?.verify(&root.keys_of(Role::Timestamp), root.version)?;
        // §5.4.3.1: no older timestamp; the same version changes nothing.
        refuse_rollback(Role::Timestamp, self.floors.timestamp, new.metadata().version)?;
        if let Some(trusted) = &self.timestamp
            && trusted.metadata().version == new.metadata().version
        {
            expiry.check(trusted.metadata())?;
            return Ok(Outcome::Unchanged);
        }
        // §5.4.3.2: no older snapshot.
        let snapshot_version = new.metadata().snapshot_meta()?.version;
        refuse_rollback(Role::Snapshot, self.floors.snapshot, snapshot_version)?;
        // §5.4.4: expiry.
        expiry.check(new.metadata())?;
        // §5.4.5: trusted from here on.
        self.floors.timestamp = new.metadata().version;
        self.floors.snapshot = snapshot_version;
        self.timestamp = Some(new);
        Ok(Outcome::Updated)
    }

    /// Takes the snapshot that the trusted timestamp lists (§5.5).
    ///
    /// # Errors
    ///
    /// There is no valid timestamp; or the snapshot does not match it in length, digest or version, cannot be parsed, is
    /// not signed by enough keys, drops or lowers a targets role, or has expired.
    pub fn update_snapshot(&mut self, bytes: &[u8], expiry: Expiry) -> Result<Outcome, Error> {
        let root = self.usable_root()?;
        let needs = Error::OutOfOrder {
            role: Role::Snapshot,
            needs: Role::Timestamp,
        };
        let timestamp = self.timestamp.as_ref().ok_or(needs)?.metadata();
        expiry.check(timestamp)?;
        let listed = timestamp.snapshot_meta()?;
        refuse_too_large(Role::Snapshot, bytes, &self.limits)?;
        // §5.5.2: length and digest.
        listed.check(Role::Snapshot.file_name(), bytes)?;
        // §5.5.3: signatures.
        let new =
            Signed::<Snapshot>::parse(bytes, &self.limits)?.verify(&root.keys_of(Role::Snapshot), root.version)?;
        // §5.5.4: the version that is listed.
        refuse_other_version(Role::Snapshot, listed.version, new.metadata().version)?;
        // §5.5.5: no targets role is dropped or older.
        let targets_version = new.metadata().targets_meta()?.version;
        refuse_rollback(Role::Targets, self.floors.targets, targets_version)?;
        if let Some(trusted) = &self.snapshot {
            refuse_older_targets(trusted.metadata(), new.metadata())?;
        }
        // §5.5.6: expiry.
        expiry.check(new.metadata())?;
        if self.snapshot.as_ref() == Some(&new) {
            return Ok(Outcome::Unchanged);
        }
        // §5.5.7: trusted from here on.
        self.floors.targets = targets_version;
        self.snapshot = Some(new);
        Ok(Outcome::Updated)
    }

    /// Takes the targets file that the trusted snapshot lists (§5.6).
    ///
    /// # Errors
    ///
    /// There is no valid snapshot, or it is not the one that the timestamp lists; or the file does not match the snapshot
    /// in length, digest or version, cannot be parsed, is not signed by enough keys, or has expired.
    pub fn update_targets(&mut self, bytes: &[u8], expiry: Expiry) -> Result<Outcome, Error> {
        let root = self.usable_root()?;
        let listed = self.current_snapshot(expiry)?.targets_meta()?;
        refuse_too_large(Role::Targets, bytes, &self.limits)?;
        // §5.6.2: length and digest.
        listed.check(Role::Targets.file_name(), bytes)?;
        // §5.6.3: signatures.
        let new = Signed::<Targets>::parse(bytes, &self.limits)?.verify(&root.keys_of(Role::Targets), root.version)?;
        // §5.6.4: the version that is listed, which is not below the floor.
        refuse_other_version(Role::Targets, listed.version, new.metadata().version)?;
        // §5.6.5: expiry.
        expiry.check(new.metadata())?;
        if self.targets.as_ref() == Some(&new) {
            return Ok(Outcome::Unchanged);
        }
        // §5.6.6: trusted from here on.
        self.targets = Some(new);
        Ok(Outcome::Updated)
    }

    /// Takes back the snapshot of an earlier run, which may be older than the trusted timestamp lists, but not older than
    /// `floor`. §5.5.5 measures its successor against it.
    pub(crate) fn recall_snapshot(&mut self, bytes: &[u8], floor: u64) -> Result<Outcome, Error> {
        let root = self.usable_root()?;
        let old =
            Signed::<Snapshot>::parse(bytes, &self.limits)?.verify(&root.keys_of(Role::Snapshot), root.version)?;
        let version = old.metadata().version;
        refuse_rollback(Role::Snapshot, floor, version)?;
        if let Some(timestamp) = self.timestamp() {
            let listed = timestamp.snapshot_meta()?;
            if listed.version <= version {
                refuse_other_version(Role::Snapshot, listed.version, version)?;
                listed.check(Role::Snapshot.file_name(), bytes)?;
            }
        }
        let targets_version = old.metadata().targets_meta()?.version;
        refuse_rollback(Role::Targets, self.floors.targets, targets_version)?;
        self.floors.snapshot = self.floors.snapshot.max(version);
        self.floors.targets = targets_version;
        self.snapshot = Some(old);
        Ok(Outcome::Updated)
    }

    /// Takes back the targets of an earlier run, which may be older than the trusted snapshot lists, but not older than
    /// `floor`. [`TrustedSet::fresh_targets`] asks again whether they are listed.
    pub(crate) fn recall_targets(&mut self, bytes: &[u8], floor: u64) -> Result<Outcome, Error> {
        let root = self.usable_root()?;
        let old = Signed::<Targets>::parse(bytes, &self.limits)?.verify(&root.keys_of(Role::Targets), root.version)?;
        refuse_rollback(Role::Targets, floor, old.metadata().version)?;
        self.targets = Some(old);
        Ok(Outcome::Updated)
    }

    /// Returns the trusted root.
    pub fn root(&self) -> &Root {
        self.root.metadata()
    }

    /// Returns the trusted timestamp. It may have expired.
    pub fn timestamp(&self) -> Option<&Timestamp> {
        self.timestamp.as_ref().map(Verified::metadata)
    }

    /// Returns the trusted snapshot. It may have expired or be older than the one that the timestamp lists.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref().map(Verified::metadata)
    }

    /// Returns the targets that were accepted last. They may have expired or be older than the snapshot lists: enough to
    /// explain what is installed. To install something, ask [`TrustedSet::fresh_targets`].
    pub fn targets(&self) -> Option<&Targets> {
        self.targets.as_ref().map(Verified::metadata)
    }

    /// Returns the targets if every role from root down to them is trusted, of the listed version, and not expired.
    ///
    /// # Errors
    ///
    /// The first role in that chain that is missing, of another version, or expired.
    pub fn fresh_targets(&self, expiry: Expiry) -> Result<&Targets, Error> {
        let listed = self.current_snapshot(expiry)?.targets_meta()?;
        let needs = Error::OutOfOrder {
            role: Role::Targets,
            needs: Role::Targets,
        };
        let targets = self.targets.as_ref().ok_or(needs)?;
        refuse_other_version(Role::Targets, listed.version, targets.metadata().version)?;
        listed.check(Role::Targets.file_name(), targets.bytes())?;
        expiry.check(targets.metadata())?;
        Ok(targets.metadata())
    }

    /// Returns the trusted file of `role` as it was received, to store it.
    pub fn bytes(&self, role: Role) -> Option<&[u8]> {
        match role {
            Role::Root => Some(self.root.bytes()),
            Role::Timestamp => self.timestamp.as_ref().map(Verified::bytes),
            Role::Snapshot => self.snapshot.as_ref().map(Verified::bytes),
            Role::Targets => self.targets.as_ref().map(Verified::bytes),
        }
    }

    /// Returns the lowest versions that are still acceptable, to store them apart from the files.
    pub fn floors(&self) -> VersionFloors {
        self.floors
    }

    /// Returns the limits that files are measured against.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns the root to try next. That the repository does not have it is the normal end of the walk.
    pub fn next_root_file(&self) -> Wanted {
        let version = self.root.metadata().version.saturating_add(1);
        let file_name = format!("{version}.{}", Role::Root.file_name());
        Wanted {
            file_name,
            version,
            max_bytes: self.limits.root_bytes,
        }
    }

    /// Returns the snapshot to fetch, or `None` if the trusted one is what the timestamp lists.
    pub fn wanted_snapshot(&self) -> Option<Wanted> {
        let listed = self.timestamp()?.snapshot_meta().ok()?;
        let have = self
            .snapshot
            .as_ref()
            .map(|snapshot| (snapshot.metadata().version, snapshot.bytes()));
        self.wanted(Role::Snapshot, listed, have)
    }

    /// Returns the targets file to fetch, or `None` if the trusted one is what the snapshot lists.
    pub fn wanted_targets(&self) -> Option<Wanted> {
        let listed = self.snapshot()?.targets_meta().ok()?;
        let have = self
            .targets
            .as_ref()
            .map(|targets| (targets.metadata().version, targets.bytes()));
        self.wanted(Role::Targets, listed, have)
    }

    fn wanted(&self, role: Role, listed: &MetaFile, have: Option<(u64, &[u8])>) -> Option<Wanted> {
        if let Some((version, bytes)) = have
            && version == listed.version
            && listed.check(role.file_name(), bytes).is_ok()
        {
            return None;
        }
        Some(self.wanted_file(role.file_name(), listed, self.limits.bytes_for(role)))
    }

    /// What to fetch for a file that is listed: its name has a version if the repository keeps old ones (§6.2).
    pub(crate) fn wanted_file(&self, name: &str, listed: &MetaFile, limit: usize) -> Wanted {
        let file_name = match self.root.metadata().consistent_snapshot {
            true => format!("{}.{name}", listed.version),
            false => name.to_owned(),
        };
        Wanted {
            file_name,
            version: listed.version,
            max_bytes: listed
                .length
                .map_or(limit, |length| usize::try_from(length).unwrap_or(limit).min(limit)),
        }
    }

    /// Returns where the repository keeps the target `name`, relative to its folder of targets and percent-encoded. With
    /// consistent snapshots the last segment begins with a digest (§6.2).
    ///
    /// # Errors
    ///
    /// [`Error::HashUnsupported`] if the path needs a digest and there is no well-formed one of a kind that we compute.
    pub fn target_path(&self, name: &TargetName, file: &TargetFile) -> Result<String, Error> {
        let mut segments: Vec<String> = name.as_str().split('/').map(percent_encoded).collect();
        if self.root.metadata().consistent_snapshot
            && let Some(last) = segments.last_mut()
        {
            let digest = ["sha256", "sha512"]
                .iter()
                .find_map(|algorithm| file.hashes.get(*algorithm));
            let digest = digest.filter(|digest| hex::decode(digest).is_ok());
            let unsupported = || Error::HashUnsupported {
                file: name.as_str().to_owned(),
            };
            *last = format!("{}.{last}", digest.ok_or_else(unsupported)?);
        }
        Ok(segments.join("/"))
    }

    /// Returns the trusted root, unless it is older than one that was trusted before. Whoever takes keys from a root takes
    /// them from here: those of an older root may be the ones that were taken away.
    ///
    /// # Errors
    ///
    /// [`Error::RootBelowFloor`]: the newer root was lost, and the chain has not been walked again yet.
    pub fn usable_root(&self) -> Result<&Root, Error> {
        let root = self.root.metadata();
        if root.version < self.floors.root {
            return Err(Error::RootBelowFloor {
                floor: self.floors.root,
                found: root.version,
            });
        }
        Ok(root)
    }

    /// The snapshot, if the chain from root down to it holds.
    pub(crate) fn current_snapshot(&self, expiry: Expiry) -> Result<&Snapshot, Error> {
        expiry.check(self.usable_root()?)?;
        let needs = |needs| Error::OutOfOrder {
            role: Role::Targets,
            needs,
        };
        let timestamp = self.timestamp.as_ref().ok_or(needs(Role::Timestamp))?.metadata();
        expiry.check(timestamp)?;
        let listed = timestamp.snapshot_meta()?;
        let snapshot = self.snapshot.as_ref().ok_or(needs(Role::Snapshot))?;
        refuse_other_version(Role::Snapshot, listed.version, snapshot.metadata().version)?;
        listed.check(Role::Snapshot.file_name(), snapshot.bytes())?;
        expiry.check(snapshot.metadata())?;
        Ok(snapshot.metadata())
    }
}

fn drop_unless_signed<T: Metadata>(trusted: &mut Option<Verified<T>>, root: &Root, limits: &Limits) {
    let keys: KeySet = root.keys_of(T::ROLE);
    trusted.take_if(|file| {
        Signed::<T>::parse(file.bytes(), limits)
            .and_then(|file| file.check(&keys, root.version))
            .is_err()
    });
}

pub(crate) fn refuse_too_large(role: Role, bytes: &[u8], limits: &Limits) -> Result<(), Error> {
    let (size_bytes, limit_bytes) = (bytes.len(), limits.bytes_for(role));
    if size_bytes > limit_bytes {
        return Err(Error::TooLarge {
            role,
            size_bytes,
            limit_bytes,
        });
    }
    Ok(())
}

fn refuse_rollback(role: Role, trusted: u64, found: u64) -> Result<(), Error> {
    if found < trusted {
        return Err(Error::Rollback { role, trusted, found });
    }
    Ok(())
}

pub(crate) fn refuse_other_version(role: Role, listed: u64, found: u64) -> Result<(), Error> {
    if found != listed {
        return Err(Error::MixAndMatch { role, listed, found });
    }
    Ok(())
}

fn refuse_older_targets(trusted: &Snapshot, new: &Snapshot) -> Result<(), Error> {
    for (file, old) in &trusted.meta {
        let found = new
            .meta
            .get(file)
            .ok_or_else(|| Error::RoleRemoved { file: file.clone() })?
            .version;
        refuse_rollback(Role::Targets, old.version, found)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
