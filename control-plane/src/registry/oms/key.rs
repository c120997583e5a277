//! The keys of model signatures: P-256, in PEM, as OpenSSL writes them.
//!
//! Invariant: a fingerprint is the SHA-256 of the public key's PEM text as `model-signing` computes it, so that both sides
//! call a key by the same name.

use std::fmt;

use p256::{
    ecdsa::{Signature, SigningKey, VerifyingKey, signature::Signer},
    pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePublicKey, LineEnding},
};
use skerry_shared::digest::Digest;

use super::OmsError;

/// A key whose signatures can be checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    pub(super) key: VerifyingKey,
    fingerprint: String,
}

impl PublicKey {
    /// Reads a PEM file with a `PUBLIC KEY`.
    ///
    /// # Errors
    /// [`OmsError::Key`], for other curves too.
    pub fn from_pem(text: &str) -> Result<PublicKey, OmsError> {
        let key = p256::PublicKey::from_public_key_pem(text.trim()).map_err(|error| refused("public", &error))?;
        PublicKey::new(key)
    }

    fn new(key: p256::PublicKey) -> Result<PublicKey, OmsError> {
        let pem = key.to_public_key_pem(LineEnding::LF);
        let pem = pem.map_err(|error| refused("public", &error))?;
        Ok(PublicKey {
            key: VerifyingKey::from(key),
            fingerprint: Digest::of(pem.as_bytes()).to_hex(),
        })
    }

    /// Its name in signatures: 64 hex digits.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// A key that signs. Erased from memory when dropped; never printed.
pub struct SecretKey {
    key: SigningKey,
    public: PublicKey,
}

impl SecretKey {
    /// Reads a PEM file with a `PRIVATE KEY` (PKCS#8) or an `EC PRIVATE KEY` (SEC 1).
    ///
    /// # Errors
    /// [`OmsError::Key`], for encrypted keys and other curves too.
    pub fn from_pem(text: &str) -> Result<SecretKey, OmsError> {
        let text = text.trim();
        let secret = match text.starts_with("-----BEGIN EC PRIVATE KEY-----") {
            true => p256::SecretKey::from_sec1_pem(text).map_err(|error| refused("private", &error)),
            false => p256::SecretKey::from_pkcs8_pem(text).map_err(|error| refused("private", &error)),
        }?;
        Ok(SecretKey {
            public: PublicKey::new(secret.public_key())?,
            key: SigningKey::from(&secret),
        })
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature: Signature = self.key.sign(message);
        signature.to_der().as_bytes().to_vec()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey")
            .field("public", &self.public.fingerprint)
            .finish_non_exhaustive()
    }
}

fn refused(kind: &'static str, reason: &dyn fmt::Display) -> OmsError {
    OmsError::Key {
        kind,
        reason: reason.to_string(),
    }
}
