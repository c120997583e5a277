//! ECDSA P-256 and RSA keys as PEM, for outside conformance suites only (feature `conformance`).
//!
//! Never for a device: no Skerry repository has such keys, and each scheme is one more parser to attack. Not a general
//! reader of X.509: of the `SubjectPublicKeyInfo` only the bit string is used, the scheme says what must be in it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};

use crate::key::PublicKey;

/// A public key of a scheme that is not ed25519.
pub(crate) struct PemKey {
    algorithm: &'static dyn VerificationAlgorithm,
    material: Vec<u8>,
}

impl PemKey {
    /// Reads the key, or returns `None` if it is of another scheme or malformed.
    pub(crate) fn new(key: &PublicKey) -> Option<Self> {
        let algorithm: &'static dyn VerificationAlgorithm = match (key.keytype.as_str(), key.scheme.as_str()) {
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => &ECDSA_P256_SHA256_ASN1,
            ("rsa", "rsassa-pss-sha256") => &RSA_PSS_2048_8192_SHA256,
            // Not in the specification, but the reference implementation makes such keys.
            ("rsa", "rsa-pkcs1v15-sha256") => &RSA_PKCS1_2048_8192_SHA256,
            _ => return None,
        };
        let material = key_in_spki(&from_pem(&key.keyval.public)?)?.to_vec();
        Some(Self { algorithm, material })
    }

    /// Returns the point of the curve, or the RSA modulus and exponent, in DER.
    pub(crate) fn material(&self) -> &[u8] {
        &self.material
    }

    /// Tells whether `signature` over `message` is by this key.
    pub(crate) fn is_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.material)
            .verify(message, signature)
            .is_ok()
    }
}

fn from_pem(text: &str) -> Option<Vec<u8>> {
    let body = text
        .trim()
        .strip_prefix("-----BEGIN PUBLIC KEY-----")?
        .strip_suffix("-----END PUBLIC KEY-----")?;
    let body: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(body).ok()
}

/// `SEQUENCE { SEQUENCE { algorithm }, BIT STRING { key } }`
fn key_in_spki(der: &[u8]) -> Option<&[u8]> {
    let (spki, after) = der_value(der, 0x30)?;
    let (_, rest) = der_value(spki, 0x30)?;
    let (bits, rest) = der_value(rest, 0x03)?;
    let (&unused_bits, key) = bits.split_first()?;
    (after.is_empty() && rest.is_empty() && unused_bits == 0).then_some(key)
}

/// Splits off the DER value with the given tag: its content, and what comes after.
fn der_value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [found, first, rest @ ..] = der else { return None };
    let (length, rest) = match first {
        _ if *found != tag => return None,
        0..=0x7f => (usize::from(*first), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (
            usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])),
            &rest[2..],
        ),
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const POINT: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEWRTGD6CWm1e5dBJ+RkuyYIxQ0cgE
HGYSW6wrFqVhDgDQeW7hyPSOLdxZGqhOMVdGvGkBgRH7Hy2Hc0wbgRVNlA==
-----END PUBLIC KEY-----";

    fn key(keytype: &str, scheme: &str, public: &str) -> Option<PemKey> {
        let object: Value = json!({"keytype": keytype, "scheme": scheme, "keyval": {"public": public}});
        PemKey::new(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn both_names_of_the_key_type_are_read_and_the_scheme_decides() {
        assert_eq!(key("ecdsa", "ecdsa-sha2-nistp256", POINT).unwrap().material().len(), 65);
        assert!(key("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256", POINT).is_some());
        assert!(key("ecdsa", "ecdsa-sha2-nistp384", POINT).is_none());
        assert!(key("rsa", "ecdsa-sha2-nistp256", POINT).is_none());
    }

    #[test]
    fn white_space_makes_no_second_key() {
        let one_line = POINT.replace('\n', "");
        let other = key("ecdsa", "ecdsa-sha2-nistp256", &one_line).unwrap();
        assert_eq!(
            key("ecdsa", "ecdsa-sha2-nistp256", POINT).unwrap().material(),
            other.material()
        );
    }

    #[test]
    fn torn_keys_are_no_keys() {
        let der = from_pem(POINT).unwrap();
        for length in 0..der.len() {
            assert_eq!(key_in_spki(&der[..length]), None, "{length}");
        }
        assert_eq!(key_in_spki(&[&der[..], &[0]].concat()), None);
        assert!(key("ecdsa", "ecdsa-sha2-nistp256", "not PEM").is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = key_in_spki(&bytes);
        }
    }
}
