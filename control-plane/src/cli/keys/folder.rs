//! The folder of a key holder: the trusted root, drafts, and key files with their public halves beside them.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use skerry_tuf::{KeyId, PublicKey, Root, SigningKey, TrustedSet};
use zeroize::Zeroizing;

use super::Secret;
use crate::signing::{key_file, passphrase::Passphrase};

/// A key holder's folder.
pub struct KeysFolder {
    dir: PathBuf,
}

impl KeysFolder {
    /// Names a folder; nothing is read yet.
    pub fn new(dir: &Path) -> KeysFolder {
        KeysFolder { dir: dir.to_owned() }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn root_path(&self) -> PathBuf {
        self.dir.join("root.json")
    }

    pub(super) fn root_draft_path(&self) -> PathBuf {
        self.dir.join("root-draft.json")
    }

    pub(super) fn targets_draft_path(&self) -> PathBuf {
        self.dir.join("targets-draft.json")
    }

    /// The trusted root as a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn root_bytes(&self) -> anyhow::Result<Vec<u8>> {
        let path = self.root_path();
        fs::read(&path).with_context(|| format!("cannot read the trusted root {}", path.display()))
    }

    /// The trusted root.
    ///
    /// # Errors
    /// When it cannot be read, or is not signed by its own keys.
    pub fn root(&self) -> anyhow::Result<Root> {
        let trusted = TrustedSet::new(&self.root_bytes()?);
        let trusted = trusted.with_context(|| format!("{} is unusable", self.root_path().display()))?;
        Ok(trusted.root().clone())
    }

    /// A draft, if there is one.
    pub(super) fn draft(&self, path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
        match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// The private keys that are here.
    ///
    /// # Errors
    /// When a file is damaged, or the passphrase does not open it.
    pub fn private_keys(&self, secret: &Secret) -> anyhow::Result<Vec<SigningKey>> {
        let mut keys = Vec::new();
        for path in files(&self.dir, "key")? {
            keys.push(key_file::read(&path, || secret.get())?);
        }
        Ok(keys)
    }

    /// The ids of the keys whose private halves are here, and in `online`: nothing is decrypted for that.
    pub(super) fn held(&self) -> anyhow::Result<Vec<KeyId>> {
        let mut ids = Vec::new();
        for dir in [self.dir.clone(), self.dir.join("online")] {
            if !dir.exists() {
                continue;
            }
            for path in files(&dir, "pub")? {
                if path.with_extension("key").exists() {
                    ids.push(key_file::read_public(&path)?.id());
                }
            }
        }
        Ok(ids)
    }
}

/// The files of a folder with an ending, in order.
fn files(dir: &Path, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let paths: Result<Vec<_>, _> = paths.collect();
    let mut paths = paths.with_context(|| format!("cannot list {}", dir.display()))?;
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    Ok(paths)
}

/// Makes a key.
pub(super) fn generate() -> anyhow::Result<SigningKey> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).context("no randomness from the system")?;
    Ok(SigningKey::from_seed(&seed))
}

/// Stores a key pair: `path`, and the same with the ending `.pub`. Nothing is overwritten.
pub(super) fn store_key(path: &Path, key: &SigningKey, passphrase: Option<&Passphrase>) -> anyhow::Result<()> {
    let public = key_file::encode_public(&key.public_key())?;
    write_new(path, key_file::encode(key, passphrase)?.as_bytes(), 0o600)?;
    write_new(&path.with_extension("pub"), public.as_bytes(), 0o644)
}

/// The file name of a further key of a role.
pub(super) fn key_file_name(role: &str, key: &PublicKey) -> String {
    format!("{role}-{}.key", &key.id().as_str()[..8])
}

/// Writes a file that must not be there.
pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    if path.exists() {
        bail!("{} exists; keys are never overwritten", path.display());
    }
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    let mut file = file.with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Replaces a file as a whole.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        Ok(file)
    });
    let written = written.with_context(|| format!("cannot write {}", path.display()))?;
    written
        .persist(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}
