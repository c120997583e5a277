//! A bundle as a folder on the operator's machine: `manifest.json`, `index.skci`, `bundle.json`, `chunks/<wire digest>` and,
//! once signed, `targets.json`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use skerry_shared::{
    bundle::{MANIFEST_NAME, Manifest},
    chunk::{ChunkIndex, ChunkIndexError},
    digest::{Digest, Hasher},
    id::{ModelName, ModelVersion},
    schema::{Envelope, EnvelopeError},
};

use super::chunker::{BadChunk, ChunkedFiles, decode};

const INDEX: &str = "index.skci";
const SUMMARY: &str = "bundle.json";
const TARGETS: &str = "targets.json";
const CHUNKS: &str = "chunks";

/// What a bundle is and weighs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleSummary {
    /// The registered model.
    pub model: ModelName,
    /// Its version.
    pub version: ModelVersion,
    /// The TUF target name of the chunk index.
    pub target: String,
    /// The digest of the chunk index.
    pub index: Digest,
    /// The length of the chunk index.
    pub index_bytes: u64,
    /// All files together.
    pub total_bytes: u64,
    /// All distinct chunks as they travel.
    pub wire_bytes: u64,
}

/// A complete bundle on disk.
#[derive(Debug)]
pub struct BundleFolder {
    path: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Its chunk index.
    pub index: ChunkIndex,
    /// What it is and weighs.
    pub summary: BundleSummary,
}

/// Why a bundle folder was refused.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file cannot be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The chunk index is no chunk index.
    #[error("bundle {path} has a bad chunk index")]
    Index {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: ChunkIndexError,
    },
    /// A chunk is missing, truncated or changed.
    #[error("bundle {path} is damaged: file `{file}`")]
    Chunk {
        /// The folder.
        path: PathBuf,
        /// The file that the chunk belongs to.
        file: String,
        /// Which chunk.
        source: BadChunk,
    },
    /// The chunks decode, but not to the file that the index states.
    #[error("bundle {path} is damaged: file `{file}` does not have the digest that its index states")]
    File {
        /// The folder.
        path: PathBuf,
        /// The file.
        file: String,
    },
    /// The manifest is missing from the index or does not parse.
    #[error("bundle {path} has no readable manifest")]
    Manifest {
        /// The folder.
        path: PathBuf,
        /// Why, when it is there.
        source: Option<EnvelopeError>,
    },
    /// A resource of the manifest is not in the chunk index with that digest.
    #[error("bundle {path}: resource `{resource}` of the manifest is not in the chunk index")]
    Resource {
        /// The folder.
        path: PathBuf,
        /// The resource.
        resource: String,
    },
    /// It has no signed targets metadata yet.
    #[error("bundle {0} is not signed: run `skerry bundle sign` first")]
    Unsigned(PathBuf),
}

impl BundleFolder {
    /// Writes a bundle into `path`, which is made if it is not there.
    ///
    /// # Errors
    /// [`FolderError::Io`]; what was written so far stays.
    pub fn write(path: &Path, manifest: Manifest, files: ChunkedFiles) -> Result<BundleFolder, FolderError> {
        let chunks = path.join(CHUNKS);
        fs::create_dir_all(&chunks).map_err(io("write", &chunks))?;
        for (digest, bytes) in &files.wire {
            write(&chunks.join(digest.to_hex()), bytes)?;
        }
        let index_bytes = files.index.to_bytes();
        let summary = BundleSummary {
            target: super::target_name(&manifest.model, manifest.version),
            model: manifest.model.clone(),
            version: manifest.version,
            index: Digest::of(&index_bytes),
            index_bytes: index_bytes.len() as u64,
            total_bytes: files.index.total_bytes(),
            wire_bytes: files.wire.values().map(|bytes| bytes.len() as u64).sum(),
        };
        write(&path.join(MANIFEST_NAME), &manifest.to_json())?;
        write(&path.join(INDEX), &index_bytes)?;
        let pretty = serde_json::to_vec_pretty(&summary).expect("a summary always encodes");
        write(&path.join(SUMMARY), &pretty)?;
        Ok(BundleFolder {
            path: path.to_owned(),
            manifest,
            index: files.index,
            summary,
        })
    }

