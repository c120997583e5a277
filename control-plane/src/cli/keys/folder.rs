//! The folder of a key holder: the trusted root, drafts, and key files with their public halves beside them.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use skerry_tuf::{KeyId, PublicKey, Root, SigningKey, TrustedSet};
use tempfile::NamedTempFile;
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

    /// The targets metadata that was published last, as far as this machine knows.
    pub(super) fn targets_path(&self) -> PathBuf {
        self.dir.join("targets.json")
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

    /// A draft or another file that need not be there.
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

/// Writes a file that must not be there. It appears as a whole, or not at all, and with its mode from the beginning.
pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let written = write_beside(path, bytes, mode)?;
    match written.persist_noclobber(path) {
        Ok(_) => sync_folder(path),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("{} exists; keys are never overwritten", path.display())
        }
        Err(error) => Err(error.error).with_context(|| format!("cannot make {}", path.display())),
    }
}

/// Replaces a file as a whole. Nothing secret: everybody may read it.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let written = write_beside(path, bytes, 0o644)?;
    written
        .persist(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    sync_folder(path)
}

/// A whole copy on disk, under another name.
fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<NamedTempFile> {
    let make = || {
        let mut file = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(folder_of(path))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        Ok::<_, std::io::Error>(file)
    };
    make().with_context(|| format!("cannot write {}", path.display()))
}

/// Puts a file's new name on disk.
fn sync_folder(path: &Path) -> anyhow::Result<()> {
    let folder = folder_of(path);
    let synced = fs::File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("cannot write the folder {}", folder.display()))
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_key_file_is_its_owners_and_is_never_overwritten() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("root.key");
        let key = generate().unwrap();
        store_key(&path, &key, None).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&path.with_extension("pub")), 0o644);
        let before = fs::read(&path).unwrap();
        let refused = store_key(&path, &generate().unwrap(), None).unwrap_err();
        assert!(refused.to_string().contains("never overwritten"), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    /// Whoever looks at the folder while a key is written sees the whole key or none: an empty or half file would stand for a
    /// key that exists nowhere, and `keys init` would refuse to make it again.
    #[test]
    fn a_key_that_cannot_be_written_leaves_no_file() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a".repeat(300));
        write_new(&path, b"key", 0o600).unwrap_err();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_appears_whole_and_leaves_nothing_beside_it() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("root-draft.json");
        for text in ["one", "another"] {
            replace(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(mode(&path), 0o644);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
