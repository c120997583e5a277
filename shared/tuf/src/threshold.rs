//! The one place where signatures are counted.
//!
//! Metadata and DSSE envelopes both come here with the exact signed bytes. Invariant: a key counts once, however many
//! ids, entries or signatures it has.

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU32;

use crate::key::{KeyId, PublicKey};
use crate::verifier::Verifier;

/// The keys that may sign for a role, and how many of them must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet {
    /// Keys by the id that signatures name.
    pub keys: BTreeMap<KeyId, PublicKey>,
    /// Number of distinct keys that must sign.
    pub threshold: NonZeroU32,
}

impl KeySet {
    /// Makes a set of `keys` under their own ids, `threshold` of which must sign.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>, threshold: NonZeroU32) -> Self {
        Self {
            keys: keys.into_iter().map(|key| (key.id(), key)).collect(),
            threshold,
        }
    }

    /// Makes a set of one key.
    pub fn single(key: PublicKey) -> Self {
        Self::new([key], NonZeroU32::MIN)
    }

    /// Tells whether a usable key of this set is absent from `newer`.
    pub(crate) fn loses_key_in(&self, newer: &Self) -> bool {
        let material = |key: &PublicKey| Verifier::new(key).map(|key| key.material());
        let kept: HashSet<_> = newer.keys.values().filter_map(material).collect();
        self.keys.values().filter_map(material).any(|key| !kept.contains(&key))
    }
}

/// A decoded ed25519 signature and the key it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignatureRef<'a> {
    /// Id of the key that is said to have signed.
    pub keyid: &'a str,
    /// The signature.
    pub bytes: [u8; 64],
}

/// Too few distinct keys made a valid signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{valid} of the {needed} needed signatures are valid")]
pub struct ThresholdNotMet {
    /// Distinct keys with a valid signature.
    pub valid: u32,
    /// The threshold.
    pub needed: u32,
}

/// Checks that at least the threshold of distinct `keys` signed `message`.
///
/// Signatures by other keys are skipped. Of each key id only the first signature is tried, so the work is bounded by the
/// number of keys and not by the number of signatures.
///
/// # Errors
///
/// How many distinct keys were counted, if too few.
pub fn verify_threshold<'a>(
    keys: &KeySet,
    message: &[u8],
    signatures: impl IntoIterator<Item = SignatureRef<'a>>,
) -> Result<(), ThresholdNotMet> {
    let signatures = signatures
        .into_iter()
        .map(|signature| (signature.keyid, signature.bytes));
    count_signatures(keys, message, signatures)
}

/// Does the work of [`verify_threshold`], for signatures of any length.
pub(crate) fn count_signatures<'a, S: AsRef<[u8]>>(
    keys: &KeySet,
    message: &[u8],
    signatures: impl Iterator<Item = (&'a str, S)>,
) -> Result<(), ThresholdNotMet> {
    let needed = keys.threshold.get();
    let mut tried = HashSet::new();
    let mut counted = HashSet::new();
    let mut valid = 0;
    for (keyid, signature) in signatures {
        if !tried.insert(keyid) {
            continue;
        }
        let Some(key) = keys.keys.get(keyid).and_then(Verifier::new) else {
            continue;
        };
        // Two ids may name one key: it still is one holder.
        let material = key.material();
        if counted.contains(&material) || !key.is_signed(message, signature.as_ref()) {
            continue;
        }
        counted.insert(material);
        valid += 1;
        if valid >= needed {
            return Ok(());
        }
    }
    Err(ThresholdNotMet { valid, needed })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::sign::SigningKey;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    fn key_set(seeds: &[u8], threshold: u32) -> KeySet {
        KeySet::new(
            seeds.iter().map(|seed| key(*seed).public_key()),
            NonZeroU32::new(threshold).unwrap(),
        )
    }

    fn verify(keys: &KeySet, signatures: &[(KeyId, [u8; 64])]) -> Result<(), ThresholdNotMet> {
        let signatures = signatures.iter().map(|(keyid, bytes)| SignatureRef {
            keyid: keyid.as_str(),
            bytes: *bytes,
        });
        verify_threshold(keys, b"message", signatures)
    }

    fn signed_by(seed: u8) -> (KeyId, [u8; 64]) {
        (key(seed).public_key().id(), key(seed).sign_bytes(b"message"))
    }

    #[test]
    fn the_threshold_of_distinct_keys_is_enough() {
        assert_eq!(verify(&key_set(&[1, 2, 3], 2), &[signed_by(1), signed_by(3)]), Ok(()));
        assert_eq!(
            verify(&key_set(&[1, 2, 3], 2), &[signed_by(9), signed_by(1), signed_by(3)]),
            Ok(())
        );
    }

    #[test]
    fn one_stolen_key_below_the_threshold_is_not_enough() {
        let missing = Err(ThresholdNotMet { valid: 1, needed: 2 });
        assert_eq!(verify(&key_set(&[1, 2], 2), &[signed_by(1)]), missing);
        assert_eq!(verify(&key_set(&[1, 2], 2), &[signed_by(1), signed_by(9)]), missing);
    }

    #[test]
    fn no_signature_or_another_key_is_not_enough() {
        let missing = Err(ThresholdNotMet { valid: 0, needed: 1 });
        assert_eq!(verify(&key_set(&[1], 1), &[]), missing);
        assert_eq!(verify(&key_set(&[1], 1), &[signed_by(2)]), missing);
    }

    #[test]
    fn a_signature_over_other_bytes_does_not_count() {
        let other = (key(1).public_key().id(), key(1).sign_bytes(b"other"));
        assert_eq!(
            verify(&key_set(&[1], 1), &[other]),
            Err(ThresholdNotMet { valid: 0, needed: 1 })
        );
    }

    #[test]
    fn a_key_signing_twice_counts_once() {
        let missing = Err(ThresholdNotMet { valid: 1, needed: 2 });
        assert_eq!(verify(&key_set(&[1, 2], 2), &[signed_by(1), signed_by(1)]), missing);
    }

    #[test]
    fn a_key_under_two_ids_counts_once() {
        let mut keys = key_set(&[1], 2);
        keys.keys.insert(KeyId::new("alias"), key(1).public_key());
        let mut upper_case = key(1).public_key();
        upper_case.keyval.public = upper_case.keyval.public.to_uppercase();
        keys.keys.insert(KeyId::new("upper"), upper_case);
        let (id, signature) = signed_by(1);
        let signatures = [
            (id, signature),
            (KeyId::new("alias"), signature),
            (KeyId::new("upper"), signature),
        ];
        assert_eq!(verify(&keys, &signatures), Err(ThresholdNotMet { valid: 1, needed: 2 }));
    }

    #[test]
    fn a_small_order_key_never_counts() {
        // With the neutral element as key, R = neutral and s = 0 satisfy the lax equation for every message.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let weak = PublicKey::from_ed25519(&neutral);
        let mut forged = [0; 64];
        forged[0] = 1;
        let result = verify(&KeySet::single(weak.clone()), &[(weak.id(), forged)]);
        assert_eq!(result, Err(ThresholdNotMet { valid: 0, needed: 1 }));
    }
}
