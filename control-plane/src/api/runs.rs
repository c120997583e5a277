//! Routes of training runs and experiments.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderName, StatusCode, header},
    response::IntoResponse,
};
use serde::{Deserialize, Serialize};
use skerry_shared::id::{ModelName, RunId};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Problem,
    extract::{CalledBy, JsonBody, UrlPath, UrlQuery},
};
use crate::{
    app::App,
    training::{
        LogEnd,
        run::{Experiment, InputFile, MetricPoint, NewRun, Run},
    },
};

/// What a script printed is not ours: a browser must not take it for a page.
const NO_SNIFFING: (HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(experiments))
        .routes(routes!(list, submit))
        .routes(routes!(show))
        .routes(routes!(metrics))
        .routes(routes!(logs))
        .routes(routes!(cancel))
        .routes(routes!(artifact))
}

fn parse_id(text: &str) -> Result<RunId, Problem> {
    text.parse().map_err(|_| Problem::not_found("there is no such run"))
}

#[derive(Serialize, ToSchema)]
struct ExperimentList {
    experiments: Vec<Experiment>,
}

/// Lists experiments
#[utoipa::path(get, path = "/experiments", operation_id = "list_experiments", tag = "runs",
    responses((status = 200, description = "All experiments", body = ExperimentList)))]
async fn experiments(State(app): State<Arc<App>>) -> Result<Json<ExperimentList>, Problem> {
    let experiments = app.training.experiments().await?;
    Ok(Json(ExperimentList { experiments }))
}

#[derive(Deserialize)]
struct ListQuery {
    experiment: Option<String>,
}

#[derive(Serialize, ToSchema)]
struct RunList {
    runs: Vec<Run>,
}

/// Lists runs, the newest first
#[utoipa::path(get, path = "/runs", operation_id = "list_runs", tag = "runs",
    params(("experiment" = Option<String>, Query, description = "Only of this experiment")),
    responses((status = 200, description = "The newest thousand", body = RunList)))]
async fn list(State(app): State<Arc<App>>, UrlQuery(query): UrlQuery<ListQuery>) -> Result<Json<RunList>, Problem> {
    let runs = app.training.list(query.experiment).await?;
    Ok(Json(RunList { runs }))
}

/// A run to submit.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewRun)]
struct SubmitBody {
    /// The experiment; it is made at its first use.
    #[serde(default = "default_experiment")]
    experiment: String,
    /// The script; its content must be uploaded.
    script: InputFile,
    /// The files it finds in its input folder; their content must be uploaded.
    #[serde(default)]
    inputs: Vec<InputFile>,
    /// What it gets as `--key value`.
    #[serde(default)]
    params: BTreeMap<String, String>,
    /// When it is killed.
    #[serde(default = "one_hour")]
    timeout_seconds: u64,
    /// The model whose next version `artifacts/model.onnx` becomes.
    #[schema(value_type = Option<String>)]
    register_as: Option<ModelName>,
}

fn default_experiment() -> String {
    "default".to_owned()
}

fn one_hour() -> u64 {
    3600
}

/// Submits a training run
#[utoipa::path(post, path = "/runs", operation_id = "submit_run", tag = "runs",
    request_body = SubmitBody,
    responses(
        (status = 201, description = "Scheduled", body = Run),
        (status = 422, description = "A name is refused, or content is missing; nothing is scheduled"),
        (status = 503, description = "Too many runs wait already"),
    ))]
async fn submit(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    JsonBody(body): JsonBody<SubmitBody>,
) -> Result<(StatusCode, Json<Run>), Problem> {
    let new = NewRun {
        experiment: body.experiment,
        script: body.script,
        inputs: body.inputs,
        params: body.params,
        timeout: Duration::from_secs(body.timeout_seconds),
        register_as: body.register_as,
    };
    let run = app.training.submit(new, by).await?;
    tracing::info!(run.id = %run.id, "a run is submitted");
    Ok((StatusCode::CREATED, Json(run)))
}

