//! Devices: how they enrol, what they should run (desired), what they say they run (reported).
//!
//! Not the connection to them: that is the `mqtt` edge, which publishes every desired state that is newer than the published
//! one. Invariant: a device's generation only grows.

mod key_store;
pub mod keys;
pub mod store;
pub mod token;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skerry_shared::{
    desired::{BundleAssignment, Reported},
    digest::Digest,
    id::{DeviceId, Generation, ModelName, ModelVersion, Platform},
};

use crate::{
    audit::{self, By, Fact},
    db::{Db, DbError},
};

/// A device as the control plane knows it.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// The operator's labels.
    pub labels: BTreeMap<String, String>,
    /// Its platform, as it said at enrolment.
    pub platform: Platform,
    /// Its agent's version, as it said last.
    pub agent_version: String,
    /// True while its connection lives.
    pub connected: bool,
    /// UTC milliseconds.
    pub enrolled_at_ms: u64,
    /// When its newest certificate ends, in UTC milliseconds; `None` for a device from before there were certificates.
    pub certificate_not_after_ms: Option<u64>,
    /// When it lost its access, in UTC milliseconds.
    pub revoked_at_ms: Option<u64>,
    /// When two agents with its identity were last seen to take turns, in UTC milliseconds: a copy, or a stolen key.
    pub duplicate_seen_at_ms: Option<u64>,
    /// The server's time of its last message, in UTC milliseconds.
    pub last_seen_at_ms: Option<u64>,
    /// The generation of its desired state.
    pub generation: Generation,
    /// What it should run.
    pub desired: Vec<BundleAssignment>,
    /// What it said last.
    pub reported: Option<Reported>,
}

impl Device {
    /// The version of a model that it should run.
    pub fn desired_version(&self, model: &ModelName) -> Option<ModelVersion> {
        self.desired
            .iter()
            .find(|assignment| assignment.model == *model)
            .map(|assignment| assignment.version)
    }
}

/// Why a device call failed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The enrolment token is not known.
    #[error("the enrolment token is not known")]
    UnknownToken,
    /// The enrolment token has no uses left.
    #[error("the enrolment token has been used")]
    UsedToken,
    /// The enrolment token's time is over.
    #[error("the enrolment token has expired")]
    ExpiredToken,
    /// Another device has this id.
    #[error("device `{0}` is enrolled already")]
    Exists(DeviceId),
    /// The device has lost its access.
    #[error("device `{0}` has been revoked")]
    Revoked(DeviceId),
    /// The certificate or the request is of another key than the device's.
    #[error("the key is not the one with which device `{0}` has enrolled")]
    OtherKey(DeviceId),
    /// There is no such device.
    #[error("there is no device `{0}`")]
    NotFound(DeviceId),
    /// The key's device has enrolled: a decision about the key changes nothing any more.
    #[error("device `{0}` has enrolled with this key; revoke the device instead")]
    Enrolled(DeviceId),
    /// No device has shown this key, and no list has it.
    #[error("no device has asked with the key {0}, and it is on no list")]
    UnknownKey(Digest),
    /// An operator has said no to this key.
    #[error("an operator has rejected this device's key")]
    RejectedKey,
    /// Too many devices wait for an operator.
    #[error("too many devices wait to be approved; try again later, or use a token")]
    TooManyPending,
    /// A token that nobody could use, or that would live too long.
    #[error("a token needs at least one use and a life of 1 second to 31 days")]
    TokenLimits,
    /// The system has no randomness for a secret.
    #[error("no randomness from the system")]
    Random(#[source] getrandom::Error),
    /// A label that would not survive a selector.
    #[error("`{0}` is no label: 1 to 63 of A-Z, a-z, 0-9, `-`, `_`, `.` and `/`")]
    Label(String),
    /// Labels that only an admin may take away.
    #[error("only an admin may take a device out of {0}")]
    Kept(Selector),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// Labels that a device must have; none matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector(BTreeMap<String, String>);

impl Selector {
    /// True when `labels` has all of them.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// The labels themselves.
    pub fn into_labels(self) -> BTreeMap<String, String> {
        self.0
    }
}

/// A text that is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no label selector; for example site=north,kind=wrist")]
pub struct InvalidSelector(String);

impl std::str::FromStr for Selector {
    type Err = InvalidSelector;
    fn from_str(text: &str) -> Result<Self, InvalidSelector> {
        let mut labels = BTreeMap::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            match part.split_once('=') {
                Some((key, value)) if is_label(key.trim()) && is_label(value.trim()) => {
                    labels.insert(key.trim().to_owned(), value.trim().to_owned());
                }
                _ => return Err(InvalidSelector(text.chars().take(200).collect())),
            }
        }
        Ok(Selector(labels))
    }
}

