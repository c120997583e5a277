//! Keys that may enrol without a token: those on the factory's list, and those that an operator has approved.
//!
//! A device that shows an unknown key waits here until somebody who knows its fingerprint has looked. Invariant: a key is named
//! by the digest of its public key, so that nobody can wait, or be approved, in another one's name.

use std::collections::BTreeMap;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use skerry_shared::{
    digest::Digest,
    id::{DeviceId, Platform},
};

use super::{DeviceError, check_new_labels, key_store};
use crate::{
    access::Network,
    audit::{self, By, Fact},
    db::{Db, DbError, to_json},
};

/// How long a waiting device is remembered after it last asked: it asks every minute, unless it is switched off.
const PENDING_MS: u64 = 24 * 3600 * 1000;
/// Devices that may wait at once. Whoever reaches the port can ask: more than a person would look through are refused. A network
/// that has more of the places than others gives way to them.
const PENDING_MAX: u64 = 500;

/// Where a key stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// On the factory's list: its device may enrol.
    Listed,
    /// Its device has asked and waits.
    Pending,
    /// An operator has said yes.
    Approved,
    /// An operator has said no.
    Rejected,
}

impl KeyState {
    const ALL: [KeyState; 4] = [
        KeyState::Listed,
        KeyState::Pending,
        KeyState::Approved,
        KeyState::Rejected,
    ];

    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            KeyState::Listed => "listed",
            KeyState::Pending => "pending",
            KeyState::Approved => "approved",
            KeyState::Rejected => "rejected",
        }
    }

    pub(super) fn parse(word: &str) -> Option<KeyState> {
        KeyState::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// True when a device with this key may enrol.
    fn may_enroll(self) -> bool {
        matches!(self, KeyState::Listed | KeyState::Approved)
    }
}

/// What a device that waits says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Asked {
    /// The id it asks for.
    #[schema(value_type = Option<String>)]
    pub device: Option<DeviceId>,
    /// Its platform.
    #[schema(value_type = Option<String>)]
    pub platform: Option<Platform>,
    /// Its agent's version.
    #[serde(default)]
    pub agent_version: String,
}

/// A device that shows a key and no token.
#[derive(Clone, Debug)]
pub struct Asking {
    /// The digest of its public key.
    pub fingerprint: Digest,
    /// Where it asks from.
    pub network: Network,
    /// What it says of itself.
    pub asked: Asked,
}

/// A key that may enrol without a token, or asks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceKey {
    /// The digest of the public key (SubjectPublicKeyInfo).
    pub fingerprint: Digest,
    /// Where it stands.
    pub state: KeyState,
    /// The id that its device gets, if it was given one.
    pub device: Option<DeviceId>,
    /// The labels that its device gets.
    pub labels: BTreeMap<String, String>,
    /// What its device says of itself, if it waits.
    pub asked: Asked,
    /// Since when it is known, in UTC milliseconds.
    pub created_at_ms: u64,
}

/// A key for the factory's list.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The digest of the public key.
    pub fingerprint: Digest,
    /// The id that its device gets.
    pub device: Option<DeviceId>,
    /// The labels that its device gets.
    pub labels: BTreeMap<String, String>,
}

/// What becomes of a device that shows a key and no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It may enrol, with this id if it was given one.
    Yes(Option<DeviceId>),
    /// Somebody must look first.
    Pending,
}

/// Puts keys on the factory's list, all or none. A key that waits is let in; one that was rejected is too.
///
/// # Errors
/// [`DeviceError::Label`], or the database's.
pub async fn list_keys(db: &Db, keys: Vec<NewKey>, by: By) -> Result<usize, DeviceError> {
    for key in &keys {
        check_new_labels(&key.labels)?;
    }
    db.write(move |conn| {
        for key in &keys {
            key_store::upsert(conn, key, KeyState::Listed, by.at_ms)?;
        }
        let fact = Fact::new("device_key.list", "device-keys").with("keys", keys.len());
        audit::append(conn, &by, fact)?;
        Ok(keys.len())
    })
    .await
}

