//! The protocol over HTTP: paths, header fields, bodies.
//!
//! Clients send no content type, and some none of what they should: what is not needed is not asked for.

use std::{sync::Arc, time::Instant};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use skerry_shared::oip::{ModelMetadata, body};

use crate::serve::{
    Api, call,
    message::{ModelConfig, ModelIndex, ModelStatisticsResponse, ServerMetadataResponse},
    refusal::Refusal,
};

pub(crate) fn routes() -> Router<Arc<Api>> {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/health/live", get(async || StatusCode::OK))
        .route("/v2/health/ready", get(all_ready))
        .route("/v2/models/stats", get(all_statistics))
        .route("/v2/models/{model}", get(metadata))
        .route("/v2/models/{model}/versions/{version}", get(metadata))
        .route("/v2/models/{model}/ready", get(ready))
        .route("/v2/models/{model}/versions/{version}/ready", get(ready))
        .route("/v2/models/{model}/config", get(config))
        .route("/v2/models/{model}/versions/{version}/config", get(config))
        .route("/v2/models/{model}/stats", get(statistics))
        .route("/v2/models/{model}/versions/{version}/stats", get(statistics))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(read_only))
        .route("/v2/repository/models/{model}/unload", post(read_only))
        .route("/skerry/v1/status", get(status))
        .fallback(async || Refusal::NotFound("there is nothing at this address".to_owned()))
        .method_not_allowed_fallback(async || {
            let error = json!({"error": "this address does not take that method"});
            (StatusCode::METHOD_NOT_ALLOWED, Json(error))
        })
}

#[derive(serde::Deserialize)]
struct ModelPath {
    model: String,
    version: Option<String>,
}

impl ModelPath {
    fn version(&self) -> &str {
        self.version.as_deref().unwrap_or_default()
    }
}

async fn server(State(api): State<Arc<Api>>) -> Json<ServerMetadataResponse> {
    Json(api.server())
}

/// Ready when every model that is installed serves.
async fn all_ready(State(api): State<Arc<Api>>) -> StatusCode {
    if api.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

async fn status(State(api): State<Arc<Api>>) -> Json<Value> {
    Json(api.status())
}

async fn metadata(State(api): State<Arc<Api>>, Path(path): Path<ModelPath>) -> Result<Json<ModelMetadata>, Refusal> {
    Ok(Json(api.find(&path.model, path.version())?.bundle.metadata().clone()))
}

async fn ready(State(api): State<Arc<Api>>, Path(path): Path<ModelPath>) -> Result<StatusCode, Refusal> {
    api.find(&path.model, path.version()).map(|_| StatusCode::OK)
}

async fn config(State(api): State<Arc<Api>>, Path(path): Path<ModelPath>) -> Result<Json<ModelConfig>, Refusal> {
    let model = api.find(&path.model, path.version())?;
    Ok(Json(ModelConfig::of(model.bundle.metadata())))
}

async fn all_statistics(State(api): State<Arc<Api>>) -> Result<Json<ModelStatisticsResponse>, Refusal> {
    api.statistics("", "").map(Json)
}

async fn statistics(
    State(api): State<Arc<Api>>,
    Path(path): Path<ModelPath>,
) -> Result<Json<ModelStatisticsResponse>, Refusal> {
    api.statistics(&path.model, path.version()).map(Json)
}

async fn index(State(api): State<Arc<Api>>) -> Json<Vec<ModelIndex>> {
    Json(api.index())
}

async fn read_only() -> Refusal {
    Refusal::Bad(super::READ_ONLY.to_owned())
}

async fn infer(
    State(api): State<Arc<Api>>,
    Path(path): Path<ModelPath>,
    request: Request,
) -> Result<Response, Refusal> {
    let arrived = Instant::now();
    let model = api.find(&path.model, path.version())?;
    let (head, body) = request.into_parts();
    if let Some(encoding) = head.headers.get(header::CONTENT_ENCODING)
        && encoding != "identity"
    {
        return Err(Refusal::Encoding("send the body uncompressed".to_owned()));
    }
    let announced = number(&head.headers, &header::CONTENT_LENGTH)?;
    let json_length = number(&head.headers, &HeaderName::from_static(body::HEADER_LENGTH))?;
    let (bytes, held) = api.room.read(announced, body).await?;
    let came = Instant::now();
    let request = body::Request::parse(&bytes, json_length)?;
    // From here on the tensors are what is held.
    drop(bytes);
    request.wanted.check(&model.bundle.metadata().outputs)?;
    model.statistics.decode.add(came.elapsed());
    let deadline = call::deadline(arrived, [request.timeout, None]);
    let outputs = call::run(&model, request.inputs, held, deadline).await?;
    let ran = Instant::now();
    let answer = body::Answer {
        model: &path.model,
        version: &model.version.to_string(),
        id: request.id,
        outputs,
    };
    let encoded = answer.encode(&request.wanted)?;
    model.statistics.encode.add(ran.elapsed());
    Ok(match encoded.json_length {
        None => ([(header::CONTENT_TYPE, "application/json")], encoded.body).into_response(),
        Some(length) => {
            let headers = [
                (header::CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
                (body::HEADER_LENGTH, length.to_string()),
            ];
            (headers, encoded.body).into_response()
        }
    })
}

/// A header field that is a number, if it is there.
fn number(headers: &HeaderMap, name: &HeaderName) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number
        .map(Some)
        .ok_or_else(|| Refusal::Bad(format!("the header field `{name}` is no number")))
}
