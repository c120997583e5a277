//! The API as clients see it, without a socket: real routes, a real model that gives back what it gets.

use axum::{
    body::Body,
    http::{Request, Response, StatusCode},
};
use bytes::{BufMut, BytesMut};
use http_body_util::BodyExt;
use proptest::prelude::*;
use prost::Message;
use skerry_inference::{LoadedBundle, Runtime};
use skerry_shared::{
    bundle::{Lineage, Manifest, Pipeline, Resource, ResourceKind, Stage, StageKind},
    digest::Digest,
    id::ModelVersion,
    oip::{Datatype, TensorMetadata, body::HEADER_LENGTH},
    schema::SchemaVersion,
};
use tonic::Status;
use tower::ServiceExt;

use super::{
    message::{
        Flag, InferInputTensor, InferTensorContents, ModelConfigResponse, ModelInferRequest, ModelInferResponse,
        ModelMetadataResponse, ModelRequest, ModelStatisticsResponse, ModelStreamInferResponse,
        RepositoryIndexResponse,
    },
    *,
};
use crate::serving::admission::Limits;

/// What the model takes: `x0`, `x1`… and gives as `y0`, `y1`…; with ONNX's numbers for the datatypes.
const TENSORS: [(Datatype, u8); 3] = [(Datatype::Fp32, 1), (Datatype::Int64, 7), (Datatype::Bool, 9)];

/// An ONNX file with an `Identity` for each tensor, all of shape `[-1]`.
fn identity_model() -> Vec<u8> {
    let field = |number: u8, content: &[u8]| {
        let length = u8::try_from(content.len() & 0x7f).unwrap() | if content.len() > 127 { 0x80 } else { 0 };
        let more = (content.len() > 127).then_some((content.len() >> 7) as u8);
        [&[number << 3 | 2, length], more.as_slice(), content].concat()
    };
    let number = |number: u8, value: u8| vec![number << 3, value];
    let value = |name: &str, element: u8| {
        let shape = field(2, &field(1, &field(2, b"n")));
        let tensor = field(2, &field(1, &[number(1, element), shape].concat()));
        [field(1, name.as_bytes()), tensor].concat()
    };
    let mut graph = Vec::new();
    for (at, (_, element)) in TENSORS.iter().enumerate() {
        let (x, y) = (format!("x{at}"), format!("y{at}"));
        let node = [field(1, x.as_bytes()), field(2, y.as_bytes()), field(4, b"Identity")];
        graph.extend(field(1, &node.concat()));
        graph.extend(field(11, &value(&x, *element)));
        graph.extend(field(12, &value(&y, *element)));
    }
    graph.extend(field(2, b"g"));
    [number(1, 8), field(7, &graph), field(8, &number(2, 13))].concat()
}

fn bundle(version: u64) -> LoadedBundle {
    let onnx = identity_model();
    let metadata = |prefix: &str| {
        let tensor = |(at, (datatype, _)): (usize, &(Datatype, u8))| TensorMetadata {
            name: format!("{prefix}{at}"),
            datatype: *datatype,
            shape: vec![-1],
        };
        TENSORS.iter().enumerate().map(tensor).collect()
    };
    let resource = "model.onnx".parse().unwrap();
    let manifest = Manifest {
        schema: SchemaVersion::CURRENT,
        model: "m".parse().unwrap(),
        version: ModelVersion(version),
        created_at_ms: 0,
        resources: vec![Resource {
            name: "model.onnx".parse().unwrap(),
            digest: Digest::of(&onnx),
            size_bytes: onnx.len() as u64,
            kind: ResourceKind::OnnxModel,
        }],
        pipeline: Pipeline {
            inputs: metadata("x"),
            outputs: metadata("y"),
            stages: vec![Stage {
                name: "identity".parse().unwrap(),
                kind: StageKind::Model { resource },
                batch: None,
            }],
            edges: vec![],
        },
        golden: None,
        lineage: Lineage::default(),
    };
    LoadedBundle::load(&Runtime::new().unwrap(), &manifest, &mut |_| Ok(onnx.clone())).unwrap()
}

