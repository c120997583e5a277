//! `inference.GRPCInferenceService`: the protocol over gRPC.
//!
//! tonic frames, codes and streams; this says what each method does. Invariant: a message is checked on the wire before
//! anything is made of it, see [`codec`].

mod codec;
mod convert;

use std::{
    future::ready,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, header},
    response::Response,
    routing::post,
};
use futures_util::stream;
use http_body_util::Full;
use prost::Message;
use tonic::{Status, Streaming, server::Grpc};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::{
    serve::{
        Api, READ_ONLY, call,
        grpc::codec::InferCodec,
        message::{
            Empty, Flag, ModelConfig, ModelConfigResponse, ModelInferRequest, ModelInferResponse,
            ModelMetadataResponse, ModelRequest, ModelStreamInferResponse, RepositoryIndexResponse,
        },
        refusal::Refusal,
        room::{BODY_LIMIT_BYTES, Held},
    },
    serving::ServingModel,
};

/// Streams of inferences at once: each may hold one message beside what all others hold.
pub(crate) const STREAMS: usize = 4;
/// A request that is no inference: a model's name and its version.
const SMALL_BYTES: usize = 16 * 1024;

pub(crate) fn routes() -> Router<Arc<Api>> {
    Router::new().route("/inference.GRPCInferenceService/{method}", post(answer))
}

async fn answer(State(api): State<Arc<Api>>, Path(method): Path<String>, request: Request) -> Response {
    let find = |request: &ModelRequest| api.find(&request.name, &request.version);
    match method.as_str() {
        "ModelInfer" => infer(api, request).await,
        "ModelStreamInfer" => infer_stream(api, request).await,
        "ServerLive" => unary(&api, request, |_: Empty| Ok(Flag { value: true })).await,
        "ServerReady" => {
            let ready = |_: Empty| Ok(Flag { value: api.is_ready() });
            unary(&api, request, ready).await
        }
        "ModelReady" => {
            let ready = |model: ModelRequest| {
                let value = find(&model).is_ok();
                Ok(Flag { value })
            };
            unary(&api, request, ready).await
        }
        "ServerMetadata" => unary(&api, request, |_: Empty| Ok(api.server())).await,
        "ModelMetadata" => {
            let metadata = |model| Ok(ModelMetadataResponse::from(find(&model)?.bundle.metadata()));
            unary(&api, request, metadata).await
        }
        "ModelConfig" => {
            let config = |model| {
                let config = Some(ModelConfig::of(find(&model)?.bundle.metadata()));
                Ok(ModelConfigResponse { config })
            };
            unary(&api, request, config).await
        }
        "ModelStatistics" => {
            let statistics = |model: ModelRequest| api.statistics(&model.name, &model.version);
            unary(&api, request, statistics).await
        }
        "RepositoryIndex" => {
            let index = |_: Empty| Ok(RepositoryIndexResponse { models: api.index() });
            unary(&api, request, index).await
        }
        "RepositoryModelLoad" | "RepositoryModelUnload" => refuse(Refusal::Bad(READ_ONLY.to_owned())),
        _ => Status::unimplemented(format!("there is no method `{method}` here")).into_http(),
    }
}

fn refuse(refusal: Refusal) -> Response {
    Status::from(refusal).into_http()
}

/// One small message in, one out.
async fn unary<Q, A>(api: &Api, request: Request, answer: impl Fn(Q) -> Result<A, Refusal> + Send) -> Response
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    let (head, body) = request.into_parts();
    let (bytes, _held) = match api.room.read(announced(&head.headers), body).await {
        Ok(read) => read,
        Err(refusal) => return refuse(refusal),
    };
    let service = service_fn(move |request: tonic::Request<Q>| {
        let answered = answer(request.into_inner());
        ready(answered.map(tonic::Response::new).map_err(Status::from))
    });
    let codec = ProstCodec::<A, Q>::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(SMALL_BYTES);
    let request = Request::from_parts(head, Full::new(bytes));
    grpc.unary(service, request).await.map(Body::new)
}

