//! The decisions about devices that ask to enrol.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, State},
    response::Redirect,
};
use skerry_shared::digest::Digest;

use super::{Console, PageError, sign_in::Confirmed};
use crate::{
    api::CalledBy,
    app::Change,
    audit::By,
    devices::keys::{self, KeyState, NewKey},
};

pub(super) async fn approve(
    State(console): State<Console>,
    CalledBy(by): CalledBy,
    Path(fingerprint): Path<String>,
    Confirmed(_): Confirmed,
) -> Result<Redirect, PageError> {
    decide(&console, &fingerprint, KeyState::Approved, by).await
}

pub(super) async fn reject(
    State(console): State<Console>,
    CalledBy(by): CalledBy,
    Path(fingerprint): Path<String>,
    Confirmed(_): Confirmed,
) -> Result<Redirect, PageError> {
    decide(&console, &fingerprint, KeyState::Rejected, by).await
}

async fn decide(console: &Console, fingerprint: &str, state: KeyState, by: By) -> Result<Redirect, PageError> {
    let missing = |_| PageError::NotFound("No device has asked with this key.".to_owned());
    let key = NewKey {
        fingerprint: Digest::from_hex(fingerprint).map_err(missing)?,
        device: None,
        labels: BTreeMap::new(),
    };
    keys::decide(&console.app.core, key, state, by).await?;
    console.app.changes.send(Change::DeviceKeys);
    Ok(Redirect::to("/"))
}
