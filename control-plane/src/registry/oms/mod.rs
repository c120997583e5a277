//! OpenSSF Model Signing v1.0 at the registry's door: what others have signed is checked as it comes in, and what goes out to
//! others can be signed.
//!
//! A signature is a Sigstore bundle around a DSSE envelope around an in-toto statement, which lists the files of a model with
//! their digests. Only the method `key` with P-256 and only SHA-256 over whole files are known here; whatever else the format
//! allows is refused by name. Devices never see any of it: they trust TUF metadata alone.
//!
//! Invariant: a [`Verified`] value exists only if one of the caller's keys signed exactly that statement.

mod bundle;
mod folder;
mod key;
mod statement;

use skerry_shared::digest::Digest;

pub use bundle::{Verified, sign, verify};
pub use folder::{Unsigned, check_folder};
pub use key::{PublicKey, SecretKey};
pub use statement::{Resource, Statement};

/// The most bytes of a signature: it holds about 4,000 files, and is read into memory before anything in it is trusted.
pub const LIMIT_BYTES: usize = 1024 * 1024;

/// Why a signature, or what it is about, was refused.
#[derive(Debug, thiserror::Error)]
pub enum OmsError {
    /// Above [`LIMIT_BYTES`].
    #[error("the model signature has {0} bytes, more than the {LIMIT_BYTES} allowed")]
    TooLarge(usize),
    /// Not JSON, or a member is missing, doubled or of another type.
    #[error("the {part} of the model signature does not parse")]
    Parse {
        /// Which of the three layers.
        part: &'static str,
        /// Where and why.
        source: serde_json::Error,
    },
    /// Something that the format allows and this program does not know, or that is of another format.
    #[error("the {what} of the model signature is `{found}`, expected `{expected}`")]
    Unsupported {
        /// What it is about.
        what: &'static str,
        /// What was found, cut short.
        found: String,
        /// What this program knows.
        expected: &'static str,
    },
    /// A rule of the format is broken.
    #[error("the model signature {0}")]
    Malformed(String),
    /// Nobody that is trusted here made it.
    #[error("the model signature is by key {hint}, which is not trusted here")]
    UnknownKey {
        /// The fingerprint in the bundle; `unknown` if there is none.
        hint: String,
    },
    /// The bytes are not what the key signed.
    #[error("the model signature does not verify with key {fingerprint}: it, or what it covers, was changed")]
    BadSignature {
        /// The key that was tried.
        fingerprint: String,
    },
    /// A key file that is no P-256 key.
    #[error("the {kind} key is no P-256 key in PEM: {reason}")]
    Key {
        /// `public` or `private`.
        kind: &'static str,
        /// Why.
        reason: String,
    },
    /// The file to register is not among the signed ones.
    #[error("the model signature does not cover the file with digest {0}")]
    NotCovered(Digest),
    /// A signed file has another content, or is not there.
    #[error("signed file `{name}` {problem}")]
    File {
        /// Its name in the signature.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A file that nobody signed lies among the signed ones.
    #[error("`{0}` lies beside the signed files and is not signed (--ignore-unsigned accepts that)")]
    UnsignedFile(String),
    /// The folder cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file or folder.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No signature came, and the door wants one.
    #[error("this control plane registers signed models only: give an OpenSSF Model Signing bundle (--oms)")]
    Required,
    /// A signature came, and there is nobody whose signatures count.
    #[error(
        "this control plane trusts no key for model signatures: name some in `registry.oms_keys` of its configuration"
    )]
    NoTrustedKeys,
}

/// Who may sign models that come in from outside, and whether somebody must have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Door {
    /// The trusted keys.
    pub keys: Vec<PublicKey>,
    /// Refuses models without a signature. Models of this control plane's own training runs do not come through the door.
    pub require: bool,
}

impl Door {
    /// Lets a model in, with or without a signature.
    ///
    /// # Errors
    /// [`OmsError`]: a signature is needed and missing, or there is one that does not convince.
    pub fn admit(&self, bundle: Option<&[u8]>) -> Result<Option<Verified>, OmsError> {
        match bundle {
            None if self.require => Err(OmsError::Required),
            None => Ok(None),
            // Kept unverified, it would look as if it meant something.
            Some(_) if self.keys.is_empty() => Err(OmsError::NoTrustedKeys),
            Some(bundle) => verify(bundle, &self.keys).map(Some),
        }
    }
}

/// Text from outside, short enough for an error.
fn short(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests;
