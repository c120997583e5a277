//! The only place that writes to the device's disk: whole files, files that only grow, and a state record that survives a
//! torn write.
//!
//! Invariant: after a power cut every file has its old or its new content; one that grows may end in a part of what was
//! being appended.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use skerry_shared::digest::{Digest, Hasher};

/// Why a disk call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Two agents would overwrite each other's state.
    #[error("another agent runs with the state folder {0}")]
    InUse(PathBuf),
    /// Both copies are there and neither is whole. Nothing is assumed: the floors against rollback were in them.
    #[error(
        "both copies of the state record in {0} are unreadable; restore one, or wipe the state folder and enrol again"
    )]
    Unreadable(PathBuf),
}

impl DiskError {
    /// True when there is no more room: on the disk, in a quota, or under the limit of a single file.
    pub(crate) fn is_full(&self) -> bool {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        let DiskError::Io { source, .. } = self else {
            return false;
        };
        matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Io { action, path, source }
}

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Everybody,
    OwnerOnly,
}

/// Writes a file as a whole: temporary file, fsync, rename, fsync of the folder.
pub(crate) fn write(path: &Path, bytes: &[u8], access: Access) -> Result<(), DiskError> {
    let mut whole = WholeFile::create(path, access)?;
    whole.append(bytes)?;
    whole.commit()
}

/// A file that is written piece by piece and appears at its path only when it is complete and on the disk.
pub(crate) struct WholeFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl WholeFile {
    pub(crate) fn create(path: &Path, access: Access) -> Result<WholeFile, DiskError> {
        let temporary = path.with_extension("tmp");
        let mode = if access == Access::OwnerOnly { 0o600 } else { 0o644 };
        let open = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary);
        Ok(WholeFile {
            path: path.to_owned(),
            file: open.map_err(failed("write", path))?,
            temporary,
        })
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write_all(bytes).map_err(failed("write", &self.path))
    }

    pub(crate) fn commit(self) -> Result<(), DiskError> {
        self.file.sync_all().map_err(failed("write", &self.path))?;
        fs::rename(&self.temporary, &self.path).map_err(failed("rename", &self.path))?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed("sync", folder))
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        // A half-written temporary file would only hold space; after commit there is none.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes a file that a power cut may tear, for content that is checked by digest whenever it is read: no fsync, which
/// on flash costs more than the write.
pub(crate) fn write_unsynced(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    fs::write(path, bytes).map_err(|error| {
        let _ = fs::remove_file(path);
        failed("write", path)(error)
    })
}

/// The digest of a file, read piece by piece; `None` when it is not there.
pub(crate) fn digest(path: &Path) -> Result<Option<Digest>, DiskError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer).map_err(failed("read", path))? {
            0 => return Ok(Some(hasher.finish())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// Reads a file; `None` when it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Removes a file; one that is not there is removed already.
pub(crate) fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Reads a part of a file.
pub(crate) fn read_at(path: &Path, offset: u64, bytes: usize) -> Result<Vec<u8>, DiskError> {
    let mut content = vec![0; bytes];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut content, offset));
    read.map_err(failed("read", path))?;
    Ok(content)
}

/// A file that only grows. Only its owner may read it.
pub(crate) struct Appender {
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Appender {
    /// Makes an empty file; it is an error if it is there.
    pub(crate) fn create(path: &Path) -> Result<Appender, DiskError> {
        let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = open.map_err(failed("make", path))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed("sync", folder))?;
        Ok(Appender {
            file,
            path: path.to_owned(),
            bytes: 0,
        })
    }

    /// Appends, with one fsync, and returns where. After an error nothing more may be appended: what the disk holds of
    /// these bytes is unknown, though they are cut off again if it still obeys.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<u64, DiskError> {
        let offset = self.bytes;
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            let _ = self.file.set_len(offset);
            return Err(failed("append to", &self.path)(error));
        }
        self.bytes += bytes.len() as u64;
        Ok(offset)
    }

    /// The file's length.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Holds the state folder for one agent, for as long as the file is open.
