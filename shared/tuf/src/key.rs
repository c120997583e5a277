//! Public keys as root metadata carries them.
//!
//! Not secret keys (see `sign`). Keys of a type that we cannot use are kept, so that the metadata round-trips, but they
//! never count towards a threshold. Invariant: [`PublicKey::id`] depends on type, scheme and value only.

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::canonical_json::to_canonical_json;

/// The name under which metadata refers to a key.
///
/// Whoever makes a key uses [`PublicKey::id`]. Whoever verifies takes it as an opaque name (TAP 12): signatures are
/// counted by key material, so that a false name gains nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl KeyId {
    /// Makes a key id of any text.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// Returns the text of the key id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for KeyId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A public key object: TUF §4.2 `KEY`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKey {
    /// Kind of key; only `ed25519` is usable.
    pub keytype: String,
    /// Signature scheme; only `ed25519` is usable.
    pub scheme: String,
    /// The key itself.
    pub keyval: KeyVal,
    /// Members that this crate does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The value of a public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyVal {
    /// For ed25519: 32 bytes in hexadecimal. Empty if a key type that we do not know has no such member.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub public: String,
    /// Members that this crate does not know.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl PublicKey {
    /// Makes a key object of the 32 bytes of an ed25519 public key.
    pub fn from_ed25519(public: &[u8; 32]) -> Self {
        Self {
            keytype: "ed25519".to_owned(),
            scheme: "ed25519".to_owned(),
            keyval: KeyVal {
                public: hex::encode(public),
                extra: Map::new(),
            },
            extra: Map::new(),
        }
    }

    /// Returns the id to give to this key: SHA-256 of the canonical JSON of type, scheme and value, in hexadecimal.
    pub fn id(&self) -> KeyId {
        let object = json!({"keytype": self.keytype, "scheme": self.scheme, "keyval": {"public": self.keyval.public}});
        let canonical = to_canonical_json(&object).expect("strings two levels deep have a canonical form");
        KeyId(hex::encode(Sha256::digest(&canonical)))
    }

    /// Returns the 32 bytes of the key, if it is an ed25519 key in well-formed hexadecimal.
    pub fn ed25519_bytes(&self) -> Option<[u8; 32]> {
        if self.keytype != "ed25519" || self.scheme != "ed25519" {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(&self.keyval.public, &mut bytes).ok()?;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_id_is_the_digest_of_the_canonical_key_object() {
        // Computed with securesystemslib 1.6.0.
        let key = PublicKey::from_ed25519(&[7; 32]);
        assert_eq!(
            key.id().as_str(),
            "b6db82967262b4c288a9326762c77b39db2f13d29b51799a526d0ec81001b73b"
        );
    }

    #[test]
    fn unknown_members_do_not_change_the_id() {
        let mut key = PublicKey::from_ed25519(&[7; 32]);
        let id = key.id();
        key.extra.insert("keyid_hash_algorithms".to_owned(), json!(["md5"]));
        assert_eq!(key.id(), id);
    }

    #[test]
    fn only_well_formed_ed25519_keys_are_usable() {
        let good = PublicKey::from_ed25519(&[0; 32]);
        assert!(good.ed25519_bytes().is_some());
        for (keytype, scheme, public) in [
            ("rsa", "rsassa-pss-sha256", "00".repeat(32)),
            ("ed25519", "ed25519ph", "00".repeat(32)),
            ("ed25519", "ed25519", "00".repeat(31)),
            ("ed25519", "ed25519", "zz".repeat(32)),
        ] {
            let mut key = good.clone();
            key.keytype = keytype.to_owned();
            key.scheme = scheme.to_owned();
            key.keyval.public = public;
            assert_eq!(key.ed25519_bytes(), None, "{key:?}");
        }
    }
}
