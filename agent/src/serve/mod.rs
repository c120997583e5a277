//! The local Open Inference Protocol, version 2, over HTTP on loopback.
//!
//! Invariant: a request is bounded in size and in number, and its failure is an answer.

mod oip;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use skerry_inference::InferError;
use skerry_shared::oip::ModelMetadata;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    serving::{Serving, ServingModel},
    telemetry::spool::TelemetryStatus,
};

/// 16 MiB: a camera frame as floats, with room.
const BODY_LIMIT_BYTES: usize = 16 * 1024 * 1024;
/// Requests at once: each holds its tensors.
const CONCURRENT_REQUESTS: usize = 16;
/// 32 MiB for the bodies of all requests together: what busy clients can make the device hold.
const BODIES_BYTES: usize = 2 * BODY_LIMIT_BYTES;

/// Clients are on the same board: a body that takes longer holds room that others need.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

struct Api {
    serving: Arc<Serving>,
    statuses: Statuses,
    permits: Arc<Semaphore>,
    /// One permit a byte of body.
    bodies: Arc<Semaphore>,
}

/// What the agent says about itself at any time.
pub(crate) struct Statuses {
    pub(crate) agent: watch::Receiver<Value>,
    pub(crate) telemetry: watch::Receiver<TelemetryStatus>,
}

/// Serves until `shutdown`.
pub(crate) async fn run(listener: TcpListener, serving: Arc<Serving>, statuses: Statuses, shutdown: CancellationToken) {
    let api = Arc::new(Api {
        serving,
        statuses,
        permits: Arc::new(Semaphore::new(CONCURRENT_REQUESTS)),
        bodies: Arc::new(Semaphore::new(BODIES_BYTES)),
    });
    let router = Router::new()
        .route("/v2", get(server))
        .route("/v2/health/live", get(async || StatusCode::OK))
        .route("/v2/health/ready", get(all_ready))
        .route("/v2/models/{model}", get(metadata))
        .route("/v2/models/{model}/versions/{version}", get(metadata))
        .route("/v2/models/{model}/ready", get(ready))
        .route("/v2/models/{model}/versions/{version}/ready", get(ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/skerry/v1/status", get(status_of))
        .fallback(async || error(StatusCode::NOT_FOUND, "there is nothing at this address"))
        .layer(DefaultBodyLimit::max(BODY_LIMIT_BYTES))
        .with_state(api);
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        // Small answers must not wait for more.
        let _ = stream.set_nodelay(true);
    });
    if let Err(error) = axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
    {
        tracing::error!(%error, "the local API ended");
    }
}

fn error(status: StatusCode, message: impl Into<String>) -> Response {
    (status, Json(json!({"error": message.into()}))).into_response()
}