/// Shows a run
#[utoipa::path(get, path = "/runs/{id}", operation_id = "show_run", tag = "runs",
    params(("id" = String, Path, description = "The run")),
    responses(
        (status = 200, description = "The run", body = Run),
        (status = 404, description = "There is no such run"),
    ))]
async fn show(State(app): State<Arc<App>>, UrlPath(id): UrlPath<String>) -> Result<Json<Run>, Problem> {
    Ok(Json(app.training.get(&parse_id(&id)?).await?))
}

#[derive(Serialize, ToSchema)]
struct MetricList {
    metrics: Vec<MetricPoint>,
}

/// Shows every value of a run's metrics, in the order in which they came
#[utoipa::path(get, path = "/runs/{id}/metrics", operation_id = "run_metrics", tag = "runs",
    params(("id" = String, Path, description = "The run")),
    responses(
        (status = 200, description = "The values", body = MetricList),
        (status = 404, description = "There is no such run"),
    ))]
async fn metrics(State(app): State<Arc<App>>, UrlPath(id): UrlPath<String>) -> Result<Json<MetricList>, Problem> {
    let metrics = app.training.metrics(&parse_id(&id)?).await?;
    Ok(Json(MetricList { metrics }))
}

#[derive(Deserialize)]
struct LogsQuery {
    #[serde(default)]
    follow: bool,
}

/// Reads a run's log
#[utoipa::path(get, path = "/runs/{id}/logs", operation_id = "run_logs", tag = "runs",
    params(
        ("id" = String, Path, description = "The run"),
        ("follow" = Option<bool>, Query, description = "Go on until the run ends"),
    ),
    responses(
        (status = 200, description = "What the script has printed", body = String, content_type = "text/plain"),
        (status = 404, description = "There is no such run"),
    ))]
async fn logs(
    State(app): State<Arc<App>>,
    UrlPath(id): UrlPath<String>,
    UrlQuery(query): UrlQuery<LogsQuery>,
) -> Result<impl IntoResponse, Problem> {
    let until = if query.follow { LogEnd::RunEnded } else { LogEnd::Now };
    let log = app.training.log(&parse_id(&id)?, until).await?;
    let text = (header::CONTENT_TYPE, "text/plain; charset=utf-8");
    Ok(([text, NO_SNIFFING], Body::from_stream(log)))
}

/// Kills a run, and answers when it has ended
#[utoipa::path(post, path = "/runs/{id}/cancel", operation_id = "cancel_run", tag = "runs",
    params(("id" = String, Path, description = "The run")),
    responses(
        (status = 200, description = "The run after it has ended", body = Run),
        (status = 404, description = "There is no such run"),
        (status = 409, description = "It has ended already"),
    ))]
async fn cancel(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<Run>, Problem> {
    Ok(Json(app.training.cancel(&parse_id(&id)?, by).await?))
}

/// Downloads a file that a run made
#[utoipa::path(get, path = "/runs/{id}/artifacts/{*path}", operation_id = "run_artifact", tag = "runs",
    params(
        ("id" = String, Path, description = "The run"),
        ("path" = String, Path, description = "Its path below artifacts/"),
    ),
    responses(
        (status = 200, description = "Its content", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "There is no such run or file"),
    ))]