pub(crate) fn lock(folder: &Path) -> Result<File, DiskError> {
    let path = folder.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(failed("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(DiskError::InUse(folder.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
    }
}

/// Makes a folder with its parents.
pub(crate) fn make_folder(path: &Path) -> Result<(), DiskError> {
    fs::create_dir_all(path).map_err(failed("make folder", path))
}

/// The names of the files in a folder.
pub(crate) fn list(folder: &Path) -> Result<Vec<String>, DiskError> {
    let entries = fs::read_dir(folder).map_err(failed("list", folder))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    names.collect::<Result<_, _>>().map_err(failed("list", folder))
}

/// The size of the files in a folder, together.
pub(crate) fn size_bytes(folder: &Path) -> Result<u64, DiskError> {
    let mut sum = 0;
    for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
        let size = entry.and_then(|entry| entry.metadata()).map(|metadata| metadata.len());
        sum += size.map_err(failed("list", folder))?;
    }
    Ok(sum)
}

/// Bytes that may still be written, with a hundredth of the disk kept free for everything else.
pub(crate) fn free_bytes(path: &Path) -> Result<u64, DiskError> {
    let stat = rustix::fs::statvfs(path).map_err(|error| failed("look at the disk of", path)(error.into()))?;
    let (free, total) = (stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize);
    Ok(free.saturating_sub(total / 100))
}

/// A record in two copies that are written in turn, each with a checksum and a sequence number.
pub(crate) struct TwoCopies {
    paths: [PathBuf; 2],
    sequence: u64,
}

const HEADER_BYTES: usize = 12;

impl TwoCopies {
    /// Opens the record; `None` when it was never written.
    pub(crate) fn open<T: DeserializeOwned>(folder: &Path) -> Result<(TwoCopies, Option<T>), DiskError> {
        let paths = [folder.join("state-a"), folder.join("state-b")];
        let mut newest: Option<(u64, T)> = None;
        let mut present = 0;
        for path in &paths {
            let Some(bytes) = read(path)? else { continue };
            present += 1;
            if let Some((sequence, content)) = decode(&bytes)
                && newest.as_ref().is_none_or(|(other, _)| sequence > *other)
            {
                newest = Some((sequence, content));
            }
        }
        if present > 0 && newest.is_none() {
            return Err(DiskError::Unreadable(folder.to_owned()));
        }
        let (sequence, content) = newest.map_or((0, None), |(sequence, content)| (sequence, Some(content)));
        Ok((TwoCopies { paths, sequence }, content))
    }

    /// Writes the record over the older copy.
    pub(crate) fn write<T: Serialize>(&mut self, content: &T) -> Result<(), DiskError> {
        let next = self.sequence + 1;
        let json = serde_json::to_vec(content).expect("state has string keys only");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + json.len());
        bytes.extend_from_slice(&next.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&json);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &json);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        write(&self.paths[(next % 2) as usize], &bytes, Access::OwnerOnly)?;
        self.sequence = next;
        Ok(())
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<(u64, T)> {
    let (header, json) = bytes.split_at_checked(HEADER_BYTES)?;
    let sequence = u64::from_le_bytes(header[..8].try_into().ok()?);
    let checksum = u32::from_le_bytes(header[8..].try_into().ok()?);
    if crc32c::crc32c_append(crc32c::crc32c(&header[..8]), json) != checksum {
        return None;
    }
    Some((sequence, serde_json::from_slice(json).ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn open(folder: &Path) -> (TwoCopies, Option<u32>) {
        TwoCopies::open(folder).unwrap()
    }

    #[test]
    fn the_newest_whole_copy_counts() {
        let folder = tempfile::tempdir().unwrap();
        let (mut record, none) = open(folder.path());
        assert_eq!(none, None);
        for n in 1..=5_u32 {
            record.write(&n).unwrap();
        }
        assert_eq!(open(folder.path()).1, Some(5));
    }

    #[test]
    fn a_torn_copy_leaves_the_other_one() {
        let folder = tempfile::tempdir().unwrap();
        let (mut record, _) = open(folder.path());
        record.write(&1_u32).unwrap();
        record.write(&2_u32).unwrap();
        let newest = folder.path().join("state-a");
        let whole = fs::read(&newest).unwrap();
        for cut in 0..whole.len() {
            fs::write(&newest, &whole[..cut]).unwrap();
            assert_eq!(open(folder.path()).1, Some(1), "cut at {cut}");
        }
    }

    #[test]
    fn two_torn_copies_are_an_error_and_not_an_empty_state() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("state-a"), b"x").unwrap();
        assert!(matches!(
            TwoCopies::open::<u32>(folder.path()),
            Err(DiskError::Unreadable(_))
        ));
    }
}
