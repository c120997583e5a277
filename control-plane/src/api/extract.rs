//! Extractors whose rejections are problem details: axum's own answer in plain text.
//!
//! They do not have axum's names: `utoipa` would document arguments of those by itself, without words.

use axum::{
    Json,
    body::Bytes,
    extract::{
        FromRequest, FromRequestParts, Request,
        rejection::{BytesRejection, JsonRejection},
    },
    http::{StatusCode, request::Parts},
};
use serde::de::DeserializeOwned;

use super::Problem;
use crate::{access::Actor, app::now_ms, audit::By};

/// Who calls; the guard in front of every protected route has found out.
pub(crate) struct Caller(pub(crate) Actor);

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let actor = parts.extensions.get::<Actor>().cloned();
        actor
            .map(Caller)
            .ok_or_else(|| Problem::internal(std::io::Error::other("a route without a guard asks who calls")))
    }
}

/// Who calls, and when the call came: what a change is recorded with.
pub(crate) struct CalledBy(pub(crate) By);

impl<S: Send + Sync> FromRequestParts<S> for CalledBy {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Caller(actor) = Caller::from_request_parts(parts, state).await?;
        Ok(CalledBy(actor.by(now_ms())))
    }
}

/// The parameters of the path.
pub(crate) struct UrlPath<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for UrlPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(UrlPath(value)),
            Err(rejection) => Err(Problem::bad_request(rejection.body_text())),
        }
    }
}

/// The parameters of the query string.
pub(crate) struct UrlQuery<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for UrlQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(UrlQuery(value)),
            Err(rejection) => Err(Problem::bad_request(rejection.body_text())),
        }
    }
}

/// A JSON body.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(JsonBody(value)),
            Err(JsonRejection::JsonDataError(error)) => Err(Problem::refused(error.body_text())),
            Err(JsonRejection::BytesRejection(rejection)) => Err(unread(&rejection)),
            Err(error) => Err(Problem::bad_request(error.body_text())),
        }
    }
}

/// A body of bytes, as large as the route allows.
pub(crate) struct Content(pub(crate) Bytes);

impl<S: Send + Sync> FromRequest<S> for Content {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        match Bytes::from_request(request, state).await {
            Ok(bytes) => Ok(Content(bytes)),
            Err(rejection) => Err(unread(&rejection)),
        }
    }
}

fn unread(rejection: &BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let detail = "the body is larger than this call allows";
        return Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "the body is too large",
            detail,
        );
    }
    Problem::bad_request("the body broke off")
}
