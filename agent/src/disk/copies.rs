//! A record that survives a torn write: two copies that are written in turn, each with a checksum and a sequence number.
//!
//! Invariant: as long as one copy is whole, the record is the newest whole one; if none is, nobody gets an empty one.

use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};

use super::{Access, Disk, DiskError};

/// The record's places on disk.
pub(crate) struct TwoCopies {
    disk: Disk,
    paths: [PathBuf; 2],
    sequence: u64,
}

const HEADER_BYTES: usize = 12;

impl TwoCopies {
    /// Opens the record; `None` when it was never written.
    pub(crate) fn open<T: DeserializeOwned>(disk: &Disk, folder: &Path) -> Result<(TwoCopies, Option<T>), DiskError> {
        let paths = [folder.join("state-a"), folder.join("state-b")];
        let mut newest: Option<(u64, T)> = None;
        let mut present = 0;
        for path in &paths {
            let Some(bytes) = disk.read(path)? else { continue };
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
        let disk = disk.clone();
        Ok((TwoCopies { disk, paths, sequence }, content))
    }

    /// The copies that are there and not whole: a power cut leaves none, since each is written as a whole.
    pub(crate) fn damaged(disk: &Disk, folder: &Path) -> Result<Vec<PathBuf>, DiskError> {
        let mut damaged = Vec::new();
        for path in [folder.join("state-a"), folder.join("state-b")] {
            let bytes = disk.read(&path)?;
            if bytes.is_some_and(|bytes| decode::<serde_json::Value>(&bytes).is_none()) {
                damaged.push(path);
            }
        }
        Ok(damaged)
    }

    /// Writes the record over the older copy. After an error the disk may have the old or the new one; the next write goes
    /// to the same place again, so that the copy which is known to be whole stays.
    pub(crate) fn write<T: Serialize>(&mut self, content: &T) -> Result<(), DiskError> {
        let next = self.sequence + 1;
        let json = serde_json::to_vec(content).expect("state has string keys only");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + json.len());
        bytes.extend_from_slice(&next.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&json);
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes[..8]), &json);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        let path = &self.paths[(next % 2) as usize];
        self.disk.write(path, &bytes, Access::OwnerOnly)?;
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
    use std::fs;

    use super::*;

    fn open(folder: &Path) -> (TwoCopies, Option<u32>) {
        TwoCopies::open(&Disk::real(), folder).unwrap()
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
            TwoCopies::open::<u32>(&Disk::real(), folder.path()),
            Err(DiskError::Unreadable(_))
        ));
    }
}