    /// Opens a bundle and checks every chunk and every file of it.
    ///
    /// # Errors
    /// [`FolderError`] naming the first thing that is missing or does not match.
    pub fn open(path: &Path) -> Result<BundleFolder, FolderError> {
        let owned = || path.to_owned();
        let index_bytes = read(&path.join(INDEX))?;
        let index =
            ChunkIndex::from_bytes(&index_bytes).map_err(|source| FolderError::Index { path: owned(), source })?;
        let mut manifest_bytes = None;
        let mut wire_digests = std::collections::BTreeMap::new();
        for file in index.files() {
            let mut hasher = Hasher::new();
            let mut content = Vec::new();
            for chunk in index.chunks_of(file) {
                let wire = read(&path.join(CHUNKS).join(chunk.wire.to_hex()))?;
                let raw = decode(chunk, &wire).map_err(|source| FolderError::Chunk {
                    path: owned(),
                    file: file.name.to_string(),
                    source,
                })?;
                hasher.update(&raw);
                wire_digests.insert(chunk.wire, wire.len() as u64);
                if file.name.as_str() == MANIFEST_NAME {
                    content.extend(raw);
                }
            }
            if hasher.finish() != file.digest {
                return Err(FolderError::File {
                    path: owned(),
                    file: file.name.to_string(),
                });
            }
            if file.name.as_str() == MANIFEST_NAME {
                manifest_bytes = Some(content);
            }
        }
        let manifest_bytes = manifest_bytes.ok_or_else(|| FolderError::Manifest {
            path: owned(),
            source: None,
        })?;
        let manifest = Manifest::from_json(&manifest_bytes).map_err(|source| FolderError::Manifest {
            path: owned(),
            source: Some(source),
        })?;
        for resource in &manifest.resources {
            let file = index.file(resource.name.as_str());
            if file.is_none_or(|file| file.digest != resource.digest || file.size_bytes != resource.size_bytes) {
                return Err(FolderError::Resource {
                    path: owned(),
                    resource: resource.name.to_string(),
                });
            }
        }
        let summary = BundleSummary {
            target: super::target_name(&manifest.model, manifest.version),
            model: manifest.model.clone(),
            version: manifest.version,
            index: Digest::of(&index_bytes),
            index_bytes: index_bytes.len() as u64,
            total_bytes: index.total_bytes(),
            wire_bytes: wire_digests.values().sum(),
        };
        Ok(BundleFolder {
            path: owned(),
            manifest,
            index,
            summary,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The encoded chunk index.
    pub fn index_bytes(&self) -> Vec<u8> {
        self.index.to_bytes()
    }

    /// The wire form of a chunk.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn chunk(&self, wire: &Digest) -> Result<Vec<u8>, FolderError> {
        read(&self.path.join(CHUNKS).join(wire.to_hex()))
    }

    /// The signed targets metadata that `skerry bundle sign` left.
    ///
    /// # Errors
    /// [`FolderError::Unsigned`] when there is none.
    pub fn signed_targets(&self) -> Result<Vec<u8>, FolderError> {
        let path = self.path.join(TARGETS);
        match fs::read(&path) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(FolderError::Unsigned(self.path.clone())),
            Err(source) => Err(FolderError::Io {
                action: "read",
                path,
                source,
            }),
        }
    }

    /// Stores signed targets metadata in the folder.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn store_signed_targets(&self, bytes: &[u8]) -> Result<(), FolderError> {
        write(&self.path.join(TARGETS), bytes)
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { action, path, source }
}

fn read(path: &Path) -> Result<Vec<u8>, FolderError> {
    fs::read(path).map_err(io("read", path))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), FolderError> {
    fs::write(path, bytes).map_err(io("write", path))
}
