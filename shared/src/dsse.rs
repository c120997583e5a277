//! DSSE: the envelope around everything that Skerry signs itself (desired states). The signature covers the payload's raw
//! bytes and its type, so nothing is parsed before it is verified. Specification: secure-systems-lab/dsse, version 1.0.

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};

/// The most bytes of an encoded envelope.
pub const LIMIT_BYTES: usize = 128 * 1024;

/// The most signatures looked at: each costs a curve operation.
const SIGNATURES_MAX: usize = 16;

/// A payload with signatures over it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    payload_type: String,
    payload: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EnvelopeSignature {
    #[serde(default)]
    keyid: String,
    sig: String,
}

/// Keys that may sign a kind of payload, and how many of them must.
#[derive(Clone, Debug)]
pub struct Signers {
    /// The keys.
    pub keys: Vec<VerifyingKey>,
    /// How many distinct keys must have signed; zero is never satisfied.
    pub threshold: usize,
}

/// Why an envelope was refused.
#[derive(Debug, thiserror::Error)]
pub enum DsseError {
    /// Above [`LIMIT_BYTES`].
    #[error("signed envelope of {0} bytes exceeds the limit")]
    TooLarge(usize),
    /// Not JSON, or not an envelope.
    #[error("signed envelope does not parse")]
    Parse(#[source] serde_json::Error),
    /// Payload or signature is not base64.
    #[error("signed envelope has a {0} that is not base64")]
    Base64(&'static str),
    /// Signed for another purpose.
    #[error("signed envelope is of type `{got}`, expected `{expected}`")]
    PayloadType {
        /// The type found.
        got: String,
        /// The type expected.
        expected: String,
    },
    /// Too few good signatures of distinct trusted keys.
    #[error("signed envelope has {valid} valid signatures of {threshold} required")]
    Threshold {
        /// Good signatures.
        valid: usize,
        /// Required signatures.
        threshold: usize,
    },
}

/// The bytes that are signed: the pre-authentication encoding.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

impl Envelope {
    /// Wraps `payload`. `sign` gets the bytes to sign and answers with the signature; `keyid` is only a hint for readers.
    pub fn sign(payload_type: &str, payload: &[u8], keyid: &str, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> Envelope {
        let signature = sign(&pae(payload_type, payload));
        Self::with_signatures(payload_type, payload, [(keyid.to_owned(), signature)])
    }

    /// Wraps `payload` with signatures over its [`pae`], each with the hint that names its key.
    pub fn with_signatures(
        payload_type: &str,
        payload: &[u8],
        signatures: impl IntoIterator<Item = (String, [u8; 64])>,
    ) -> Envelope {
        let signature = |(keyid, sig)| EnvelopeSignature {
            keyid,
            sig: STANDARD.encode(sig),
        };
        Envelope {
            payload_type: payload_type.to_owned(),
            payload: STANDARD.encode(payload),
            signatures: signatures.into_iter().map(signature).collect(),
        }
    }

    /// Encodes the envelope.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an envelope has string keys only, so it always encodes")
    }

    /// Reads an envelope; nothing in it is trusted yet.
    ///
    /// # Errors
    /// [`DsseError::TooLarge`] or [`DsseError::Parse`].
    pub fn from_json(bytes: &[u8]) -> Result<Envelope, DsseError> {
        if bytes.len() > LIMIT_BYTES {
            return Err(DsseError::TooLarge(bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(DsseError::Parse)
    }

    /// Returns the payload without asking who has signed it: for an envelope whose place is trusted already.
    ///
    /// # Errors
    /// [`DsseError::PayloadType`] or [`DsseError::Base64`].
    pub fn unverified_payload(&self, payload_type: &str) -> Result<Vec<u8>, DsseError> {
        if self.payload_type != payload_type {
            let got = self.payload_type.chars().take(200).collect();
            return Err(DsseError::PayloadType {
                got,
                expected: payload_type.to_owned(),
            });
        }
        STANDARD.decode(&self.payload).map_err(|_| DsseError::Base64("payload"))
    }

    /// Returns the payload if enough of `signers` have signed it as `payload_type`.
    ///
    /// # Errors
    /// [`DsseError`] otherwise; the payload stays unread.
    pub fn verify(&self, payload_type: &str, signers: &Signers) -> Result<Vec<u8>, DsseError> {
        let payload = self.unverified_payload(payload_type)?;
        let message = pae(payload_type, &payload);
        let mut signatures = Vec::new();
        for signature in self.signatures.iter().take(SIGNATURES_MAX) {
            let bytes = STANDARD
                .decode(&signature.sig)
                .map_err(|_| DsseError::Base64("signature"))?;
            signatures.extend(Signature::from_slice(&bytes));
        }
        // Counted over distinct keys: the same key listed or used twice is one signer.
        let mut seen: Vec<[u8; 32]> = Vec::new();
        for key in &signers.keys {
            let signed = signatures
                .iter()
                .any(|signature| key.verify_strict(&message, signature).is_ok());
            if signed && !seen.contains(key.as_bytes()) {
                seen.push(*key.as_bytes());
            }
        }
        if signers.threshold == 0 || seen.len() < signers.threshold {
            return Err(DsseError::Threshold {
                valid: seen.len(),
                threshold: signers.threshold,
            });
        }
        Ok(payload)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ed25519_dalek::{Signer, SigningKey};
    use proptest::prelude::*;

    use super::*;

    fn signed(key: &SigningKey, payload: &[u8]) -> Envelope {
        Envelope::sign("text/x", payload, "k", |message| key.sign(message).to_bytes())
    }

    fn signers(key: &SigningKey) -> Signers {
        Signers {
            keys: vec![key.verifying_key()],
            threshold: 1,
        }
    }

    #[test]
    fn the_encoding_is_the_specification_s_example() {
        let expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world";
        assert_eq!(pae("http://example.com/HelloWorld", b"hello world"), expected);
    }

    #[test]
    fn another_key_is_refused() {
        let envelope = signed(&SigningKey::from_bytes(&[1; 32]), b"x");
        let error = envelope
            .verify("text/x", &signers(&SigningKey::from_bytes(&[2; 32])))
            .unwrap_err();
        assert!(matches!(error, DsseError::Threshold { valid: 0, threshold: 1 }));
    }

    #[test]
    fn another_purpose_is_refused() {
        let key = SigningKey::from_bytes(&[1; 32]);
        assert!(matches!(
            signed(&key, b"x").verify("text/y", &signers(&key)),
            Err(DsseError::PayloadType { .. })
        ));
    }

    #[test]
    fn a_key_listed_twice_counts_once() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let twice = Signers {
            keys: vec![key.verifying_key(); 2],
            threshold: 2,
        };
        let error = signed(&key, b"x").verify("text/x", &twice).unwrap_err();
        assert!(matches!(error, DsseError::Threshold { valid: 1, threshold: 2 }));
    }

    #[test]
    fn a_threshold_of_zero_is_never_satisfied() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let none = Signers {
            keys: vec![],
            threshold: 0,
        };
        assert!(signed(&key, b"x").verify("text/x", &none).is_err());
    }

    proptest! {
        #[test]
        fn every_payload_comes_back(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            let key = SigningKey::from_bytes(&[1; 32]);
            let envelope = Envelope::from_json(&signed(&key, &payload).to_json()).unwrap();
            prop_assert_eq!(envelope.verify("text/x", &signers(&key)).unwrap(), payload);
        }

        #[test]
        fn a_changed_byte_is_refused(at in 0..20_usize, bit in 0..8_u8) {
            let key = SigningKey::from_bytes(&[1; 32]);
            let mut envelope = signed(&key, &[7; 20]);
            let mut payload = STANDARD.decode(&envelope.payload).unwrap();
            payload[at] ^= 1 << bit;
            envelope.payload = STANDARD.encode(payload);
            prop_assert!(envelope.verify("text/x", &signers(&key)).is_err());
        }
    }
}
