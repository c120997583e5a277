//! Bundles on the device's disk: chunk indexes and objects by digest, and the chunks of a download until its files are whole.
//!
//! Files are named by digest, never by a name from outside. Invariant: an object's file has the digest of its name.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use skerry_shared::{
    chunk::{ChunkIndex, FileEntry},
    digest::{Digest, Hasher},
};

use crate::{
    disk::{Access, Disk, DiskError},
    record::Record,
};

/// The store's folders.
pub(crate) struct Store {
    disk: Disk,
    indexes: PathBuf,
    objects: PathBuf,
    staging: PathBuf,
    limit_bytes: Option<u64>,
}

/// Where content of installed bundles lies: by digest of the chunk.
pub(crate) type Sources = BTreeMap<Digest, (PathBuf, u64, usize)>;

impl Store {
    pub(crate) fn open(disk: &Disk, state_dir: &Path, limit_bytes: Option<u64>) -> Result<Store, DiskError> {
        let store = Store {
            limit_bytes,
            ..Store::existing(disk, state_dir)
        };
        for path in [&store.indexes, &store.objects, &store.staging] {
            disk.make_folder(path)?;
        }
        Ok(store)
    }

    /// The store as it lies there, to be read only: nothing is made.
    pub(crate) fn existing(disk: &Disk, state_dir: &Path) -> Store {
        let folder = |name: &str| state_dir.join("store").join(name);
        Store {
            disk: disk.clone(),
            indexes: folder("indexes"),
            objects: folder("objects"),
            staging: folder("staging"),
            limit_bytes: None,
        }
    }

    /// Bytes that may still be added: what the disk has free, and what the limit leaves.
    pub(crate) fn room_bytes(&self) -> Result<u64, DiskError> {
        let free = self.disk.free_bytes(&self.objects)?;
        let Some(limit) = self.limit_bytes else { return Ok(free) };
        let used = self.disk.size_bytes(&self.objects)? + self.disk.size_bytes(&self.staging)?;
        Ok(free.min(limit.saturating_sub(used)))
    }

    /// Keeps a verified chunk index.
    pub(crate) fn put_index(&self, digest: Digest, bytes: &[u8]) -> Result<(), DiskError> {
        self.disk
            .write(&self.indexes.join(digest.to_hex()), bytes, Access::Everybody)
    }

    /// A kept chunk index; `None` if it is not there or not whole.
    pub(crate) fn index(&self, digest: Digest) -> Result<Option<ChunkIndex>, DiskError> {
        let bytes = self.disk.read(&self.indexes.join(digest.to_hex()))?;
        let whole = bytes.filter(|bytes| Digest::of(bytes) == digest);
        Ok(whole.and_then(|bytes| ChunkIndex::from_bytes(&bytes).ok()))
    }

    /// True when an object is there and whole. It is read piece by piece: models are larger than what memory should hold.
    pub(crate) fn has_object(&self, digest: Digest) -> Result<bool, DiskError> {
        Ok(self.disk.digest(&self.objects.join(digest.to_hex()))? == Some(digest))
    }

    /// The content of an object; `None` if it is not there or not whole.
    pub(crate) fn object(&self, digest: Digest) -> Result<Option<Vec<u8>>, DiskError> {
        let bytes = self.disk.read(&self.objects.join(digest.to_hex()))?;
        Ok(bytes.filter(|bytes| Digest::of(bytes) == digest))
    }

    /// Keeps a chunk of the download under way.
    pub(crate) fn stage(&self, raw: Digest, content: &[u8]) -> Result<(), DiskError> {
        self.disk.write_unsynced(&self.staging.join(raw.to_hex()), content)
    }

    fn staged(&self, raw: Digest) -> Result<Option<Vec<u8>>, DiskError> {
        let bytes = self.disk.read(&self.staging.join(raw.to_hex()))?;
        Ok(bytes.filter(|bytes| Digest::of(bytes) == raw))
    }

    /// True when a download has left something behind.
    pub(crate) fn has_staged(&self, index: &ChunkIndex) -> Result<bool, DiskError> {
        let names: BTreeSet<String> = self.disk.list(&self.staging)?.into_iter().collect();
        Ok(index.chunks().iter().any(|chunk| names.contains(&chunk.raw.to_hex())))
    }

    /// The content that installed bundles could lend to a new one.
    pub(crate) fn sources(&self, record: &Record) -> Result<Sources, DiskError> {
        let mut sources = Sources::new();
        for digest in kept_indexes(record) {
            let Some(index) = self.index(digest)? else { continue };
            for file in index.files() {
                let path = self.objects.join(file.digest.to_hex());
                let mut offset = 0;
                for chunk in index.chunks_of(file) {
                    sources.insert(chunk.raw, (path.clone(), offset, chunk.raw_len as usize));
                    offset += u64::from(chunk.raw_len);
                }
            }
        }
        Ok(sources)
    }

