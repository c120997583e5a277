//! The authority's files: each appears as a whole or not at all.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use super::CaError;

/// Who may read a file.
#[derive(Clone, Copy)]
pub(super) enum Readers {
    /// For private keys.
    Owner,
    Everybody,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CaError {
    let path = path.to_owned();
    move |source| CaError::File { action, path, source }
}

/// Makes the folder with its parents.
pub(super) fn make_folder(path: &Path) -> Result<(), CaError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(failed("make the folder", path))
}

/// Reads a file; `None` when it is not there.
pub(super) fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Writes a file: temporary file, fsync, rename, fsync of the folder.
pub(super) fn write(path: &Path, bytes: &[u8], readers: Readers) -> Result<(), CaError> {
    let temporary = path.with_extension("new");
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::Everybody => 0o644,
    };
    // A file that an earlier start left keeps its own mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace", &temporary)(error)),
        _ => {}
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary);
    let mut file = file.map_err(failed("write", path))?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.map_err(failed("write", path))?;
    fs::rename(&temporary, path).map_err(failed("write", path))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(failed("sync", folder))
}