struct Server {
    router: Router,
    serving: Arc<Serving>,
    _senders: (watch::Sender<Value>, watch::Sender<TelemetryStatus>),
}

impl Server {
    /// A server of `m`, version 3.
    fn new() -> Server {
        Server::with(Limits { sessions: 2, queue: 4 })
    }

    fn with(limits: Limits) -> Server {
        let serving = Arc::new(Serving::new(limits));
        serving.replace("m".parse().unwrap(), ModelVersion(3), bundle(3));
        let (agent_sender, agent) = watch::channel(json!({"bundles": [{"model": "m"}]}));
        let (telemetry_sender, telemetry) = watch::channel(TelemetryStatus::default());
        Server {
            router: router(Arc::clone(&serving), Statuses { agent, telemetry }),
            serving,
            _senders: (agent_sender, telemetry_sender),
        }
    }

    fn model(&self) -> Arc<ServingModel> {
        self.serving.get(&"m".parse().unwrap()).unwrap()
    }

    async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn http(&self, method: &str, path: &str, body: impl Into<Body>) -> (StatusCode, Value) {
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        let response = self.send(request).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// One gRPC call with these messages: the messages that come back, and the status.
    async fn grpc<A: Message + Default>(
        &self,
        method: &str,
        headers: &[(&str, &str)],
        messages: &[Vec<u8>],
    ) -> (Vec<A>, Status) {
        let mut framed = BytesMut::new();
        for message in messages {
            framed.put_u8(0);
            framed.put_u32(message.len() as u32);
            framed.put_slice(message);
        }
        let mut request = Request::post(format!("/inference.GRPCInferenceService/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send(request.body(Body::from(framed.freeze())).unwrap()).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned().unwrap_or(head.headers);
        let status = Status::from_header_map(&trailers).expect("a status");
        let mut bytes = body.to_bytes();
        let mut answers = Vec::new();
        while !bytes.is_empty() {
            let mut message = bytes.split_to(5 + u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize);
            answers.push(A::decode(message.split_off(5)).unwrap());
        }
        (answers, status)
    }

    async fn grpc_one<A: Message + Default>(&self, method: &str, message: &impl Message) -> Result<A, Status> {
        let (mut answers, status) = self.grpc(method, &[], &[message.encode_to_vec()]).await;
        match status.code() {
            tonic::Code::Ok => Ok(answers.pop().unwrap()),
            _ => Err(status),
        }
    }
}

const INFER: &str = "/v2/models/m/infer";

fn json_request() -> Value {
    json!({"id": "7", "inputs": [
        {"name": "x0", "datatype": "FP32", "shape": [2], "data": [1.5, -2.5]},
        {"name": "x1", "datatype": "INT64", "shape": [1], "data": [-9]},
        {"name": "x2", "datatype": "BOOL", "shape": [2], "data": [true, false]},
    ]})
}

fn grpc_request() -> ModelInferRequest {
    let input = |name: &str, datatype: &str, shape: i64| InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: vec![shape],
        contents: None,
    };
    let x0 = [1.5_f32.to_le_bytes(), (-2.5_f32).to_le_bytes()].concat();
    ModelInferRequest {
        model_name: "m".to_owned(),
        id: "7".to_owned(),
        inputs: vec![input("x0", "FP32", 2), input("x1", "INT64", 1), input("x2", "BOOL", 2)],
        raw_input_contents: vec![x0.into(), (-9_i64).to_le_bytes().to_vec().into(), vec![1, 0].into()],
        ..ModelInferRequest::default()
    }
}

#[tokio::test]
async fn a_request_in_json_is_answered_in_json() {
    let (status, answer) = Server::new().http("POST", INFER, json_request().to_string()).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(
        (&answer["id"], &answer["model_name"], &answer["model_version"]),
        (&json!("7"), &json!("m"), &json!("3"))
    );
    let data = |at: usize| answer["outputs"][at]["data"].clone();
    assert_eq!(
        [data(0), data(1), data(2)],
        [json!([1.5, -2.5]), json!([-9]), json!([true, false])]
    );
}

#[tokio::test]
async fn each_output_comes_as_it_was_asked_for_and_no_other() {
    let header = json!({
        "inputs": [
            {"name": "x0", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
            {"name": "x1", "datatype": "INT64", "shape": [1], "data": [5]},
            {"name": "x2", "datatype": "BOOL", "shape": [1], "parameters": {"binary_data_size": 1}},
        ],
        "outputs": [{"name": "y2", "parameters": {"binary_data": true}}, {"name": "y1"}],
    });
    let header = header.to_string();
    let body = [header.as_bytes(), &1_f32.to_le_bytes(), &[1]].concat();
    let request = Request::post(INFER).header(HEADER_LENGTH, header.len());
    let response = Server::new().send(request.body(body.into()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
    let length: usize = response.headers()[HEADER_LENGTH].to_str().unwrap().parse().unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let (json, binary) = body.split_at(length);
    let json: Value = serde_json::from_slice(json).unwrap();
    assert_eq!(json["outputs"][0]["name"], "y2");
    assert_eq!(
        json["outputs"][1],
        json!({"name": "y1", "datatype": "INT64", "shape": [1], "data": [5]})
    );
    assert_eq!((json["outputs"].as_array().unwrap().len(), binary), (2, &[1][..]));
}

#[tokio::test]
async fn what_clients_look_up_is_there() {
    let server = Server::new();
    let get = async |path: &str| {
        let (status, answer) = server.http("GET", path, "").await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        answer
    };
    for path in [
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/m/ready",
        "/v2/models/m/versions/3/ready",
    ] {
        get(path).await;
    }
    assert_eq!(get("/v2").await["name"], "skerry-agent");
    let metadata = get("/v2/models/m").await;
    assert_eq!(
        (&metadata["versions"], &metadata["inputs"][1]["shape"]),
        (&json!(["3"]), &json!([-1]))
    );
    let config = get("/v2/models/m/config").await;
    assert_eq!(
        config["input"][1],
        json!({"name": "x1", "data_type": "TYPE_INT64", "dims": [-1]})
    );
    server.http("POST", INFER, json_request().to_string()).await;
    server.http("POST", INFER, r#"{"inputs": []}"#).await;
    for path in [
        "/v2/models/stats",
        "/v2/models/m/stats",
        "/v2/models/m/versions/3/stats",
    ] {
        let statistics = &get(path).await["model_stats"][0];
        assert_eq!(
            (&statistics["name"], &statistics["inference_count"]),
            (&json!("m"), &json!(1))
        );
        let counts = &statistics["inference_stats"];
        assert_eq!(
            (&counts["success"]["count"], &counts["fail"]["count"]),
            (&json!(1), &json!(1))
        );
        assert!(counts["compute_infer"]["ns"].as_u64() > Some(0), "{counts}");
    }
    let (_, index) = server.http("POST", "/v2/repository/index", "").await;
    assert_eq!(
        index,
        json!([{"name": "m", "version": "3", "state": "READY", "reason": ""}])
    );
}

#[tokio::test]
async fn what_is_wrong_is_said_in_words() {
    let server = Server::new();
    let cases = [
        ("GET", "/v2/models/n", "", StatusCode::NOT_FOUND, "`n`"),
        (
            "GET",
            "/v2/models/m/versions/2",
            "",
            StatusCode::NOT_FOUND,
            "serves version 3",
        ),
        ("GET", "/v2/nothing", "", StatusCode::NOT_FOUND, "nothing"),
        ("GET", INFER, "", StatusCode::METHOD_NOT_ALLOWED, "method"),
        ("POST", INFER, "{", StatusCode::BAD_REQUEST, "EOF"),
        (
            "POST",
            INFER,
            r#"{"inputs": []}"#,
            StatusCode::BAD_REQUEST,
            "`x0` is missing",
        ),
        (
            "POST",
            "/v2/repository/models/m/load",
            "",
            StatusCode::BAD_REQUEST,
            "rollout",
        ),
    ];
    for (method, path, body, expected, word) in cases {
        let (status, answer) = server.http(method, path, body).await;
        let error = answer["error"].as_str().unwrap_or_default();
        assert_eq!(status, expected, "{path}: {answer}");
        assert!(error.contains(word), "`{word}` is missing in: {error}");
    }
    let packed = Request::post(INFER)
        .header("content-encoding", "gzip")
        .body(Body::from("x"));
    let response = server.send(packed.unwrap()).await;
    assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let mut unknown = json_request();
    unknown["outputs"] = json!([{"name": "y9"}]);
    let (status, answer) = server.http("POST", INFER, unknown.to_string()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    let counted = server.model().statistics.infer.count();
    assert_eq!(
        counted, 0,
        "an output that is not there is refused before the model runs"
    );
}

#[tokio::test]
async fn a_full_line_is_told_to_come_again_over_both_protocols() {
    let server = Server::with(Limits { sessions: 1, queue: 0 });
    let running = server.model().admission.enter().await.unwrap();
    let response = server
        .send(Request::post(INFER).body(json_request().to_string().into()).unwrap())
        .await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["retry-after"], "1");
    let status = server
        .grpc_one::<ModelInferResponse>("ModelInfer", &grpc_request())
        .await;
    assert_eq!(status.unwrap_err().code(), tonic::Code::ResourceExhausted);
    drop(running);
    let (status, _) = server.http("POST", INFER, json_request().to_string()).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn whoever_waits_beyond_the_own_timeout_is_told_so_and_leaves_the_line() {
    let server = Server::with(Limits { sessions: 1, queue: 1 });
    let running = server.model().admission.enter().await.unwrap();
    let mut request = json_request();
    request["parameters"] = json!({"timeout": 1});
    let (status, answer) = server.http("POST", INFER, request.to_string()).await;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{answer}");
    let message = grpc_request().encode_to_vec();
    let (_, status) = server
        .grpc::<ModelInferResponse>("ModelInfer", &[("grpc-timeout", "1u")], &[message])
        .await;
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded);
    drop(running);
    assert!(server.model().admission.enter().await.is_ok());
}

#[tokio::test]
async fn a_new_version_takes_over_the_line() {
    let server = Server::with(Limits { sessions: 1, queue: 0 });
    let _running = server.model().admission.enter().await.unwrap();
    server.serving.replace("m".parse().unwrap(), ModelVersion(4), bundle(4));
    let (status, answer) = server.http("POST", INFER, json_request().to_string()).await;
    assert_eq!(
        status,
        StatusCode::TOO_MANY_REQUESTS,
        "the old version still computes: {answer}"
    );
}

#[tokio::test]
async fn grpc_answers_raw_in_the_order_of_the_outputs() {
    let server = Server::new();
    let request = grpc_request();
    let answer: ModelInferResponse = server.grpc_one("ModelInfer", &request).await.unwrap();
    assert_eq!(answer.raw_output_contents, request.raw_input_contents);
    assert_eq!((answer.id.as_str(), answer.model_version.as_str()), ("7", "3"));
    assert_eq!(
        (answer.outputs[1].name.as_str(), answer.outputs[1].datatype.as_str()),
        ("y1", "INT64")
    );
    let mut typed = request.clone();
    typed.raw_input_contents.clear();
    let contents = |at: usize| match at {
        0 => InferTensorContents {
            fp32s: vec![1.5, -2.5],
            ..Default::default()
        },
        1 => InferTensorContents {
            int64s: vec![-9],
            ..Default::default()
        },
        _ => InferTensorContents {
            bools: vec![true, false],
            ..Default::default()
        },
    };
    for (at, input) in typed.inputs.iter_mut().enumerate() {
        input.contents = Some(contents(at));
    }
    let same: ModelInferResponse = server.grpc_one("ModelInfer", &typed).await.unwrap();
    assert_eq!(same.raw_output_contents, request.raw_input_contents);
}

#[tokio::test]
async fn a_stream_goes_on_after_a_request_that_failed() {
    let server = Server::new();
    let mut wrong = grpc_request();
    wrong.inputs.pop();
    wrong.raw_input_contents.pop();
    wrong.id = "8".to_owned();
    let messages = [grpc_request(), wrong, grpc_request()].map(|message| message.encode_to_vec());
    let (answers, status) = server
        .grpc::<ModelStreamInferResponse>("ModelStreamInfer", &[], &messages)
        .await;
    assert_eq!((answers.len(), status.code()), (3, tonic::Code::Ok));
    assert!(answers[1].error_message.contains("`x2` is missing"), "{:?}", answers[1]);
    assert_eq!(answers[1].infer_response.as_ref().unwrap().id, "8");
    assert_eq!(answers[2].infer_response.as_ref().unwrap().raw_output_contents.len(), 3);
}

#[tokio::test]
async fn grpc_has_the_same_to_look_up() {
    let server = Server::new();
    let model = |name: &str| ModelRequest {
        name: name.to_owned(),
        version: String::new(),
    };
    let empty = message::Empty {};
    for method in ["ServerLive", "ServerReady"] {
        assert!(server.grpc_one::<Flag>(method, &empty).await.unwrap().value, "{method}");
    }
    assert!(server.grpc_one::<Flag>("ModelReady", &model("m")).await.unwrap().value);
    assert!(!server.grpc_one::<Flag>("ModelReady", &model("n")).await.unwrap().value);
    let metadata: ModelMetadataResponse = server.grpc_one("ModelMetadata", &model("m")).await.unwrap();
    assert_eq!(
        (&metadata.versions[..], metadata.outputs.len()),
        (&["3".to_owned()][..], 3)
    );
    let config: ModelConfigResponse = server.grpc_one("ModelConfig", &model("m")).await.unwrap();
    assert_eq!(
        config.config.unwrap().input[2].data_type,
        message::DataType::Bool as i32
    );
    let statistics: ModelStatisticsResponse = server.grpc_one("ModelStatistics", &model("")).await.unwrap();
    assert_eq!(statistics.model_stats[0].name, "m");
    let index: RepositoryIndexResponse = server.grpc_one("RepositoryIndex", &empty).await.unwrap();
    assert_eq!(index.models[0].state, "READY");
    let unknown = server
        .grpc_one::<ModelMetadataResponse>("ModelMetadata", &model("n"))
        .await;
    assert_eq!(unknown.unwrap_err().code(), tonic::Code::NotFound);
    let load = server
        .grpc_one::<Flag>("RepositoryModelLoad", &empty)
        .await
        .unwrap_err();
    assert!(load.message().contains("rollout"), "{load}");
    let unknown = server.grpc_one::<Flag>("Nothing", &empty).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::Unimplemented);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_get_an_answer_or_are_refused_in_words(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        keep in any::<prop::sample::Index>(),
        length in prop::option::of(0..400_usize),
    ) {
        // Half of them begin as a true request does.
        let json = json_request().to_string();
        let whole = [&json.as_bytes()[..keep.index(json.len())], &bytes].concat();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let server = server_for_any_bytes();
            for body in [whole, bytes] {
                let mut request = Request::post(INFER);
                if let Some(length) = length {
                    request = request.header(HEADER_LENGTH, length);
                }
                let response = server.send(request.body(Body::from(body.clone())).unwrap()).await;
                assert!(response.status().is_client_error(), "{}", response.status());
                let answer = response.into_body().collect().await.unwrap().to_bytes();
                let answer: Value = serde_json::from_slice(&answer).unwrap();
                assert!(!answer["error"].as_str().unwrap().is_empty());
                let (_, status) = server.grpc::<ModelInferResponse>("ModelInfer", &[], &[body]).await;
                assert!(matches!(status.code(), tonic::Code::InvalidArgument | tonic::Code::NotFound), "{status}");
            }
        });
    }
}

/// Made once: loading a model takes longer than all requests.
fn server_for_any_bytes() -> &'static Server {
    static SERVER: std::sync::OnceLock<Server> = std::sync::OnceLock::new();
    SERVER.get_or_init(Server::new)
}
