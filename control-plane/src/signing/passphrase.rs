//! A passphrase that protects key files.
//!
//! Not where it is asked for: that is the command line. Invariant: it is erased from memory when dropped and never printed.

use std::{fmt, fs, io, path::Path};

use zeroize::Zeroizing;

/// The shortest that is taken: an offline attacker tries thousands of short ones a second, scrypt or not.
pub const CHARS_MIN: usize = 8;

/// A passphrase.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

/// Why a text is no passphrase.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    /// Too short.
    #[error("a passphrase has at least {CHARS_MIN} characters")]
    TooShort,
    /// Its file cannot be read.
    #[error("cannot read the passphrase in {path}")]
    Read {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
}

impl Passphrase {
    /// Takes a passphrase as it was typed.
    ///
    /// # Errors
    /// [`PassphraseError::TooShort`].
    pub fn new(text: Zeroizing<String>) -> Result<Self, PassphraseError> {
        match text.chars().count() < CHARS_MIN {
            true => Err(PassphraseError::TooShort),
            false => Ok(Self(text)),
        }
    }

    /// Reads the first line of a file.
    ///
    /// # Errors
    /// [`PassphraseError`].
    pub fn read(path: &Path) -> Result<Self, PassphraseError> {
        let text = fs::read_to_string(path).map(Zeroizing::new);
        let text = text.map_err(|source| PassphraseError::Read {
            path: path.display().to_string(),
            source,
        })?;
        Self::new(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

impl PartialEq for Passphrase {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}
