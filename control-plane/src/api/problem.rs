//! Problem details (RFC 9457): what a client learns about a failed call.

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use skerry_shared::error::chain;
use utoipa::ToSchema;

use crate::{
    access::{AccessError, Actor, Role},
    blob::BlobError,
    db::DbError,
    devices::DeviceError,
    publish::PublishError,
    registry::RegistryError,
    rollouts::RolloutError,
    training::TrainingError,
    transfer::TransferError,
};

/// A failed call: a status, a stable type, and words.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    kind: &'static str,
    title: &'static str,
    detail: String,
    /// When to come again, in seconds.
    retry_after: Option<u64>,
}

/// The body of every failed call (RFC 9457).
#[derive(Serialize, ToSchema)]
pub(super) struct ProblemDetails {
    /// A stable URN, for example `urn:skerry:problem:not-found`.
    #[serde(rename = "type")]
    kind: String,
    /// What went wrong, in words that do not change with the call.
    title: &'static str,
    /// The HTTP status again.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong with this call; may be empty.
    detail: String,
}

impl Problem {
    pub(crate) fn new(
        status: StatusCode,
        kind: &'static str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Problem {
        Problem {
            status,
            kind,
            title,
            detail: detail.into(),
            retry_after: None,
        }
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Problem {
        Problem::new(StatusCode::NOT_FOUND, "not-found", "not found", detail)
    }

    pub(crate) fn bad_request(detail: impl Into<String>) -> Problem {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "bad-request",
            "the request is malformed",
            detail,
        )
    }

    pub(crate) fn conflict(detail: impl Into<String>) -> Problem {
        Problem::new(
            StatusCode::CONFLICT,
            "conflict",
            "the request conflicts with the present state",
            detail,
        )
    }

    pub(crate) fn refused(detail: impl Into<String>) -> Problem {
        Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "refused",
            "the content is refused",
            detail,
        )
    }

    /// For a role that is too small.
    pub(crate) fn forbidden(actor: &Actor, needs: Role) -> Problem {
        let detail = format!("this call needs the role {needs}; `{}` has {}", actor.name, actor.role);
        let title = "the role does not allow it";
        Problem::new(StatusCode::FORBIDDEN, "forbidden", title, detail)
    }

    /// For somebody who asks too often.
    pub(crate) fn too_many(wait: Duration) -> Problem {
        let title = "too many requests";
        let mut problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", title, "");
        problem.retry_after = Some(wait.as_millis().div_ceil(1000).max(1) as u64);
        problem
    }

    /// For a control plane that has enough to do.
    pub(crate) fn busy(detail: impl Into<String>) -> Problem {
        let title = "the control plane has enough to do";
        let mut problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", title, detail);
        problem.retry_after = Some(1);
        problem
    }

    /// For errors whose cause is ours: the log gets the chain, the client does not.
    pub(crate) fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Problem {
        tracing::error!(error = format!("{:#}", anyhow::Error::new(error)), "a call failed");
        let title = "the control plane failed; its log says why";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", title, "")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let details = ProblemDetails {
            kind: format!("urn:skerry:problem:{}", self.kind),
            title: self.title,
            status: self.status.as_u16(),
            detail: self.detail,
        };
        let body = serde_json::to_string(&details).expect("strings and a number always encode");
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110 §11.6.1: a 401 says how to do better.
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Problem {
        Problem::internal(error)
    }
}

impl From<AccessError> for Problem {
    fn from(error: AccessError) -> Problem {
        match error {
            AccessError::NoUser(_) | AccessError::NoToken(_) => Problem::not_found(error.to_string()),
            AccessError::Exists(_) | AccessError::LastAdmin | AccessError::TooMany(_) => {
                Problem::conflict(error.to_string())
            }
            AccessError::Name(_) | AccessError::Password(_) | AccessError::Life => Problem::refused(error.to_string()),
            AccessError::RoleTooHigh { .. } | AccessError::NotYours => {
                let title = "the role does not allow it";
                Problem::new(StatusCode::FORBIDDEN, "forbidden", title, error.to_string())
            }
            AccessError::Busy => Problem::busy(error.to_string()),
            AccessError::Secret(_) => Problem::internal(error),
            AccessError::Db(error) => error.into(),
        }
    }
}

impl From<BlobError> for Problem {
    fn from(error: BlobError) -> Problem {
        match error {
            BlobError::Digest { .. } => Problem::refused(error.to_string()),
            BlobError::NotFound(_) => Problem::not_found(error.to_string()),
            BlobError::Open(_) | BlobError::Store(_) => Problem::internal(error),
        }
    }
}

impl From<TransferError> for Problem {
    fn from(error: TransferError) -> Problem {
        Problem::internal(error)
    }
}

