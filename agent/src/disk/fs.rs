//! The calls that reach a file system, and the real one.
//!
//! Not more than the agent needs. A power cut is what no test can have of a real file system, so the tests have a second
//! one that forgets what was not synced (`sim`). Invariant: nothing but [`RealFs`] touches the device's files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use super::Access;

/// Whether a file may be there before it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// What was there is emptied.
    Emptied,
    /// It is an error if it is there.
    Absent,
}

/// A file system. Nothing that it was told is durable before the sync of the file, or of the folder that holds the name.
pub(crate) trait Fs: Send + Sync {
    fn open(&self, path: &Path) -> io::Result<Box<dyn FsFile>>;
    fn create(&self, path: &Path, access: Access, before: Before) -> io::Result<Box<dyn FsFile>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes one folder; false if it was there.
    fn make_folder(&self, path: &Path) -> io::Result<bool>;
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// The files of a folder with their lengths.
    fn list(&self, folder: &Path) -> io::Result<Vec<(String, u64)>>;
    /// Bytes that this process may still write, and bytes of the disk as a whole.
    fn free_and_total_bytes(&self, path: &Path) -> io::Result<(u64, u64)>;
}

/// An open file.
pub(crate) trait FsFile: Send + Sync {
    /// Appends.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn sync(&mut self) -> io::Result<()>;
    fn cut(&mut self, length: u64) -> io::Result<()>;
    /// Reads at most a buffer full; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

/// The device's own.
pub(crate) struct RealFs;

impl Fs for RealFs {
    fn open(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn create(&self, path: &Path, access: Access, before: Before) -> io::Result<Box<dyn FsFile>> {
        let mut options = OpenOptions::new();
        options.write(true).mode(match access {
            Access::OwnerOnly => 0o600,
            Access::Everybody => 0o644,
        });
        match before {
            Before::Emptied => options.create(true).truncate(true),
            Before::Absent => options.create_new(true),
        };
        Ok(Box::new(options.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_folder(&self, path: &Path) -> io::Result<bool> {
        match fs::create_dir(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            files.push((
                entry.file_name().to_string_lossy().into_owned(),
                entry.metadata()?.len(),
            ));
        }
        Ok(files)
    }

    fn free_and_total_bytes(&self, path: &Path) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(path)?;
        Ok((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
    }
}

impl FsFile for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}
