//! A signing key in a file: one JSON object that names its role, readable by its owner only.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use skerry_tuf::SigningKey;

#[derive(Serialize, Deserialize)]
struct KeyFile {
    keytype: String,
    role: String,
    seed: String,
}

/// Encodes a key for its file.
pub fn encode(role: &str, key: &SigningKey) -> Vec<u8> {
    let file = KeyFile {
        keytype: "ed25519".to_owned(),
        role: role.to_owned(),
        seed: hex::encode(key.seed()),
    };
    serde_json::to_vec(&file).expect("a key file always encodes")
}

/// Reads the key of `role`.
///
/// # Errors
/// When the file cannot be read, is no key file, or holds the key of another role.
pub fn read(path: &Path, role: &str) -> anyhow::Result<SigningKey> {
    let bytes = fs::read(path).with_context(|| format!("cannot read key {}", path.display()))?;
    // The parser's own words could repeat a part of the secret.
    let Ok(file) = serde_json::from_slice::<KeyFile>(&bytes) else {
        bail!("{} is no key file", path.display());
    };
    if file.keytype != "ed25519" || file.role != role {
        bail!(
            "{} is the key of role `{}`, expected `{role}`",
            path.display(),
            file.role
        );
    }
    let mut seed = [0; 32];
    if hex::decode_to_slice(&file.seed, &mut seed).is_err() {
        bail!("{} is no key file", path.display());
    }
    Ok(SigningKey::from_seed(&seed))
}