/// Ready when every model that is installed serves.
async fn all_ready(State(api): State<Arc<Api>>) -> StatusCode {
    let status = api.statuses.agent.borrow().clone();
    let serves = |name: &Value| {
        let name = name.as_str().and_then(|name| name.parse().ok());
        name.is_some_and(|name| api.serving.get(&name).is_some())
    };
    let bundles = status["bundles"].as_array();
    match bundles.is_some_and(|bundles| bundles.iter().all(|bundle| serves(&bundle["model"]))) {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn server() -> Json<Value> {
    Json(json!({"name": "skerry-agent", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"]}))
}

async fn status_of(State(api): State<Arc<Api>>) -> Json<Value> {
    let mut status = api.statuses.agent.borrow().clone();
    status["inferences"] = api.serving.metrics().requests().into();
    status["inference_errors"] = api.serving.metrics().errors().into();
    status["telemetry"] = json!(*api.statuses.telemetry.borrow());
    Json(status)
}

#[derive(serde::Deserialize)]
struct ModelPath {
    model: String,
    version: Option<String>,
}

// The error is the answer itself, made once a request at most.
#[allow(clippy::result_large_err)]
fn find(api: &Api, path: &ModelPath) -> Result<Arc<ServingModel>, Response> {
    let model = path.model.parse().ok().and_then(|name| api.serving.get(&name));
    let model = model.ok_or_else(|| error(StatusCode::NOT_FOUND, format!("there is no model `{}`", path.model)))?;
    match &path.version {
        Some(version) if *version != model.version.to_string() => {
            let message = format!(
                "model `{}` serves version {}, not `{version}`",
                path.model, model.version
            );
            Err(error(StatusCode::NOT_FOUND, message))
        }
        _ => Ok(model),
    }
}

async fn metadata(State(api): State<Arc<Api>>, Path(path): Path<ModelPath>) -> Result<Json<ModelMetadata>, Response> {
    Ok(Json(find(&api, &path)?.bundle.metadata().clone()))
}

async fn ready(State(api): State<Arc<Api>>, Path(path): Path<ModelPath>) -> Result<StatusCode, Response> {
    find(&api, &path).map(|_| StatusCode::OK)
}

async fn infer(
    State(api): State<Arc<Api>>,
    Path(path): Path<ModelPath>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Response> {
    let model = find(&api, &path)?;
    let busy = |_| error(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once");
    let permit = Arc::clone(&api.permits).try_acquire_owned().map_err(busy)?;
    // Paid for before it is read; a body without a length may have the most.
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    let announced = announced.and_then(|text| text.parse().ok()).unwrap_or(BODY_LIMIT_BYTES);
    let too_large = || {
        let message = format!("a request has at most {BODY_LIMIT_BYTES} bytes");
        error(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    if announced > BODY_LIMIT_BYTES {
        return Err(too_large());
    }
    let held = Arc::clone(&api.bodies)
        .try_acquire_many_owned(announced as u32)
        .map_err(busy)?;
    let Ok(body) = tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, announced)).await else {
        return Err(error(StatusCode::REQUEST_TIMEOUT, "the request's body took too long"));
    };
    let body = body.map_err(|_| too_large())?;
    let json_length = match headers.get(oip::HEADER_LENGTH) {
        None => None,
        Some(value) => {
            let length = value.to_str().ok().and_then(|text| text.parse::<usize>().ok());
            Some(length.ok_or_else(|| error(StatusCode::BAD_REQUEST, "Inference-Header-Content-Length is no number"))?)
        }
    };
    let request = oip::parse_request(&body, json_length).map_err(|e| error(StatusCode::BAD_REQUEST, e.to_string()))?;
    let (inputs, wanted, id) = (request.inputs, request.wanted, request.id);
    let running = Arc::clone(&model);
    // The permits go with the inference: a client that gives up does not end it.
    let inference = move || {
        let _held = (permit, held);
        running.infer(inputs)
    };
    let answer = tokio::task::spawn_blocking(inference).await;
    let answer = answer.map_err(|_| error(StatusCode::INTERNAL_SERVER_ERROR, "inference ended badly"))?;
    let outputs = answer.map_err(|e| {
        let bad = e.is_bad_request();
        error(
            if bad {
                StatusCode::BAD_REQUEST
            } else {
                StatusCode::INTERNAL_SERVER_ERROR
            },
            sentence(&e),
        )
    })?;
    let answered = oip::Answer {
        model: &path.model,
        version: &model.version.to_string(),
        id,
        outputs,
    };
    let encoded = oip::encode_response(answered, &wanted).map_err(|e| error(StatusCode::BAD_REQUEST, e.to_string()))?;
    Ok(match encoded.json_length {
        None => ([(header::CONTENT_TYPE, "application/json")], encoded.body).into_response(),
        Some(length) => {
            let headers = [
                (header::CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
                (oip::HEADER_LENGTH, length.to_string()),
            ];
            (headers, encoded.body).into_response()
        }
    })
}

fn sentence(error: &InferError) -> String {
    match error {
        InferError::Step { stage, source } => format!("step `{stage}`: {source}"),
        other => other.to_string(),
    }
}
