//! A folder of whole files: each is there or not, old or new, never half.
//!
//! Knows nothing of TUF. Invariant: a file appears under its name only complete and on disk; what an interruption leaves
//! is hidden, and the next [`Folder::open`] removes it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Name of the file being written. Only one at a time: nothing here runs in parallel.
const UNFINISHED: &str = ".unfinished";

/// A folder that is there.
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens the folder, and makes it if needed.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make folder {}", path.display()))?;
        let folder = Self { path: path.to_owned() };
        folder.remove(UNFINISHED)?;
        Ok(folder)
    }

    /// Returns the content of a file, or `None` if it is not there.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path.join(name);
        absent(fs::read(&path)).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Passes at most `max_bytes` + 1 bytes of a file to `take`, and tells whether the file is there.
    pub(crate) fn stream(&self, name: &str, max_bytes: u64, mut take: impl FnMut(&[u8])) -> Result<bool> {
        let path = self.path.join(name);
        let cannot_read = || format!("cannot read {}", path.display());
        let Some(file) = absent(File::open(&path)).with_context(cannot_read)? else {
            return Ok(false);
        };
        let mut file = file.take(max_bytes.saturating_add(1));
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match file.read(&mut buffer).with_context(cannot_read)? {
                0 => return Ok(true),
                length => take(&buffer[..length]),
            }
        }
    }

    /// Puts a file in place.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write_checked(name, |out| Ok(out.write_all(bytes)?))
    }

    /// Puts a file in place if `fill` succeeds; otherwise the folder stays as it was.
    pub(crate) fn write_checked(&self, name: &str, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let unfinished = self.path.join(UNFINISHED);
        let written = self.fill(&unfinished, fill).and_then(|()| {
            fs::rename(&unfinished, self.path.join(name)).with_context(|| format!("cannot put {name} in place"))?;
            self.sync()
        });
        if written.is_err() {
            self.remove(UNFINISHED)?;
        }
        written
    }

    /// Removes a file if it is there.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let path = self.path.join(name);
        let removed = absent(fs::remove_file(&path)).with_context(|| format!("cannot remove {}", path.display()))?;
        match removed {
            Some(()) => self.sync(),
            None => Ok(()),
        }
    }

    fn fill(&self, unfinished: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let cannot_write = || format!("cannot write into {}", self.path.display());
        let mut file = BufWriter::new(File::create(unfinished).with_context(cannot_write)?);
        fill(&mut file)?;
        let file = file.into_inner().with_context(cannot_write)?;
        file.sync_all().with_context(cannot_write)
    }

    fn sync(&self) -> Result<()> {
        File::open(&self.path)
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("cannot sync {}", self.path.display()))
    }
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_that_is_refused_while_it_is_written_leaves_the_old_one() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        folder.write("a", b"old").unwrap();
        let refused = folder.write_checked("a", |out| {
            out.write_all(b"new")?;
            anyhow::bail!("no")
        });
        assert!(refused.is_err());
        assert_eq!(folder.read("a").unwrap().unwrap(), b"old");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_an_interruption_left_is_removed() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join(UNFINISHED), b"half").unwrap();
        let folder = Folder::open(place.path()).unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        assert_eq!(folder.read("a").unwrap(), None);
        assert!(!folder.stream("a", 1, |_| ()).unwrap());
        folder.remove("a").unwrap();
    }

    #[test]
    fn a_file_that_is_too_long_is_not_read_to_its_end() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::open(place.path()).unwrap();
        folder.write("a", &[0; 1000]).unwrap();
        let mut read = 0;
        assert!(folder.stream("a", 10, |bytes| read += bytes.len()).unwrap());
        assert_eq!(read, 11);
    }
}