impl TryFrom<String> for Selector {
    type Error = InvalidSelector;
    fn try_from(text: String) -> Result<Self, InvalidSelector> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> String {
        selector.to_string()
    }
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, (key, value)) in self.0.iter().enumerate() {
            let comma = if position > 0 { "," } else { "" };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

/// True for a label's key or value.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
}

/// What lets a device enrol.
#[derive(Clone, Debug)]
pub enum Credential {
    /// The secret part of a token.
    Token(Vec<u8>),
    /// Its key, by the digest of the public one: on the factory's list, or approved ([`keys`]).
    Key(Digest),
}

/// What a device says when it enrols.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// What lets it in.
    pub credential: Credential,
    /// The id it asks for.
    pub device: DeviceId,
    /// Its public key (SubjectPublicKeyInfo), in hex.
    pub public_key: String,
    /// Its platform.
    pub platform: Platform,
    /// Its agent's version.
    pub agent_version: String,
    /// When the certificate ends that it is given, in UTC milliseconds.
    pub certificate_not_after_ms: u64,
}

/// The device that has enrolled already with this credential and this key in hex, if it has.
///
/// # Errors
/// The database's.
pub async fn enrolled_with(db: &Db, credential: &Credential, public_key: &str) -> Result<Option<DeviceId>, DbError> {
    let (credential, key) = (credential.clone(), public_key.to_owned());
    db.read(move |conn| match credential {
        Credential::Token(secret) => store::enrolled_with(conn, &Digest::of(&secret), &key),
        Credential::Key(_) => store::device_of_key(conn, &key),
    })
    .await
}

/// Enrols a device. The same device may do it again with the same key, while its token lives or its key is allowed, which
/// costs no use: the answer with its certificate may never have reached its disk.
///
/// # Errors
/// [`DeviceError`]; a token keeps its use then.
pub async fn enroll(db: &Db, enrolment: Enrolment, now_ms: u64) -> Result<DeviceId, DeviceError> {
    db.write(move |conn| {
        let is_new = store::get(conn, &enrolment.device)?.is_none();
        let by_what = match &enrolment.credential {
            Credential::Token(secret) => {
                store::enroll_by_token(conn, &enrolment, &Digest::of(secret), now_ms)?;
                token_name(&Digest::of(secret))
            }
            Credential::Key(fingerprint) => {
                store::enroll_by_key(conn, &enrolment, fingerprint, now_ms)?;
                format!("device-key/{}", fingerprint.to_hex())
            }
        };
        // A device may ask again and again, and no entry is ever deleted.
        if !is_new {
            return Ok(enrolment.device);
        }
        let fact = Fact::new("device.enroll", format!("device/{}", enrolment.device))
            .with("by", by_what)
            .with("public_key", &enrolment.public_key)
            .with("platform", &enrolment.platform);
        audit::append(conn, &By::device(&enrolment.device, now_ms), fact)?;
        Ok(enrolment.device)
    })
    .await
}

/// Notes that two agents with one identity take turns.
///
/// # Errors
/// The database's.
pub async fn record_duplicate(db: &Db, id: &DeviceId, now_ms: u64) -> Result<(), DbError> {
    let id = id.clone();
    db.write(move |conn| {
        let before = store::get(conn, &id)?.and_then(|device| device.duplicate_seen_at_ms);
        store::set_duplicate(conn, &id, now_ms)?;
        // Once an hour in the log: they may take turns every second.
        if before.is_none_or(|at| now_ms.saturating_sub(at) > 3_600_000) {
            let fact = Fact::new("device.duplicate", format!("device/{id}"));
            audit::append(conn, &By::control_plane(now_ms), fact)?;
        }
        Ok(())
    })
    .await
}

