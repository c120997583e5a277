//! Enrolment tokens: who has one may enrol, and knows by it whom to trust.
//!
//! Invariant: the secret leaves this module only in the text that is shown once; the database has its digest.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use skerry_shared::digest::Digest;

use super::{DeviceError, create_token};
use crate::{audit::By, db::Db};

/// A month: longer tokens are forgotten, and found by somebody else.
pub const LIFE_MAX: Duration = Duration::from_secs(31 * 86_400);

/// The digests of what a device trusts. They travel with the token, on the way that the operator trusts.
#[derive(Clone, Copy, Debug)]
pub struct Pins {
    /// Of the newest root metadata.
    pub root: Digest,
    /// Of the certificate of the fleet's authority.
    pub authority: Digest,
}

/// A token to make.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// How long it can be used.
    pub life: Duration,
    /// How many devices may use it.
    pub uses: u32,
    /// Labels for the devices that use it.
    pub labels: BTreeMap<String, String>,
}

/// A token that was made. It has no `Debug`: its text is a secret.
pub struct Made {
    /// The whole text, `skt_SECRET.ROOT.AUTHORITY`.
    pub text: String,
    /// UTC milliseconds.
    pub expires_at_ms: u64,
}

/// Makes a token.
///
/// # Errors
/// [`DeviceError::TokenLimits`], [`DeviceError::Label`], or the database's.
pub async fn make(db: &Db, new: NewToken, pins: Pins, by: By) -> Result<Made, DeviceError> {
    if new.uses == 0 || new.life < Duration::from_secs(1) || new.life > LIFE_MAX {
        return Err(DeviceError::TokenLimits);
    }
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).map_err(DeviceError::Random)?;
    let expires_at_ms = by.at_ms + new.life.as_millis() as u64;
    create_token(db, Digest::of(&secret), new.labels, new.uses, expires_at_ms, by).await?;
    let (root, authority) = (pins.root.to_hex(), pins.authority.to_hex());
    Ok(Made {
        text: format!("skt_{}.{root}.{authority}", URL_SAFE_NO_PAD.encode(secret)),
        expires_at_ms,
    })
}