    /// Those of these files that are not whole on this disk. Each that is there is read once, to its end.
    pub(crate) fn lacking<'a>(&self, files: &[&'a FileEntry]) -> Result<Vec<&'a FileEntry>, DiskError> {
        let mut lacking = Vec::new();
        for file in files {
            if !self.has_object(file.digest)? {
                lacking.push(*file);
            }
        }
        Ok(lacking)
    }

    /// The chunks of lacking files that are neither staged nor installed. What can be copied is staged.
    pub(crate) fn missing_chunks(
        &self,
        index: &ChunkIndex,
        lacking: &[&FileEntry],
        sources: &Sources,
    ) -> Result<Vec<u32>, DiskError> {
        let mut missing = Vec::new();
        for file in lacking {
            for (position, chunk) in index.chunks_of(file).iter().enumerate() {
                if self.staged(chunk.raw)?.is_some() {
                    continue;
                }
                match sources.get(&chunk.raw).and_then(|source| self.copy(source, chunk.raw)) {
                    Some(content) => self.stage(chunk.raw, &content)?,
                    None => missing.push(file.first_chunk + position as u32),
                }
            }
        }
        Ok(missing)
    }

    /// Joins the staged chunks of a lacking file into its object. False when a chunk is missing or the file is not what it should be.
    pub(crate) fn assemble(&self, index: &ChunkIndex, file: &FileEntry) -> Result<bool, DiskError> {
        let mut whole = self
            .disk
            .begin(&self.objects.join(file.digest.to_hex()), Access::Everybody)?;
        let mut hasher = Hasher::default();
        for chunk in index.chunks_of(file) {
            let Some(content) = self.staged(chunk.raw)? else {
                return Ok(false);
            };
            hasher.update(&content);
            whole.append(&content)?;
        }
        if hasher.finish() != file.digest {
            return Ok(false);
        }
        whole.commit()?;
        Ok(true)
    }

    /// Bytes that bringing lacking files here will still write: chunks that are not staged, and the files themselves.
    pub(crate) fn bytes_to_write(&self, index: &ChunkIndex, lacking: &[&FileEntry]) -> Result<u64, DiskError> {
        let staged: BTreeSet<String> = self.disk.list(&self.staging)?.into_iter().collect();
        let mut bytes = 0;
        for file in lacking {
            let chunks = index.chunks_of(file).iter();
            let unstaged = chunks.filter(|chunk| !staged.contains(&chunk.raw.to_hex()));
            bytes += file.size_bytes + unstaged.map(|chunk| u64::from(chunk.raw_len)).sum::<u64>();
        }
        Ok(bytes)
    }

    /// Removes what neither the slots nor `candidate` need.
    pub(crate) fn collect_garbage(&self, record: &Record, candidate: Option<Digest>) -> Result<(), DiskError> {
        let mut indexes: BTreeSet<String> = BTreeSet::new();
        let mut objects: BTreeSet<String> = BTreeSet::new();
        let mut chunks: BTreeSet<String> = BTreeSet::new();
        for digest in kept_indexes(record).chain(candidate) {
            indexes.insert(digest.to_hex());
            let Some(index) = self.index(digest)? else { continue };
            objects.extend(index.files().iter().map(|file| file.digest.to_hex()));
            if candidate == Some(digest) {
                chunks.extend(index.chunks().iter().map(|chunk| chunk.raw.to_hex()));
            }
        }
        self.sweep(&self.indexes, |name| indexes.contains(name))?;
        self.sweep(&self.objects, |name| objects.contains(name))?;
        self.sweep(&self.staging, |name| chunks.contains(name))
    }

    fn sweep(&self, folder: &Path, keep: impl Fn(&str) -> bool) -> Result<(), DiskError> {
        for name in self.disk.list(folder)? {
            if !keep(&name) {
                self.disk.remove(&folder.join(name))?;
            }
        }
        Ok(())
    }

    /// Reads a chunk out of an installed object, if it is still what it was.
    fn copy(&self, (path, offset, len): &(PathBuf, u64, usize), raw: Digest) -> Option<Vec<u8>> {
        let content = self.disk.read_at(path, *offset, *len).ok()?;
        (Digest::of(&content) == raw).then_some(content)
    }
}

fn kept_indexes(record: &Record) -> impl Iterator<Item = Digest> {
    let slots = record
        .slots
        .values()
        .flat_map(|slots| [&slots.current, &slots.previous]);
    slots.flatten().map(|installed| installed.index)
}
