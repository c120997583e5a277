//! The decisions about devices that ask to enrol.

use std::collections::BTreeMap;

use axum::{
    Extension, Form,
    extract::{Path, State, rejection::FormRejection},
    http::HeaderMap,
    response::Redirect,
};
use skerry_shared::digest::Digest;

use super::{
    Console, PageError,
    session::Visit,
    sign_in::{CsrfForm, check_form},
};
use crate::{
    api::CalledBy,
    app::Change,
    audit::By,
    devices::keys::{self, KeyState, NewKey},
};

type FormResult = Result<Form<CsrfForm>, FormRejection>;

pub(super) async fn approve(
    State(console): State<Console>,
    CalledBy(by): CalledBy,
    Extension(visit): Extension<Visit>,
    Path(fingerprint): Path<String>,
    headers: HeaderMap,
    form: FormResult,
) -> Result<Redirect, PageError> {
    check_form(&visit, &headers, form)?;
    decide(&console, &fingerprint, KeyState::Approved, by).await
}

pub(super) async fn reject(
    State(console): State<Console>,
    CalledBy(by): CalledBy,
    Extension(visit): Extension<Visit>,
    Path(fingerprint): Path<String>,
    headers: HeaderMap,
    form: FormResult,
) -> Result<Redirect, PageError> {
    check_form(&visit, &headers, form)?;
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