/// Renewals that stand in the audit log have ends at least so far apart.
const RENEWALS_APART_MS: u64 = 3_600_000;

/// Lets a device have a new certificate until `not_after_ms`, for the key that it enrolled with.
///
/// # Errors
/// [`DeviceError::NotFound`], [`DeviceError::Revoked`], [`DeviceError::OtherKey`], or the database's.
pub async fn renew(
    db: &Db,
    id: &DeviceId,
    public_key: String,
    not_after_ms: u64,
    now_ms: u64,
) -> Result<(), DeviceError> {
    let id = id.clone();
    db.write(move |conn| {
        match store::admission(conn, &id)? {
            None => return Err(DeviceError::NotFound(id)),
            Some(known) if known.revoked => return Err(DeviceError::Revoked(id)),
            Some(known) if known.public_key != public_key => return Err(DeviceError::OtherKey(id)),
            Some(_) => {}
        }
        let before = store::get(conn, &id)?.and_then(|device| device.certificate_not_after_ms);
        store::set_certificate_end(conn, &id, not_after_ms)?;
        // A device that renews all the time must not fill the log, from which nothing is deleted.
        if before.is_some_and(|before| before.abs_diff(not_after_ms) < RENEWALS_APART_MS) {
            return Ok(());
        }
        let fact = Fact::new("device.renew", format!("device/{id}")).with("not_after_ms", not_after_ms);
        Ok(audit::append(conn, &By::device(&id, now_ms), fact)?)
    })
    .await
}

/// Takes a device's access away, for good. Whoever calls ends its connection after that. True if it had access.
///
/// # Errors
/// [`DeviceError::NotFound`], or the database's.
pub async fn revoke(db: &Db, id: &DeviceId, by: By) -> Result<bool, DeviceError> {
    let id = id.clone();
    db.write(move |conn| {
        let known = store::admission(conn, &id)?.ok_or_else(|| DeviceError::NotFound(id.clone()))?;
        if !known.revoked {
            store::revoke(conn, &id, by.at_ms)?;
            audit::append(conn, &by, Fact::new("device.revoke", format!("device/{id}")))?;
        }
        Ok(!known.revoked)
    })
    .await
}

/// What decides whether a device gets in.
#[derive(Clone, Debug)]
pub struct Admission {
    /// The key that it enrolled with (SubjectPublicKeyInfo), in hex.
    pub public_key: String,
    /// True when it has lost its access.
    pub revoked: bool,
}

/// Stores an enrolment token by the digest of its secret; [`token::make`] makes one.
///
/// # Errors
/// [`DeviceError::Label`], or the database's.
pub async fn create_token(
    db: &Db,
    secret_hash: Digest,
    labels: BTreeMap<String, String>,
    uses: u32,
    expires_at_ms: u64,
    by: By,
) -> Result<(), DeviceError> {
    check_new_labels(&labels)?;
    db.write(move |conn| {
        store::insert_token(conn, &secret_hash, &labels, uses, by.at_ms, expires_at_ms)?;
        let fact = Fact::new("device_token.create", token_name(&secret_hash))
            .with("uses", uses)
            .with("labels", Selector(labels))
            .with("expires_at_ms", expires_at_ms);
        Ok(audit::append(conn, &by, fact)?)
    })
    .await
}

/// How the audit log names an enrolment token: by the beginning of its secret's digest.
fn token_name(secret_hash: &Digest) -> String {
    format!("device-token/{}", &secret_hash.to_hex()[..12])
}

fn check_new_labels(labels: &BTreeMap<String, String>) -> Result<(), DeviceError> {
    check_labels(labels.iter().map(|(key, value)| (key.as_str(), Some(value.as_str()))))
}

fn check_labels<'a>(labels: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> Result<(), DeviceError> {
    for (key, value) in labels {
        for text in [Some(key), value].into_iter().flatten() {
            if !is_label(text) {
                return Err(DeviceError::Label(text.chars().take(80).collect()));
            }
        }
    }
    Ok(())
}

