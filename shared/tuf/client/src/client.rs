//! The TUF client workflow (§5) over a folder and a repository.
//!
//! No rule of trust is here: [`TrustedSet`] and its search judge every file. Invariant: a file is in the folder only after
//! it was accepted, byte for byte as it came, and an accepted file is kept before the next one is asked for.

use std::path::Path;

use anyhow::{Context, Result, bail};
use skerry_tuf::{
    Expiry, Limits, Role, RoleName, SearchStep, StoredMetadata, TargetFile, TargetName, TrustedSet, VersionFloors,
    Wanted, percent_encoded,
};

use crate::folder::Folder;
use crate::http::Repository;

/// Wider than on a device, where memory is dear and all repositories are ours: other people's snapshots list thousands of
/// roles. The figures are those of python-tuf.
fn limits() -> Limits {
    Limits {
        root_bytes: 512_000,
        timestamp_bytes: 16_384,
        snapshot_bytes: 2_000_000,
        targets_bytes: 5_000_000,
        root_steps: 256,
        ..Limits::default()
    }
}

/// Makes `root` the trusted root of a folder that has none. The same root again changes nothing.
pub(crate) fn init(folder: &Folder, root: &Path) -> Result<()> {
    let bytes = std::fs::read(root).with_context(|| format!("cannot read {}", root.display()))?;
    TrustedSet::new(&bytes).context("the root file is refused")?;
    match folder.read(Role::Root.file_name())? {
        Some(trusted) if trusted == bytes => Ok(()),
        Some(_) => bail!("the folder trusts another root already"),
        None => folder.write(Role::Root.file_name(), &bytes),
    }
}

/// A trusted set, the folder that it is kept in, and the repository that it is refreshed from.
pub(crate) struct Client {
    folder: Folder,
    metadata: Repository,
    expiry: Expiry,
    set: TrustedSet,
}

impl Client {
    /// Takes up what the folder holds. Files that are not believed are left out.
    pub(crate) fn load(folder: Folder, metadata: Repository, expiry: Expiry) -> Result<Self> {
        let root = folder.read(Role::Root.file_name())?;
        let stored = StoredMetadata {
            root: root.context("the folder has no root.json: use `init` first")?,
            timestamp: folder.read(Role::Timestamp.file_name())?,
            snapshot: folder.read(Role::Snapshot.file_name())?,
            targets: folder.read(Role::Targets.file_name())?,
        };
        let loaded = TrustedSet::from_stored(&stored, VersionFloors::default(), limits())
            .context("the trusted root is refused")?;
        Ok(Self {
            folder,
            metadata,
            expiry,
            set: loaded.set,
        })
    }

    /// Brings the top-level roles up to date.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        // §5.3: roots one by one until there is no next one.
        for _ in 0..self.set.limits().root_steps {
            let wanted = self.set.next_root_file();
            let Some(bytes) = self.metadata.fetch(&wanted.file_name, wanted.max_bytes)? else {
                break;
            };
            let refused = || format!("{} is refused", wanted.file_name);
            self.set.update_root(&bytes).with_context(refused)?;
            self.keep()?;
        }
        // §5.4, which begins with the expiry of the last root (§5.3.10).
        let timestamp = Role::Timestamp.file_name();
        let bytes = self.fetch(timestamp, self.set.limits().timestamp_bytes)?;
        self.set
            .update_timestamp(&bytes, self.expiry)
            .context("timestamp.json is refused")?;
        self.keep()?;
        // §5.5
        if let Some(wanted) = self.set.wanted_snapshot() {
            let bytes = self.fetch(&wanted.file_name, wanted.max_bytes)?;
            let refused = || format!("{} is refused", wanted.file_name);
            self.set.update_snapshot(&bytes, self.expiry).with_context(refused)?;
            self.keep()?;
        }
        // §5.6
        if let Some(wanted) = self.set.wanted_targets() {
            let bytes = self.fetch(&wanted.file_name, wanted.max_bytes)?;
            let refused = || format!("{} is refused", wanted.file_name);
            self.set.update_targets(&bytes, self.expiry).with_context(refused)?;
            self.keep()?;
        }
        // What was there already and did not change must not have expired either.
        self.set.fresh_targets(self.expiry)?;
        Ok(())
    }

    /// Finds the target and fetches it, unless `into` has it already.
    pub(crate) fn download(&self, name: &TargetName, targets: &Repository, into: &Folder) -> Result<()> {
        let file = self.find(name)?;
        let local = percent_encoded(name.as_str());
        let mut check = file.begin_check(name);
        if into.stream(&local, file.length, |bytes| check.update(bytes))? && check.finish().is_ok() {
            return Ok(());
        }
        let path = self.set.target_path(name, &file)?;
        let Some(mut body) = targets.open(&path, file.length)? else {
            bail!("the repository does not have {path}");
        };
        let mut check = file.begin_check(name);
        into.write_checked(&local, |out| {
            body.copy_to(out, |bytes| check.update(bytes))?;
            Ok(check.finish()?)
        })
    }

    /// §5.6.7: asks the roles that may sign for the target, each when its turn comes.
    fn find(&self, name: &TargetName) -> Result<TargetFile> {
        let mut search = self.set.search(name, self.expiry)?;
        loop {
            let (role, wanted) = match search.step()? {
                SearchStep::Found(file) => return Ok(file),
                SearchStep::Absent => bail!("no role signs for this target"),
                SearchStep::Needs { role, file } => (role, file),
            };
            let local = role.file_name();
            // A cached file gets no easier check than a fetched one: by the role that delegates here, now.
            if let Some(bytes) = self.folder.read(&local)? {
                match search.offer(&bytes) {
                    Ok(()) => continue,
                    Err(error) if is_only_stale(error.code()) => {}
                    Err(_) => self.folder.remove(&local)?,
                }
            }
            let bytes = self.fetch_role(&role, &wanted)?;
            search.offer(&bytes)?;
            self.folder.write(&local, &bytes)?;
        }
    }

    fn fetch_role(&self, role: &RoleName, wanted: &Wanted) -> Result<Vec<u8>> {
        self.fetch(&wanted.file_name, wanted.max_bytes)
            .with_context(|| format!("cannot ask role {role}"))
    }

    fn fetch(&self, file_name: &str, max_bytes: usize) -> Result<Vec<u8>> {
        let bytes = self.metadata.fetch(file_name, max_bytes)?;
        bytes.with_context(|| format!("the repository does not have {file_name}"))
    }

    /// Makes the folder hold what the set trusts: first away with what it has forgotten, then the rest, root last, so that
    /// an interruption never leaves a new root beside files that it revoked.
    fn keep(&self) -> Result<()> {
        let roles = [Role::Timestamp, Role::Snapshot, Role::Targets, Role::Root];
        for role in roles {
            if self.set.bytes(role).is_none() {
                self.folder.remove(role.file_name())?;
            }
        }
        for role in roles {
            let Some(bytes) = self.set.bytes(role) else { continue };
            if self.folder.read(role.file_name())?.as_deref() != Some(bytes) {
                self.folder.write(role.file_name(), bytes)?;
            }
        }
        Ok(())
    }
}

/// Whether a cached file broke only rules that its successor is about to mend. Anything else, above all a signature that the
/// delegator does not ask for, means that the file is not trusted.
fn is_only_stale(code: &str) -> bool {
    matches!(code, "mix_and_match" | "length" | "hash" | "expired")
}
