//! Public keys ready for use: which signatures count.
//!
//! Ed25519 only, unless feature `conformance` adds the other two key types of the specification for outside test suites.
//! That feature is for `skerry-tuf-client` and never for a device. Invariant: two keys with the same [`Verifier::material`]
//! are one key, however they were written.

use ed25519_dalek::{Signature, VerifyingKey};

use crate::key::PublicKey;

/// A public key of a type that we can use.
pub(crate) enum Verifier {
    Ed25519(VerifyingKey),
    #[cfg(feature = "conformance")]
    Pem(crate::pem_key::PemKey),
}

impl Verifier {
    /// Returns the key ready for use, or `None` if its type is not ours or it is malformed.
    pub(crate) fn new(key: &PublicKey) -> Option<Self> {
        if let Some(bytes) = key.ed25519_bytes() {
            return VerifyingKey::from_bytes(&bytes).ok().map(Self::Ed25519);
        }
        #[cfg(feature = "conformance")]
        return crate::pem_key::PemKey::new(key).map(Self::Pem);
        #[cfg(not(feature = "conformance"))]
        None
    }

    /// Returns bytes that are the same for every way to write this key.
    pub(crate) fn material(&self) -> Vec<u8> {
        match self {
            // The point is compared and not the bytes as written.
            Self::Ed25519(key) => key.to_edwards().compress().to_bytes().to_vec(),
            #[cfg(feature = "conformance")]
            Self::Pem(key) => key.material().to_vec(),
        }
    }

    /// Tells whether `signature` over `message` is by this key.
    pub(crate) fn is_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            // Strict: no small-order keys or components, so that one signature fits one key and one message.
            Self::Ed25519(key) => {
                Signature::from_slice(signature).is_ok_and(|signature| key.verify_strict(message, &signature).is_ok())
            }
            #[cfg(feature = "conformance")]
            Self::Pem(key) => key.is_signed(message, signature),
        }
    }
}
