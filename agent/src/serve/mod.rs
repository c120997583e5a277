//! The local Open Inference Protocol, version 2: over HTTP and over gRPC, on one port.
//!
//! Invariant: a request is bounded in size, in number and in time, and its failure is an answer.

mod call;
mod connection;
pub(crate) mod door;
mod grpc;
mod message;
mod refusal;
mod rest;
mod room;
mod stream;

use std::sync::Arc;

use axum::Router;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    serve::{
        door::Door,
        message::{
            InferStatistics, ModelIndex, ModelStatistics, ModelStatisticsResponse, ServerMetadataResponse,
            StatisticDuration,
        },
        refusal::Refusal,
        room::Room,
    },
    serving::{Serving, ServingModel, statistics::Spent},
    telemetry::spool::TelemetryStatus,
};

/// What a client hears that wants to load or unload a model.
const READ_ONLY: &str = "models come to this device, and go, by a rollout from the control plane";
/// The extensions of the protocol that are here, by the names that other servers have for them.
const EXTENSIONS: [&str; 4] = [
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "statistics",
];

/// What the requests need.
struct Api {
    serving: Arc<Serving>,
    statuses: Statuses,
    room: Room,
    streams: Arc<tokio::sync::Semaphore>,
}

/// What the agent says about itself at any time.
pub(crate) struct Statuses {
    pub(crate) agent: watch::Receiver<Value>,
    pub(crate) telemetry: watch::Receiver<TelemetryStatus>,
}

/// Serves until `shutdown`.
pub(crate) async fn run(door: Door, serving: Arc<Serving>, statuses: Statuses, shutdown: CancellationToken) {
    let late = connection::serve(door, router(serving, statuses), shutdown).await;
    if late > 0 {
        tracing::warn!(
            connections = late,
            "connections to the local API did not end in time and were cut off"
        );
    }
}

fn router(serving: Arc<Serving>, statuses: Statuses) -> Router {
    let api = Arc::new(Api {
        serving,
        statuses,
        room: Room::new(),
        streams: Arc::new(tokio::sync::Semaphore::new(grpc::STREAMS)),
    });
    rest::routes().merge(grpc::routes()).with_state(api)
}

impl Api {
    /// The model under this name; an empty version is whichever serves.
    fn find(&self, name: &str, version: &str) -> Result<Arc<ServingModel>, Refusal> {
        let model = name.parse().ok().and_then(|name| self.serving.get(&name));
        let model = model.ok_or_else(|| Refusal::NotFound(format!("there is no model `{name}`")))?;
        if !version.is_empty() && version != model.version.to_string() {
            let serves = model.version;
            return Err(Refusal::NotFound(format!(
                "model `{name}` serves version {serves}, not `{version}`"
            )));
        }
        Ok(model)
    }

    fn server(&self) -> ServerMetadataResponse {
        ServerMetadataResponse {
            name: "skerry-agent".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).to_vec(),
        }
    }

    /// True when every model that is installed serves.
    fn is_ready(&self) -> bool {
        let status = self.statuses.agent.borrow();
        let serves = |name: &Value| {
            let name = name.as_str().and_then(|name| name.parse().ok());
            name.is_some_and(|name| self.serving.get(&name).is_some())
        };
        let bundles = status["bundles"].as_array();
        bundles.is_some_and(|bundles| bundles.iter().all(|bundle| serves(&bundle["model"])))
    }

    fn status(&self) -> Value {
        let mut status = self.statuses.agent.borrow().clone();
        status["inferences"] = self.serving.metrics().requests().into();
        status["inference_errors"] = self.serving.metrics().errors().into();
        status["telemetry"] = json!(*self.statuses.telemetry.borrow());
        status
    }

    /// The statistics of one model, or of all when the name is empty.
    fn statistics(&self, name: &str, version: &str) -> Result<ModelStatisticsResponse, Refusal> {
        let model_stats = if name.is_empty() {
            let all = self.serving.all();
            all.iter()
                .map(|(name, model)| statistics_of(name.as_str(), model))
                .collect()
        } else {
            vec![statistics_of(name, &*self.find(name, version)?)]
        };
        Ok(ModelStatisticsResponse { model_stats })
    }

    fn index(&self) -> Vec<ModelIndex> {
        let entry = |(name, model): (skerry_shared::id::ModelName, Arc<ServingModel>)| ModelIndex {
            name: name.to_string(),
            version: model.version.to_string(),
            state: "READY".to_owned(),
            reason: String::new(),
        };
        self.serving.all().into_iter().map(entry).collect()
    }
}

fn statistics_of(name: &str, model: &ServingModel) -> ModelStatistics {
    let statistics = &model.statistics;
    let duration = |spent: &Spent| {
        Some(StatisticDuration {
            count: spent.count(),
            ns: spent.ns(),
        })
    };
    let count = statistics.success.count();
    ModelStatistics {
        name: name.to_owned(),
        version: model.version.to_string(),
        last_inference: statistics.last_ms(),
        inference_count: count,
        execution_count: count,
        inference_stats: Some(InferStatistics {
            success: duration(&statistics.success),
            fail: duration(&statistics.fail),
            queue: duration(&statistics.queue),
            compute_input: duration(&statistics.decode),
            compute_infer: duration(&statistics.infer),
            compute_output: duration(&statistics.encode),
        }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
