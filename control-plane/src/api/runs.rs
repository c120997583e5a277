//! Routes of training runs and experiments.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderName, StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use skerry_shared::id::{ModelName, RunId};

use super::{Problem, problem::JsonBody};
use crate::{
    app::App,
    training::{
        LogEnd,
        run::{InputFile, NewRun, Run},
    },
};

/// What a script printed is not ours: a browser must not take it for a page.
const NO_SNIFFING: (HeaderName, &str) = (header::X_CONTENT_TYPE_OPTIONS, "nosniff");

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/experiments", get(experiments))
        .route("/runs", get(list).post(submit))
        .route("/runs/{id}", get(show))
        .route("/runs/{id}/metrics", get(metrics))
        .route("/runs/{id}/logs", get(logs))
        .route("/runs/{id}/cancel", post(cancel))
        .route("/runs/{id}/artifacts/{*path}", get(artifact))
}

fn parse_id(text: &str) -> Result<RunId, Problem> {
    text.parse().map_err(|_| Problem::not_found("there is no such run"))
}

async fn experiments(State(app): State<Arc<App>>) -> Result<Json<Value>, Problem> {
    Ok(Json(json!({"experiments": app.training.experiments().await?})))
}

#[derive(Deserialize)]
struct ListQuery {
    experiment: Option<String>,
}

async fn list(State(app): State<Arc<App>>, Query(query): Query<ListQuery>) -> Result<Json<Value>, Problem> {
    Ok(Json(json!({"runs": app.training.list(query.experiment).await?})))
}

#[derive(Deserialize)]
struct SubmitBody {
    #[serde(default = "default_experiment")]
    experiment: String,
    script: InputFile,
    #[serde(default)]
    inputs: Vec<InputFile>,
    #[serde(default)]
    params: BTreeMap<String, String>,
    #[serde(default = "one_hour")]
    timeout_seconds: u64,
    register_as: Option<ModelName>,
}

fn default_experiment() -> String {
    "default".to_owned()
}

fn one_hour() -> u64 {
    3600
}

async fn submit(
    State(app): State<Arc<App>>,
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
    let run = app.training.submit(new).await?;
    tracing::info!(run.id = %run.id, "a run is submitted");
    Ok((StatusCode::CREATED, Json(run)))
}

async fn show(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Run>, Problem> {
    Ok(Json(app.training.get(&parse_id(&id)?).await?))
}

async fn metrics(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    Ok(Json(json!({"metrics": app.training.metrics(&parse_id(&id)?).await?})))
}

#[derive(Deserialize)]
struct LogsQuery {
    #[serde(default)]
    follow: bool,
}

async fn logs(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<impl IntoResponse, Problem> {
    let until = if query.follow { LogEnd::RunEnded } else { LogEnd::Now };
    let log = app.training.log(&parse_id(&id)?, until).await?;
    let text = (header::CONTENT_TYPE, "text/plain; charset=utf-8");
    Ok(([text, NO_SNIFFING], Body::from_stream(log)))
}

async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Run>, Problem> {
    Ok(Json(app.training.cancel(&parse_id(&id)?).await?))
}

async fn artifact(
    State(app): State<Arc<App>>,
    Path((id, path)): Path<(String, String)>,
) -> Result<impl IntoResponse, Problem> {
    let content = app.training.artifact(&parse_id(&id)?, &path).await?;
    let bytes = (header::CONTENT_TYPE, "application/octet-stream");
    Ok(([bytes, NO_SNIFFING], content))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read;

    use skerry_shared::digest::Digest;

    use super::*;
    use crate::{
        app::Server,
        cli::{
            client::{Client, ClientError},
            keys,
        },
        config::{Config, Mqtt},
    };

    /// Calls a control plane as the command line does, from a thread of its own.
    async fn with_server(calls: impl FnOnce(Client) + Send + 'static) {
        let folder = tempfile::tempdir().unwrap();
        keys::init(&folder.path().join("keys")).unwrap();
        let any = ([127, 0, 0, 1], 0).into();
        let server = Server::start(Config {
            http_bind: any,
            mqtt: Mqtt::Embedded { bind: any },
            signing_dir: folder.path().join("keys/online"),
            ..Config::new(&folder.path().join("data"))
        });
        let server = server.await.unwrap();
        let token = server.first_api_token().map(str::to_owned);
        let client = Client::new(&format!("http://{}", server.http_address()), token);
        let called = tokio::task::spawn_blocking(move || calls(client)).await;
        server.shutdown().await;
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
