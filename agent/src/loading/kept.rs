//! Which engine was chosen for a bundle, and what was measured then: kept across starts, by the digest of the bundle's index.
//!
//! It is a memory and no decision: a file that is lost or torn costs one more look. What another agent or another library has
//! measured counts for nothing.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use skerry_inference::{Chosen, Engines};
use skerry_shared::digest::Digest;

use crate::disk::{Access, Disk};

/// Two slots of a few models; the oldest goes.
const BUNDLES_MAX: usize = 16;

/// The choices of this agent on this machine.
pub(crate) struct Kept {
    disk: Disk,
    path: PathBuf,
    file: File,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct File {
    measured_by: MeasuredBy,
    /// The newest last.
    bundles: Vec<Bundle>,
}

/// What a measurement depends on beside the bundle.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct MeasuredBy {
    /// The agent's version and what its file looks like.
    agent: String,
    program: Option<Look>,
    onnxruntime: Option<(PathBuf, Option<Look>)>,
}

/// What changes when a file is replaced.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Look {
    bytes: u64,
    changed_at_s: i64,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Bundle {
    index: Digest,
    chosen: Chosen,
}

impl Kept {
    /// What an earlier start has left.
    pub(crate) fn open(disk: &Disk, state_dir: &Path, engines: &Engines) -> Kept {
        let path = state_dir.join("engines.json");
        let measured_by = MeasuredBy {
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            program: Look::at(Path::new("/proc/self/exe")),
            onnxruntime: engines.onnxruntime().map(|path| (path.to_owned(), Look::at(path))),
        };
        let read = disk.read(&path).ok().flatten();
        let file: Option<File> = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let file = file.filter(|file| file.measured_by == measured_by).unwrap_or(File {
            measured_by,
            bundles: Vec::new(),
        });
        Kept {
            disk: disk.clone(),
            path,
            file,
        }
    }

    /// What was chosen for this bundle.
    pub(crate) fn get(&self, index: Digest) -> Option<&Chosen> {
        self.file
            .bundles
            .iter()
            .find(|bundle| bundle.index == index)
            .map(|bundle| &bundle.chosen)
    }

    /// Remembers a choice. A disk that is full costs nothing but the next look.
    pub(crate) fn keep(&mut self, index: Digest, chosen: &Chosen) {
        let bundles = &mut self.file.bundles;
        bundles.retain(|bundle| bundle.index != index);
        if bundles.len() == BUNDLES_MAX {
            bundles.remove(0);
        }
        bundles.push(Bundle {
            index,
            chosen: chosen.clone(),
        });
        let written = serde_json::to_vec(&self.file)
            .map_err(anyhow::Error::new)
            .and_then(|bytes| Ok(self.disk.write(&self.path, &bytes, Access::Everybody)?));
        if let Err(error) = written {
            tracing::warn!(
                error = format!("{error:#}"),
                "what the engines have shown is forgotten at the next start"
            );
        }
    }
}

impl Look {
    fn at(path: &Path) -> Option<Look> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Look {
            bytes: metadata.len(),
            changed_at_s: metadata.mtime(),
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use skerry_inference::{EngineChoice, EngineName};

    use super::*;

    fn chosen() -> Chosen {
        Chosen {
            engine: EngineName::TractPlain,
            measured: Vec::new(),
        }
    }

    #[test]
    fn a_choice_is_known_at_the_next_start_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Kept::open(&Disk::real(), folder.path(), &Engines::default());
        let mut kept = open();
        for n in 0..=BUNDLES_MAX {
            kept.keep(Digest::of(&n.to_le_bytes()), &chosen());
        }
        let again = open();
        assert_eq!(again.file, kept.file);
        assert_eq!(again.get(Digest::of(&0_usize.to_le_bytes())), None);
        assert_eq!(again.get(Digest::of(&1_usize.to_le_bytes())), Some(&chosen()));
    }

    #[test]
    fn what_was_measured_with_another_library_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        Kept::open(&Disk::real(), folder.path(), &Engines::default()).keep(Digest::of(b"1"), &chosen());
        let library = folder.path().join("libonnxruntime.so");
        std::fs::write(&library, b"").unwrap();
        let engines = Engines::find(EngineChoice::Auto, Some(library));
        assert_eq!(
            Kept::open(&Disk::real(), folder.path(), &engines).get(Digest::of(b"1")),
            None
        );
    }

    #[test]
    fn a_torn_file_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Kept::open(&Disk::real(), folder.path(), &Engines::default());
        open().keep(Digest::of(b"1"), &chosen());
        let path = folder.path().join("engines.json");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(open().get(Digest::of(b"1")), None);
    }
}