/// The devices that match.
///
/// # Errors
/// The database's.
pub async fn list(db: &Db, selector: &Selector) -> Result<Vec<Device>, DbError> {
    let mut devices = db.read(store::list).await?;
    devices.retain(|device| selector.matches(&device.labels));
    Ok(devices)
}

/// One device.
///
/// # Errors
/// [`DeviceError::NotFound`], or the database's.
pub async fn get(db: &Db, id: &DeviceId) -> Result<Device, DeviceError> {
    let id = id.clone();
    db.read(move |conn| store::get(conn, &id)?.ok_or(DeviceError::NotFound(id)))
        .await
}

/// Sets and removes labels. A device that `kept` matches must go on matching it: whoever could take a device out of production
/// for a moment could roll out to it without anybody else's word.
///
/// # Errors
/// [`DeviceError::NotFound`], [`DeviceError::Label`], [`DeviceError::Kept`], or the database's.
pub async fn set_labels(
    db: &Db,
    id: &DeviceId,
    changes: BTreeMap<String, Option<String>>,
    kept: Option<Selector>,
    by: By,
) -> Result<(), DeviceError> {
    check_labels(changes.iter().map(|(key, value)| (key.as_str(), value.as_deref())))?;
    let id = id.clone();
    db.write(move |conn| {
        let mut labels = store::get(conn, &id)?
            .ok_or_else(|| DeviceError::NotFound(id.clone()))?
            .labels;
        let before = Selector(labels.clone());
        for (key, value) in changes {
            match value {
                Some(value) => labels.insert(key, value),
                None => labels.remove(&key),
            };
        }
        if let Some(kept) = kept
            && kept.matches(&before.0)
            && !kept.matches(&labels)
        {
            return Err(DeviceError::Kept(kept));
        }
        store::set_labels(conn, &id, &labels)?;
        let fact = Fact::new("device.labels", format!("device/{id}"))
            .with("before", before)
            .with("after", Selector(labels));
        Ok(audit::append(conn, &by, fact)?)
    })
    .await
}

/// How a word of a device came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// From the device itself, at this server's time in UTC milliseconds.
    At(u64),
    /// From the broker's memory: it says nothing about when the device was last there.
    Retained,
}

impl Heard {
    fn at_ms(self) -> Option<u64> {
        match self {
            Heard::At(at_ms) => Some(at_ms),
            Heard::Retained => None,
        }
    }
}

/// What a report tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Nothing: a later one of the same start of the agent is known.
    Older,
    /// The device has accepted its newest generation.
    UpToDate,
    /// The device has not accepted its newest generation: it has not seen it, or refuses it.
    Behind,
}

/// Stores what a device said.
///
/// # Errors
/// [`DeviceError::NotFound`], or the database's.
pub async fn record_reported(db: &Db, reported: Reported, heard: Heard) -> Result<Recorded, DeviceError> {
    db.write(move |conn| store::record_reported(conn, &reported, heard.at_ms()))
        .await
}

/// Stores that devices were heard, each at its UTC milliseconds. Ids that are not enrolled are passed over.
///
/// # Errors
/// The database's.
pub async fn record_heard(db: &Db, heard: BTreeMap<DeviceId, u64>) -> Result<(), DbError> {
    db.write(move |conn| {
        heard
            .iter()
            .try_for_each(|(id, at_ms)| store::record_heard(conn, id, *at_ms))
    })
    .await
}

/// Stores whether a device's connection lives. Its end is the broker's word, not the device's.
///
/// # Errors
/// The database's.
pub async fn record_connected(db: &Db, id: &DeviceId, connected: bool, heard: Heard) -> Result<(), DbError> {
    let id = id.clone();
    let heard_at_ms = heard.at_ms().filter(|_| connected);
    db.write(move |conn| {
        store::set_connected(conn, &id, connected)?;
        heard_at_ms.map_or(Ok(()), |at_ms| store::record_heard(conn, &id, at_ms))
    })
    .await
}
