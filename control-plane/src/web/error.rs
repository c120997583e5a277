//! What a person sees when a page cannot be shown.

use askama::Template;
use axum::{
    http::StatusCode,
    response::{Html, IntoResponse, Response},
};

use crate::{
    access::{AccessError, Role},
    db::DbError,
    devices::DeviceError,
    rollouts::RolloutError,
};

/// A failed page.
#[derive(Debug)]
pub(super) enum PageError {
    /// There is no such thing.
    NotFound(String),
    /// The request did not come from one of our pages.
    Forbidden,
    /// The role is too small.
    Role {
        /// What it would take.
        needs: Role,
        /// What there is.
        has: Role,
    },
    /// The present state does not allow it.
    Conflict(String),
    /// The content of a form is refused.
    Refused(String),
    /// Too many failed sign-ins; wait so many milliseconds.
    Wait(u64),
    /// The form or address is malformed.
    Malformed,
    /// Too many of something.
    Busy(&'static str),
    /// Ours; the log says why.
    Internal,
}

impl PageError {
    /// For errors whose cause is ours: the log gets the chain, the page does not.
    pub(super) fn internal(error: impl std::error::Error + Send + Sync + 'static) -> PageError {
        tracing::error!(error = format!("{:#}", anyhow::Error::new(error)), "a page failed");
        PageError::Internal
    }
}

impl From<DbError> for PageError {
    fn from(error: DbError) -> PageError {
        PageError::internal(error)
    }
}

impl From<AccessError> for PageError {
    fn from(error: AccessError) -> PageError {
        match error {
            AccessError::NoUser(_) | AccessError::NoToken(_) => PageError::NotFound(sentence(&error)),
            AccessError::Exists(_) | AccessError::LastAdmin | AccessError::TooMany(_) => {
                PageError::Conflict(sentence(&error))
            }
            AccessError::Name(_)
            | AccessError::Password(_)
            | AccessError::Life
            | AccessError::RoleTooHigh { .. }
            | AccessError::NotYours => PageError::Refused(sentence(&error)),
            AccessError::Busy => PageError::Busy("Too many passwords are being checked."),
            AccessError::Secret(_) => PageError::internal(error),
            AccessError::Db(error) => error.into(),
        }
    }
}

impl From<DeviceError> for PageError {
    fn from(error: DeviceError) -> PageError {
        match error {
            DeviceError::NotFound(_) | DeviceError::UnknownKey(_) => PageError::NotFound(sentence(&error)),
            DeviceError::Exists(_) | DeviceError::Enrolled(_) => PageError::Conflict(sentence(&error)),
            DeviceError::Label(_) | DeviceError::TokenLimits => PageError::Refused(sentence(&error)),
            other => PageError::internal(other),
        }
    }
}

impl From<RolloutError> for PageError {
    fn from(error: RolloutError) -> PageError {
        match error {
            RolloutError::NotFound(_) => PageError::NotFound(sentence(&error)),
            RolloutError::State { .. }
            | RolloutError::Overlap { .. }
            | RolloutError::Unapproved(_)
            | RolloutError::NothingToApprove(_)
            | RolloutError::Author(_)
            | RolloutError::NotAPerson(_) => PageError::Conflict(sentence(&error)),
            other => PageError::internal(other),
        }
    }
}

/// An error's words as a sentence.
fn sentence(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), chars.as_str()),
        None => text,
    }
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage {
    title: &'static str,
    text: String,
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let (status, title, text) = match self {
            PageError::NotFound(text) => (StatusCode::NOT_FOUND, "Not found", text),
            PageError::Forbidden => {
                let text = "The request did not come from a page of this console, or the page was too old. Go back, \
                            reload, and try again.";
                (StatusCode::FORBIDDEN, "Refused", text.to_owned())
            }
            PageError::Role { needs, has } => {
                let text = format!("This needs the role {needs}, and you have signed in as {has}.");
                (StatusCode::FORBIDDEN, "Not allowed", text)
            }
            PageError::Conflict(text) => (StatusCode::CONFLICT, "Not possible now", text),
            PageError::Refused(text) => (StatusCode::UNPROCESSABLE_ENTITY, "Refused", text),
            PageError::Wait(ms) => {
                let seconds = ms.div_ceil(1000);
                let text = format!("Too many failed sign-ins. Try again in {seconds} s.");
                (StatusCode::TOO_MANY_REQUESTS, "Please wait", text)
            }
            PageError::Malformed => {
                let text = "The request is malformed.".to_owned();
                (StatusCode::BAD_REQUEST, "Not understood", text)
            }
            PageError::Busy(text) => (StatusCode::SERVICE_UNAVAILABLE, "Busy", text.to_owned()),
            PageError::Internal => {
                let text = "The control plane failed; its log says why.".to_owned();
                (StatusCode::INTERNAL_SERVER_ERROR, "Failed", text)
            }
        };
        match (ErrorPage { title, text }).render() {
            Ok(html) => (status, Html(html)).into_response(),
            Err(_) => status.into_response(),
        }
    }
}
