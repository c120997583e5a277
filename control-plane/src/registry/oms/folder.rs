//! The files on disk, measured against what was signed.
//!
//! Invariant: no symbolic link is followed, so nothing outside the folder is read.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::Path,
};

use skerry_shared::digest::{Digest, Hasher};

use super::{OmsError, Statement};

/// Folders in folders: a model has one or two levels.
const DEPTH_MAX: usize = 32;

/// What a file means that lies among the signed ones and is not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsigned {
    /// The folder is not what was signed.
    Refuse,
    /// Nothing.
    Ignore,
}

/// Checks every file of a folder. `signature` is the signature's own file, which may lie in the folder and is left out, as are
/// the paths that the signer left out.
///
/// # Errors
/// [`OmsError`]: a signed file is missing or changed, an unsigned one is there, or something is neither a file nor a folder.
pub fn check_folder(
    statement: &Statement,
    folder: &Path,
    signature: &Path,
    unsigned: Unsigned,
) -> Result<(), OmsError> {
    let mut expected: BTreeMap<&str, Digest> = statement
        .resources
        .iter()
        .map(|resource| (resource.name.as_str(), resource.digest))
        .collect();
    let signature = fs::canonicalize(signature).ok();
    let mut pending = vec![(folder.to_owned(), String::new())];
    while let Some((place, prefix)) = pending.pop() {
        if prefix.split('/').count() > DEPTH_MAX {
            return Err(OmsError::UnsignedFile(prefix));
        }
        let read = |source| OmsError::Read {
            path: place.clone(),
            source,
        };
        for entry in fs::read_dir(&place).map_err(read)? {
            let entry = entry.map_err(read)?;
            let path = entry.path();
            let name = entry.file_name().into_string();
            let name = name.map_err(|name| OmsError::UnsignedFile(name.to_string_lossy().into_owned()))?;
            let name = format!("{prefix}{name}");
            let ignored = statement.ignore_paths.iter().any(|ignored| is_below(&name, ignored));
            let own = || signature.is_some() && fs::canonicalize(&path).ok() == signature;
            if ignored || own() {
                continue;
            }
            let kind = entry.file_type().map_err(read)?;
            if kind.is_dir() {
                pending.push((path, format!("{name}/")));
                continue;
            }
            match expected.remove(name.as_str()) {
                Some(_) if !kind.is_file() => return Err(wrong(&name, "is a link or a device, and none is followed")),
                Some(digest) if digest_of(&path)? != digest => return Err(wrong(&name, "has another content")),
                Some(_) => {}
                None if unsigned == Unsigned::Refuse => return Err(OmsError::UnsignedFile(name)),
                None => {}
            }
        }
    }
    match expected.keys().next() {
        Some(name) => Err(wrong(name, "is not there")),
        None => Ok(()),
    }
}

fn wrong(name: &str, problem: &'static str) -> OmsError {
    OmsError::File {
        name: name.to_owned(),
        problem,
    }
}

fn is_below(name: &str, folder: &str) -> bool {
    let rest = name.strip_prefix(folder.trim_end_matches('/'));
    !folder.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn digest_of(path: &Path) -> Result<Digest, OmsError> {
    let read = |source| OmsError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(read)?;
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; 64 * 1024]);
    loop {
        match file.read(&mut buffer).map_err(read)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buffer[..length]),
        }
    }
}