/// Decides about a key that waits, or changes an earlier decision.
///
/// # Errors
/// [`DeviceError::UnknownKey`], [`DeviceError::Enrolled`] for a refusal that comes too late, [`DeviceError::Exists`] when the id is another device's, [`DeviceError::Label`], or the
/// database's.
pub async fn decide(db: &Db, key: NewKey, state: KeyState, by: By) -> Result<DeviceKey, DeviceError> {
    check_new_labels(&key.labels)?;
    db.write(move |conn| {
        let known = key_store::get(conn, &key.fingerprint)?.ok_or(DeviceError::UnknownKey(key.fingerprint))?;
        if state == KeyState::Rejected
            && let Some(device) = super::store::device_of_fingerprint(conn, &key.fingerprint)?
        {
            return Err(DeviceError::Enrolled(device));
        }
        let device = key.device.clone().or(known.device).or(known.asked.device);
        if state.may_enroll()
            && let Some(device) = &device
            && super::store::get(conn, device)?.is_some()
        {
            return Err(DeviceError::Exists(device.clone()));
        }
        let decided = NewKey { device, ..key };
        key_store::upsert(conn, &decided, state, by.at_ms)?;
        let action = if state == KeyState::Rejected {
            "device_key.reject"
        } else {
            "device_key.approve"
        };
        let mut fact = Fact::new(action, format!("device-key/{}", decided.fingerprint.to_hex()));
        if let Some(device) = &decided.device {
            fact = fact.with("device", device);
        }
        audit::append(conn, &by, fact)?;
        key_store::get(conn, &decided.fingerprint)?.ok_or(DeviceError::UnknownKey(decided.fingerprint))
    })
    .await
}

/// The keys in one state, or all, oldest first. Pending ones that have not asked for a day are left out.
///
/// # Errors
/// The database's.
pub async fn known(db: &Db, state: Option<KeyState>, now_ms: u64) -> Result<Vec<DeviceKey>, DbError> {
    db.read(move |conn| key_store::list(conn, state, now_ms)).await
}

/// Lets a device in that shows a key and no token, or lets it wait.
///
/// # Errors
/// [`DeviceError::RejectedKey`], [`DeviceError::TooManyPending`], or the database's.
pub async fn admit(db: &Db, asking: Asking, now_ms: u64) -> Result<Admitted, DeviceError> {
    db.write(move |conn| {
        let fingerprint = &asking.fingerprint;
        match key_store::get(conn, fingerprint)? {
            Some(key) if key.state.may_enroll() => return Ok(Admitted::Yes(key.device)),
            Some(key) if key.state == KeyState::Rejected => return Err(DeviceError::RejectedKey),
            Some(_) => {
                key_store::ask_again(conn, fingerprint, &asking.asked, now_ms + PENDING_MS)?;
                return Ok(Admitted::Pending);
            }
            None => {}
        }
        if key_store::waiting(conn, now_ms)? >= PENDING_MAX {
            make_place(conn, &asking.network.to_string())?;
        }
        key_store::ask(conn, &asking, now_ms, now_ms + PENDING_MS)?;
        let fact = Fact::new("device_key.ask", format!("device-key/{}", fingerprint.to_hex()));
        audit::append(conn, &By::new("a device", now_ms), fact)?;
        Ok(Admitted::Pending)
    })
    .await
}

/// Takes a place from the network that has the most, if that leaves it no fewer than this one gets then. Its newest key goes: it
/// may ask again, and those that waited before a flood began stay.
fn make_place(conn: &Connection, network: &str) -> Result<(), DeviceError> {
    let own = key_store::waiting_of(conn, network)?;
    match key_store::fullest_network(conn)? {
        Some((fullest, count)) if own + 1 < count => Ok(key_store::forget_newest_of(conn, &fullest)?),
        _ => Err(DeviceError::TooManyPending),
    }
}

/// The labels for the device of a key that may enrol, in the transaction that enrols it.
pub(super) fn labels_of(conn: &Connection, fingerprint: &Digest) -> Result<String, DeviceError> {
    match key_store::get(conn, fingerprint)? {
        Some(key) if key.state.may_enroll() => Ok(to_json(&key.labels)),
        Some(key) if key.state == KeyState::Rejected => Err(DeviceError::RejectedKey),
        _ => Err(DeviceError::UnknownKey(*fingerprint)),
    }
}