async fn infer(api: Arc<Api>, request: Request) -> Response {
    let arrived = Instant::now();
    let (head, body) = request.into_parts();
    let (bytes, held) = match api.room.read(announced(&head.headers), body).await {
        Ok(read) => read,
        Err(refusal) => return refuse(refusal),
    };
    let patience = patience(&head.headers);
    let mut held = Some(held);
    let service = service_fn(move |request: tonic::Request<ModelInferRequest>| {
        let (api, held) = (Arc::clone(&api), held.take());
        async move {
            let held = held.ok_or_else(|| Status::internal("a second message in a call for one"))?;
            let answered = infer_once(&api, request.into_inner(), held, arrived, patience).await;
            answered.map(tonic::Response::new).map_err(Status::from)
        }
    });
    let mut grpc = Grpc::new(InferCodec::default()).max_decoding_message_size(BODY_LIMIT_BYTES);
    let request = Request::from_parts(head, Full::new(bytes));
    grpc.unary(service, request).await.map(Body::new)
}

/// One answer for each request, in order. What is wrong with one of them is said in its answer, and the stream goes on.
async fn infer_stream(api: Arc<Api>, request: Request) -> Response {
    let Ok(place) = Arc::clone(&api.streams).try_acquire_owned() else {
        return refuse(Refusal::Busy("too many streams are open"));
    };
    let mut place = Some(place);
    let service = service_fn(move |request: tonic::Request<Streaming<ModelInferRequest>>| {
        let state = (Arc::clone(&api), request.into_inner(), place.take());
        let answers = stream::unfold(state, async |(api, mut requests, place)| {
            let message = requests.message().await.transpose()?;
            let answer = match message {
                Ok(request) => Ok(stream_answer(&api, request).await),
                Err(status) => Err(status),
            };
            Some((answer, (api, requests, place)))
        });
        ready(Ok::<_, Status>(tonic::Response::new(answers)))
    });
    let mut grpc = Grpc::new(InferCodec::default()).max_decoding_message_size(BODY_LIMIT_BYTES);
    grpc.streaming(service, request).await.map(Body::new)
}

async fn stream_answer(api: &Api, request: ModelInferRequest) -> ModelStreamInferResponse {
    let arrived = Instant::now();
    let id = request.id.clone();
    let answered = match api.room.hold(request.encoded_len()) {
        Ok(held) => infer_once(api, request, held, arrived, None).await,
        Err(refusal) => Err(refusal),
    };
    match answered {
        Ok(answer) => ModelStreamInferResponse {
            error_message: String::new(),
            infer_response: Some(answer),
        },
        // The id is how the client knows which of its requests this is.
        Err(refusal) => ModelStreamInferResponse {
            error_message: refusal.sentence().to_owned(),
            infer_response: Some(ModelInferResponse {
                id,
                ..ModelInferResponse::default()
            }),
        },
    }
}

async fn infer_once(
    api: &Api,
    request: ModelInferRequest,
    held: Held,
    arrived: Instant,
    patience: Option<Duration>,
) -> Result<ModelInferResponse, Refusal> {
    let model: Arc<ServingModel> = api.find(&request.model_name, &request.model_version)?;
    let came = Instant::now();
    let (model_name, id) = (request.model_name.clone(), request.id.clone());
    let request = convert::read(request)?;
    request.wanted.check(&model.bundle.metadata().outputs)?;
    model.statistics.decode.add(came.elapsed());
    let deadline = call::deadline(arrived, [request.timeout, patience]);
    let outputs = call::run(&model, request.inputs, held, deadline).await?;
    let ran = Instant::now();
    let (outputs, raw_output_contents) = convert::write(request.wanted.choose(outputs)?);
    model.statistics.encode.add(ran.elapsed());
    Ok(ModelInferResponse {
        model_name,
        model_version: model.version.to_string(),
        id,
        outputs,
        raw_output_contents,
    })
}

fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// How long the client waits, by gRPC's own header field: at most eight digits and a unit.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count = digits.parse::<u64>().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_have_units() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            patience(&headers)
        };
        assert_eq!(read("20u"), Some(Duration::from_micros(20)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "S", "10", "-1S", "123456789S", "1h", "1\u{e9}"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
