//! The outer layers of a model signature: a Sigstore bundle, version 0.3, around a DSSE envelope.
//!
//! Pure. Invariant: the statement is not looked at before its signature is good.

use base64::{Engine, engine::general_purpose::STANDARD};
use p256::ecdsa::{DerSignature, signature::Verifier};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skerry_shared::{digest::Digest, dsse::pae};

use super::{LIMIT_BYTES, OmsError, PublicKey, SecretKey, Statement, short, statement::expect};

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// A statement that a trusted key signed.
#[derive(Clone, Debug)]
pub struct Verified {
    statement: Statement,
    fingerprint: String,
}

impl Verified {
    /// What was signed.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// Whether a file of this content was signed, under whatever name.
    pub fn covers(&self, digest: &Digest) -> bool {
        self.statement
            .resources
            .iter()
            .any(|resource| resource.digest == *digest)
    }

    /// Who signed: the fingerprint of the key.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public_key: Option<KeyHint>,
    #[serde(default, skip_serializing)]
    certificate: Option<Value>,
    #[serde(default, skip_serializing)]
    x509_certificate_chain: Option<Value>,
    #[serde(default)]
    tlog_entries: Vec<Value>,
}

#[derive(Serialize, Deserialize)]
struct KeyHint {
    /// Absent in signatures of before version 1.0.
    #[serde(default)]
    hint: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Signature {
    sig: String,
    #[serde(default)]
    keyid: String,
}

/// Checks a signature against the keys that count.
///
/// # Errors
/// [`OmsError`]: it is too large, of another kind, by nobody in `keys`, changed, or it breaks a rule of the format.
pub fn verify(bytes: &[u8], keys: &[PublicKey]) -> Result<Verified, OmsError> {
    if bytes.len() > LIMIT_BYTES {
        return Err(OmsError::TooLarge(bytes.len()));
    }
    let bundle: Bundle = serde_json::from_slice(bytes).map_err(|source| OmsError::Parse { part: "bundle", source })?;
    expect("media type", &bundle.media_type, MEDIA_TYPE)?;
    let candidates = candidates(&bundle.verification_material, keys)?;
    let envelope = bundle.dsse_envelope;
    expect("payload type", &envelope.payload_type, PAYLOAD_TYPE)?;
    let [signature] = envelope.signatures.as_slice() else {
        let text = format!("has {} signatures, it must have one", envelope.signatures.len());
        return Err(OmsError::Malformed(text));
    };
    let payload = decode("payload", &envelope.payload)?;
    let message = pae(PAYLOAD_TYPE, &payload);
    let signature = decode("signature", &signature.sig)?;
    let signer = DerSignature::try_from(signature.as_slice()).ok().and_then(|signature| {
        let signed = |key: &&&PublicKey| key.key.verify(&message, &signature).is_ok();
        candidates.iter().find(signed)
    });
    let Some(signer) = signer else {
        let fingerprints: Vec<&str> = candidates.iter().map(|key| key.fingerprint()).collect();
        return Err(OmsError::BadSignature {
            fingerprint: fingerprints.join(" or "),
        });
    };
    Ok(Verified {
        statement: Statement::parse(&payload)?,
        fingerprint: signer.fingerprint().to_owned(),
    })
}

/// The keys that may have made the signature: the one that it names, or all when it is too old to name one.
fn candidates<'a>(material: &Material, keys: &'a [PublicKey]) -> Result<Vec<&'a PublicKey>, OmsError> {
    let method = match material {
        Material {
            public_key: Some(_),
            certificate: None,
            x509_certificate_chain: None,
            ..
        } => "key",
        Material {
            public_key: None,
            certificate: None,
            x509_certificate_chain: None,
            ..
        } => "none",
        _ => "certificate",
    };
    expect("method", method, "key")?;
    let hint = material
        .public_key
        .as_ref()
        .and_then(|key| key.hint.as_deref())
        .unwrap_or_default();
    let found: Vec<&PublicKey> = match hint {
        "" => keys.iter().collect(),
        hint => keys.iter().filter(|key| key.fingerprint() == hint).collect(),
    };
    if found.is_empty() {
        let hint = if hint.is_empty() { "unknown" } else { hint };
        return Err(OmsError::UnknownKey { hint: short(hint) });
    }
    Ok(found)
}

/// Signs a statement; the result is the file that travels beside the model.
pub fn sign(statement: &Statement, key: &SecretKey) -> Vec<u8> {
    let payload = statement.to_json();
    let signature = Signature {
        sig: STANDARD.encode(key.sign(&pae(PAYLOAD_TYPE, &payload))),
        keyid: String::new(),
    };
    let bundle = Bundle {
        media_type: MEDIA_TYPE.to_owned(),
        verification_material: Material {
            public_key: Some(KeyHint {
                hint: Some(key.public().fingerprint().to_owned()),
            }),
            certificate: None,
            x509_certificate_chain: None,
            tlog_entries: Vec::new(),
        },
        dsse_envelope: Envelope {
            payload: STANDARD.encode(payload),
            payload_type: PAYLOAD_TYPE.to_owned(),
            signatures: vec![signature],
        },
    };
    serde_json::to_vec(&bundle).expect("strings and lists always encode")
}

fn decode(what: &'static str, text: &str) -> Result<Vec<u8>, OmsError> {
    STANDARD
        .decode(text)
        .map_err(|_| OmsError::Malformed(format!("has a {what} that is not base64")))
}
