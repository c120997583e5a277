//! The only place that writes to the device's disk: whole files, files that only grow, and a state record that survives a
//! torn write.
//!
//! Invariant: after a power cut every file has its old or its new content; one that grows may end in a part of what was
//! being appended, and one that is written unsynced may hold anything. A sync that failed is never tried again: what it was
//! to save is written anew.

mod copies;
mod fs;
#[cfg(test)]
pub(crate) mod sim;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) use copies::TwoCopies;
use fs::{Before, Fs, FsFile, RealFs};
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
    /// The newest copy is whole, and of another form than this program knows. The older one is out of date.
    #[error(
        "{path} is whole, but this version does not understand it: a newer one has written it; install that one again, or \
         wipe the state folder and enrol again"
    )]
    NotUnderstood { path: PathBuf, source: serde_json::Error },
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Everybody,
    OwnerOnly,
}

/// The device's disk; cheap to clone.
#[derive(Clone)]
pub(crate) struct Disk(Arc<dyn Fs>);

impl Disk {
    /// The real one.
    pub(crate) fn real() -> Disk {
        Disk(Arc::new(RealFs))
    }

    /// Writes a file as a whole: temporary file, fsync, rename, fsync of the folder.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8], access: Access) -> Result<(), DiskError> {
        let mut whole = self.begin(path, access)?;
        whole.append(bytes)?;
        whole.commit()
    }

    /// Begins a file that is written piece by piece.
    pub(crate) fn begin(&self, path: &Path, access: Access) -> Result<WholeFile, DiskError> {
        // A name of its own for each file: one that a cut left of a public file must never hold a private key.
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let file = self.0.create(&temporary, access, Before::Emptied);
        Ok(WholeFile {
            disk: self.clone(),
            path: path.to_owned(),
            file: file.map_err(failed("write", path))?,
            temporary,
        })
    }

    /// Writes a file that a power cut may tear, for content that is checked by digest whenever it is read: no fsync, which
    /// on flash costs more than the write.
    pub(crate) fn write_unsynced(&self, path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
        let written = self.0.create(path, Access::Everybody, Before::Emptied);
        let written = written.and_then(|mut file| file.write(bytes));
        written.map_err(|error| {
            let _ = self.0.remove(path);
            failed("write", path)(error)
        })
    }

    /// The digest of a file, read piece by piece; `None` when it is not there.
    pub(crate) fn digest(&self, path: &Path) -> Result<Option<Digest>, DiskError> {
        let mut hasher = Hasher::default();
        let whole = self.read_pieces(path, |piece| hasher.update(piece))?;
        Ok(whole.map(|()| hasher.finish()))
    }

    /// Reads a file; `None` when it is not there.
    pub(crate) fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
        let mut bytes = Vec::new();
        let whole = self.read_pieces(path, |piece| bytes.extend_from_slice(piece))?;
        Ok(whole.map(|()| bytes))
    }

    fn read_pieces(&self, path: &Path, mut take: impl FnMut(&[u8])) -> Result<Option<()>, DiskError> {
        let file = match self.0.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", path)(error)),
        };
        let mut buffer = vec![0; 64 * 1024];
        let mut offset = 0;
        loop {
            match file.read_at(&mut buffer, offset).map_err(failed("read", path))? {
                0 => return Ok(Some(())),
                count => {
                    take(&buffer[..count]);
                    offset += count as u64;
                }
            }
        }
    }

    /// Reads a part of a file.
    pub(crate) fn read_at(&self, path: &Path, offset: u64, bytes: usize) -> Result<Vec<u8>, DiskError> {
        let mut content = vec![0; bytes];
        let file = self.0.open(path).map_err(failed("read", path))?;
        let mut have = 0;
        while have < bytes {
            match file.read_at(&mut content[have..], offset + have as u64) {
                Ok(0) => return Err(failed("read", path)(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => have += count,
                Err(error) => return Err(failed("read", path)(error)),
            }
        }
        Ok(content)
    }

    /// Removes a file; one that is not there is removed already. After a power cut it may be there again.
    pub(crate) fn remove(&self, path: &Path) -> Result<(), DiskError> {
        match self.0.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
            _ => Ok(()),
        }
    }

    /// Makes an empty file that only grows; it is an error if it is there. Only its owner may read it.
    pub(crate) fn create_growing(&self, path: &Path) -> Result<Appender, DiskError> {
        let file = self.0.create(path, Access::OwnerOnly, Before::Absent);
        let file = file.map_err(failed("make", path))?;
        self.sync_folder_of(path)?;
        Ok(Appender {
            file,
            path: path.to_owned(),
            bytes: 0,
        })
    }

    /// Makes a folder with its parents. Their names are on the disk when this returns: what is synced in a folder whose own
    /// name is lost would be lost with it.
    pub(crate) fn make_folder(&self, path: &Path) -> Result<(), DiskError> {
        let made = match self.0.make_folder(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    self.make_folder(parent)?;
                }
                self.0.make_folder(path)
            }
            made => made,
        };
        made.map_err(failed("make folder", path))?;
        // Also one that was there: an earlier start may have been cut off before the sync.
        self.sync_folder_of(path)
    }

    fn sync_folder_of(&self, path: &Path) -> Result<(), DiskError> {
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        self.0.sync_folder(folder).map_err(failed("sync", folder))
    }

    /// The names of the files in a folder.
    pub(crate) fn list(&self, folder: &Path) -> Result<Vec<String>, DiskError> {
        let files = self.0.list(folder).map_err(failed("list", folder))?;
        Ok(files.into_iter().map(|(name, _)| name).collect())
    }

    /// The size of the files in a folder, together.
    pub(crate) fn size_bytes(&self, folder: &Path) -> Result<u64, DiskError> {
        let files = self.0.list(folder).map_err(failed("list", folder))?;
        Ok(files.iter().map(|(_, bytes)| bytes).sum())
    }

    /// Bytes that may still be written, with a hundredth of the disk kept free for everything else.
    pub(crate) fn free_bytes(&self, path: &Path) -> Result<u64, DiskError> {
        let looked = self.0.free_and_total_bytes(path);
        let (free, total) = looked.map_err(failed("look at the disk of", path))?;
        Ok(free.saturating_sub(total / 100))
    }
}

