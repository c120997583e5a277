//! Whether a file is the one that signed metadata describes, while it streams by.
//!
//! No I/O: the caller feeds the bytes. Invariant: a file passes only if every digest of a kind that we compute matches, and
//! there is at least one.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256, Sha512};

use crate::error::Error;

/// Length and digests of a file that is being read.
#[derive(Debug)]
pub struct FileCheck<'a> {
    name: &'a str,
    hashes: &'a BTreeMap<String, String>,
    expected_bytes: Option<u64>,
    found_bytes: u64,
    sha256: Option<Sha256>,
    sha512: Option<Sha512>,
}

impl<'a> FileCheck<'a> {
    pub(crate) fn new(name: &'a str, expected_bytes: Option<u64>, hashes: &'a BTreeMap<String, String>) -> Self {
        Self {
            name,
            hashes,
            expected_bytes,
            found_bytes: 0,
            sha256: hashes.contains_key("sha256").then(Sha256::new),
            sha512: hashes.contains_key("sha512").then(Sha512::new),
        }
    }

    /// Takes the next bytes of the file.
    pub fn update(&mut self, bytes: &[u8]) {
        self.found_bytes += bytes.len() as u64;
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
        }
        if let Some(sha512) = &mut self.sha512 {
            sha512.update(bytes);
        }
    }

    /// Says whether the bytes were the whole file and no other.
    ///
    /// # Errors
    ///
    /// [`Error::Length`], [`Error::Hash`], or [`Error::HashUnsupported`] if there is no digest of a kind that we compute, or
    /// a malformed one.
    pub fn finish(self) -> Result<(), Error> {
        let file = || self.name.to_owned();
        if let Some(expected_bytes) = self.expected_bytes
            && expected_bytes != self.found_bytes
        {
            return Err(Error::Length {
                file: file(),
                expected_bytes,
                found_bytes: self.found_bytes,
            });
        }
        let found = [
            ("sha256", self.sha256.map(|digest| digest.finalize().to_vec())),
            ("sha512", self.sha512.map(|digest| digest.finalize().to_vec())),
        ];
        let mut checked = false;
        for (algorithm, found) in found {
            let (Some(found), Some(expected)) = (found, self.hashes.get(algorithm)) else {
                continue;
            };
            let expected = hex::decode(expected).map_err(|_| Error::HashUnsupported { file: file() })?;
            if expected != found {
                return Err(Error::Hash { file: file() });
            }
            checked = true;
        }
        match checked {
            true => Ok(()),
            false => Err(Error::HashUnsupported { file: file() }),
        }
    }
}