async fn artifact(
    State(app): State<Arc<App>>,
    UrlPath((id, path)): UrlPath<(String, String)>,
) -> Result<impl IntoResponse, Problem> {
    let content = app.training.artifact(&parse_id(&id)?, &path).await?;
    let bytes = (header::CONTENT_TYPE, "application/octet-stream");
    Ok(([bytes, NO_SNIFFING], content))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use serde_json::{Value, json};
    use skerry_shared::digest::Digest;

    use crate::{
        cli::client::{Client, ClientError},
        test_server::TestServer,
    };

    /// Calls a control plane as the command line does, from a thread of its own.
    async fn with_server(calls: impl FnOnce(Client) + Send + 'static) {
        let test = TestServer::start().await;
        let client = test.client();
        let called = tokio::task::spawn_blocking(move || calls(client)).await;
        test.server.shutdown().await;
        called.unwrap();
    }

    fn script(client: &Client, content: &str) -> Value {
        let content = format!("#!/bin/sh\n{content}");
        let digest = Digest::of(content.as_bytes());
        client.upload(&digest, content.as_bytes()).unwrap();
        json!({"name": "train.sh", "digest": digest})
    }

    fn logs(client: &Client, id: &str) -> String {
        let mut log = String::new();
        let stream = client.stream(&format!("/api/v1/runs/{id}/logs?follow=true"));
        stream.unwrap().read_to_string(&mut log).unwrap();
        log
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_run_is_submitted_followed_and_read() {
        with_server(|client| {
            let content = "echo \"$@\"; echo '{\"key\":\"accuracy\",\"value\":0.5}' > metrics.jsonl; printf 'a b' > 'artifacts/a b.txt'";
            let script = script(&client, content);
            let body = json!({"script": script, "params": {"seed": "7"}});
            let run = client.post("/api/v1/runs", &body).unwrap();
            let id = run["id"].as_str().unwrap();
            assert_eq!(run["status"], "scheduled");
            assert_eq!(logs(&client, id), "--seed 7\n");

            let run = client.get(&format!("/api/v1/runs/{id}")).unwrap();
            assert_eq!(run["status"], "finished");
            assert_eq!(run["exit_status"], 0);
            assert_eq!(run["experiment"], "default");
            assert_eq!(run["code"], script["digest"]);
            assert_eq!(run["metrics"], json!({"accuracy": 0.5}));
            let metrics = client.get(&format!("/api/v1/runs/{id}/metrics")).unwrap();
            assert_eq!(metrics["metrics"][0]["step"], 0);
            let artifact = format!("/api/v1/runs/{id}/artifacts/a%20b.txt");
            assert_eq!(client.get_bytes(&artifact).unwrap(), b"a b");
            assert_eq!(client.get("/api/v1/runs").unwrap()["runs"][0]["id"], id);
            let experiments = client.get("/api/v1/experiments").unwrap();
            assert_eq!(experiments["experiments"][0]["name"], "default");

            // It made no model, so no version of one can be said to come from it.
            let path = "../firmware-examples/activity-recognition/models/v1/model.onnx";
            let onnx = std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
            let claimed = client.post_bytes(&format!("/api/v1/models/m/versions?run_id={id}"), &onnx);
            assert!(matches!(claimed, Err(ClientError::Refused { status: 422, .. })));
            assert!(client.get("/api/v1/models/m").unwrap_err().is_not_found());

            let refused = client.post(&format!("/api/v1/runs/{id}/cancel"), &json!({}));
            assert!(matches!(refused, Err(ClientError::Refused { status: 409, .. })));
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_wrong_with_a_run_is_said() {
        with_server(|client| {
            let refusal = |body: Value| match client.post("/api/v1/runs", &body) {
                Err(ClientError::Refused {
                    status: 422, detail, ..
                }) => detail,
                other => panic!("{other:?}"),
            };
            let script = script(&client, "true");
            let unknown = Digest::of(b"unknown");
            let missing = refusal(json!({"script": {"name": "train.py", "digest": unknown}}));
            assert!(missing.contains("the content of `train.py`"), "{missing}");
            let key = refusal(json!({"script": script, "params": {"-x": "1"}}));
            assert!(key.contains("`-x` is no parameter key"), "{key}");
            let path = refusal(json!({"script": script, "inputs": [{"name": "../a", "digest": script["digest"]}]}));
            assert!(path.contains("`../a` is no plain file name"), "{path}");
            assert_eq!(client.get("/api/v1/runs").unwrap()["runs"], json!([]));
            let absent = client.get("/api/v1/runs/00000000000000000000000000000000");
            assert!(absent.unwrap_err().is_not_found());
        })
        .await;
    }
}
