//! Why a request got no answer, in the words of both protocols.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use skerry_inference::InferError;
use skerry_shared::oip::body::BodyError;
use tonic::{Code, Status};

/// The least that the header can say; a line of requests on a device is gone in less.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// A request that got no answer, with the sentence for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No such model or version.
    NotFound(String),
    /// The request is at fault.
    Bad(String),
    /// More than a request may have.
    TooLarge(String),
    /// An encoding that is not here.
    Encoding(String),
    /// No room now.
    Busy(&'static str),
    /// Its body did not come in time.
    Slow,
    /// It waited, or ran, until its own time limit.
    Deadline,
    /// The model is at fault, or we are.
    Failed(String),
}

impl Refusal {
    pub(crate) fn sentence(&self) -> &str {
        match self {
            Refusal::NotFound(words)
            | Refusal::Bad(words)
            | Refusal::TooLarge(words)
            | Refusal::Encoding(words)
            | Refusal::Failed(words) => words,
            Refusal::Busy(words) => words,
            Refusal::Slow => "the request's body took too long",
            Refusal::Deadline => "the request's timeout has passed",
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Refusal::NotFound(_) => StatusCode::NOT_FOUND,
            Refusal::Bad(_) => StatusCode::BAD_REQUEST,
            Refusal::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::Encoding(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Refusal::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Slow => StatusCode::REQUEST_TIMEOUT,
            Refusal::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Refusal::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn code(&self) -> Code {
        match self {
            Refusal::NotFound(_) => Code::NotFound,
            Refusal::Bad(_) | Refusal::TooLarge(_) => Code::InvalidArgument,
            Refusal::Encoding(_) => Code::Unimplemented,
            Refusal::Busy(_) => Code::ResourceExhausted,
            Refusal::Slow | Refusal::Deadline => Code::DeadlineExceeded,
            Refusal::Failed(_) => Code::Internal,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(json!({"error": self.sentence()}))).into_response();
        if let Refusal::Busy(_) = self {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        Status::new(refusal.code(), refusal.sentence())
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Refusal {
        Refusal::Bad(error.to_string())
    }
}

impl From<InferError> for Refusal {
    fn from(error: InferError) -> Refusal {
        let words = error.to_string();
        if error.is_bad_request() {
            Refusal::Bad(words)
        } else {
            Refusal::Failed(words)
        }
    }
}