impl From<DeviceError> for Problem {
    fn from(error: DeviceError) -> Problem {
        let forbidden = |kind| Problem::new(StatusCode::FORBIDDEN, kind, "the device is refused", error.to_string());
        match error {
            DeviceError::UnknownToken => forbidden("token-unknown"),
            DeviceError::UsedToken => forbidden("token-used"),
            DeviceError::ExpiredToken => forbidden("token-expired"),
            DeviceError::Revoked(_) => forbidden("device-revoked"),
            DeviceError::OtherKey(_) => forbidden("other-key"),
            DeviceError::RejectedKey => forbidden("key-rejected"),
            DeviceError::UnknownKey(_) => Problem::not_found(error.to_string()),
            DeviceError::TooManyPending => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too-many-pending",
                "too many devices wait",
                error.to_string(),
            ),
            DeviceError::Exists(_) | DeviceError::Enrolled(_) => Problem::conflict(error.to_string()),
            DeviceError::NotFound(_) => Problem::not_found(error.to_string()),
            DeviceError::Label(_) | DeviceError::TokenLimits => Problem::refused(error.to_string()),
            DeviceError::Random(_) => Problem::internal(error),
            DeviceError::Kept(_) => {
                let title = "the role does not allow it";
                Problem::new(StatusCode::FORBIDDEN, "forbidden", title, error.to_string())
            }
            DeviceError::Db(error) => error.into(),
        }
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Problem {
        match error {
            RegistryError::NoModel(_)
            | RegistryError::NoVersion { .. }
            | RegistryError::NoAlias { .. }
            | RegistryError::NoSignature { .. } => Problem::not_found(error.to_string()),
            RegistryError::Exists(_) | RegistryError::Approved { .. } => Problem::conflict(error.to_string()),
            RegistryError::OwnVersion(_) => {
                let title = "somebody else must do this";
                Problem::new(StatusCode::FORBIDDEN, "four-eyes", title, error.to_string())
            }
            RegistryError::BadKey(_) => Problem::refused(error.to_string()),
            RegistryError::Model(_) | RegistryError::Oms(_) => Problem::refused(chain(&error)),
            RegistryError::Blob(error) => error.into(),
            RegistryError::Db(error) => error.into(),
        }
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Problem {
        match error {
            PublishError::NotFound { .. } => Problem::not_found(error.to_string()),
            PublishError::Version { .. } => Problem::conflict(error.to_string()),
            // What the control plane lacks is for the operator to read, and holds no secret.
            PublishError::Keys(_) | PublishError::TargetsKeys(_) => Problem::conflict(error.to_string()),
            PublishError::Sign(_) | PublishError::Ended(_) => Problem::internal(error),
            PublishError::Registry(error) => error.into(),
            PublishError::Blob(error) => error.into(),
            PublishError::Db(error) => error.into(),
            PublishError::Targets(_)
            | PublishError::Root(_)
            | PublishError::NotPublished(_)
            | PublishError::TargetLost(_)
            | PublishError::NoTarget(_)
            | PublishError::IndexMismatch(_)
            | PublishError::Index(_)
            | PublishError::MissingChunk(_)
            | PublishError::Chunk(_)
            | PublishError::Manifest(_)
            | PublishError::NotThisModel { .. } => Problem::refused(chain(&error)),
        }
    }
}

impl From<TrainingError> for Problem {
    fn from(error: TrainingError) -> Problem {
        match error {
            TrainingError::NotFound(_) | TrainingError::NoArtifact { .. } => Problem::not_found(error.to_string()),
            TrainingError::Refused(_) | TrainingError::MissingBlob { .. } => Problem::refused(error.to_string()),
            TrainingError::Ended(_) => Problem::conflict(error.to_string()),
            TrainingError::QueueFull(_) => Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "queue-full",
                "the control plane has enough to do",
                error.to_string(),
            ),
            TrainingError::Random(_) | TrainingError::Folder { .. } => Problem::internal(error),
            TrainingError::Blob(error) => error.into(),
            TrainingError::Db(error) => error.into(),
        }
    }
}

impl From<RolloutError> for Problem {
    fn from(error: RolloutError) -> Problem {
        match error {
            RolloutError::NotFound(_) => Problem::not_found(error.to_string()),
            RolloutError::Invalid(_) | RolloutError::Selector(_) | RolloutError::NoDevices(_) => {
                Problem::refused(error.to_string())
            }
            RolloutError::Refused { .. }
            | RolloutError::Overlap { .. }
            | RolloutError::State { .. }
            | RolloutError::NothingToApprove(_) => Problem::conflict(error.to_string()),
            RolloutError::Unapproved(_) => {
                let title = "somebody else must approve this first";
                Problem::new(StatusCode::CONFLICT, "approval-needed", title, error.to_string())
            }
            RolloutError::Author(_) | RolloutError::NotAPerson(_) => {
                let title = "somebody else must do this";
                Problem::new(StatusCode::FORBIDDEN, "four-eyes", title, error.to_string())
            }
            RolloutError::Publish(error) => error.into(),
            RolloutError::Device(error) => error.into(),
            RolloutError::Db(error) => error.into(),
        }
    }
}