/// A file that is written piece by piece and appears at its path only when it is complete and on the disk.
pub(crate) struct WholeFile {
    disk: Disk,
    path: PathBuf,
    temporary: PathBuf,
    file: Box<dyn FsFile>,
}

impl WholeFile {
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write(bytes).map_err(failed("write", &self.path))
    }

    pub(crate) fn commit(mut self) -> Result<(), DiskError> {
        self.file.sync().map_err(failed("write", &self.path))?;
        let renamed = self.disk.0.rename(&self.temporary, &self.path);
        renamed.map_err(failed("rename", &self.path))?;
        self.disk.sync_folder_of(&self.path)
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        // A half-written temporary file would only hold space; after commit there is none.
        let _ = self.disk.0.remove(&self.temporary);
    }
}

/// A file that only grows.
pub(crate) struct Appender {
    file: Box<dyn FsFile>,
    path: PathBuf,
    bytes: u64,
}

impl Appender {
    /// Appends, with one fsync, and returns where. After an error nothing more may be appended: what the disk holds of
    /// these bytes is unknown, though they are cut off again if it still obeys.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<u64, DiskError> {
        let offset = self.bytes;
        let written = self.file.write(bytes).and_then(|()| self.file.sync());
        if let Err(error) = written {
            let _ = self.file.cut(offset);
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
        Err(std::fs::TryLockError::WouldBlock) => Err(DiskError::InUse(folder.to_owned())),
        Err(std::fs::TryLockError::Error(error)) => Err(failed("lock", &path)(error)),
    }
}
