//! A record that survives a torn write: two copies that are written in turn, each with a checksum and a sequence number.
//!
//! Invariant: as long as one copy is whole, the record is the newest whole one; if none is, or if this program does not
//! understand that one, nobody gets an empty or an older one.

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
        let mut newest: Option<(u64, Vec<u8>, &PathBuf)> = None;
        let mut present = 0;
        for path in &paths {
            let Some(bytes) = disk.read(path)? else { continue };
            present += 1;
            if let Some((sequence, json)) = whole(&bytes)
                && newest.as_ref().is_none_or(|(other, ..)| sequence > *other)
            {
                newest = Some((sequence, json.to_vec(), path));
            }
        }
        let (sequence, content) = match newest {
            Some((sequence, json, path)) => {
                let content = serde_json::from_slice(&json);
                // It is the truth all the same: the older copy is not, and would bring back what it has forgotten.
                let content = content.map_err(|source| DiskError::NotUnderstood {
                    path: path.clone(),
                    source,
                })?;
                (sequence, Some(content))
            }
            None if present > 0 => return Err(DiskError::Unreadable(folder.to_owned())),
            None => (0, None),
        };
        let disk = disk.clone();
        Ok((TwoCopies { disk, paths, sequence }, content))
    }

    /// The copies that are there and not whole: a power cut leaves none, since each is written as a whole.
    pub(crate) fn damaged(disk: &Disk, folder: &Path) -> Result<Vec<PathBuf>, DiskError> {
        let mut damaged = Vec::new();
        for path in [folder.join("state-a"), folder.join("state-b")] {
            let bytes = disk.read(&path)?;
            if bytes.is_some_and(|bytes| whole(&bytes).is_none()) {
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

/// The sequence number and the content of a copy that is whole.
fn whole(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (header, json) = bytes.split_at_checked(HEADER_BYTES)?;
    let sequence = u64::from_le_bytes(header[..8].try_into().ok()?);
    let checksum = u32::from_le_bytes(header[8..].try_into().ok()?);
    (crc32c::crc32c_append(crc32c::crc32c(&header[..8]), json) == checksum).then_some((sequence, json))
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

    #[test]
    fn a_newer_copy_that_is_not_understood_does_not_bring_the_older_one_back() {
        let folder = tempfile::tempdir().unwrap();
        let (mut record, _) = open(folder.path());
        record.write(&1_u32).unwrap();
        // As a later version of the program may write it.
        record.write(&"one").unwrap();
        let refused = TwoCopies::open::<u32>(&Disk::real(), folder.path()).err().unwrap();
        assert!(matches!(refused, DiskError::NotUnderstood { path, .. } if path.ends_with("state-a")));
        // An older one that is not understood does no harm.
        record.write(&3_u32).unwrap();
        assert_eq!(open(folder.path()).1, Some(3));
        // Both are whole.
        assert!(TwoCopies::damaged(&Disk::real(), folder.path()).unwrap().is_empty());
    }
}
