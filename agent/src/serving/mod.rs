//! The models that serve now. Readers never wait for an update: a swap replaces one pointer.

pub(crate) mod admission;
pub(crate) mod statistics;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use skerry_inference::{InferError, LoadedBundle};
use skerry_shared::{
    id::{ModelName, ModelVersion},
    oip::Tensor,
};
use tokio::sync::Notify;

use crate::{
    serving::{
        admission::{Admission, Limits},
        statistics::Statistics,
    },
    telemetry::metrics::{Ended, Metrics, ModelMetrics},
};

/// A model that serves.
pub(crate) struct ServingModel {
    pub(crate) version: ModelVersion,
    pub(crate) bundle: LoadedBundle,
    /// When it began to serve.
    pub(crate) since: tokio::time::Instant,
    /// Since this model was loaded: what probation looks at.
    pub(crate) requests: AtomicU64,
    /// Failures that are the bundle's fault.
    pub(crate) errors: AtomicU64,
    /// Wakes whoever watches a probation.
    pub(crate) failed: Notify,
    /// The line before it; that of the version before, if there was one.
    pub(crate) admission: Arc<Admission>,
    pub(crate) statistics: Statistics,
    metrics: Arc<ModelMetrics>,
}

impl ServingModel {
    /// Answers a request that was `queued` so long, and counts it.
    pub(crate) fn infer(&self, inputs: Vec<Tensor>, queued: Duration) -> Result<Vec<Tensor>, InferError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let answer = self.bundle.infer(inputs);
        let took = began.elapsed();
        let ended = match &answer {
            Ok(_) => Ended::Well,
            Err(error) if error.is_bad_request() => Ended::BadRequest,
            Err(_) => Ended::BundleError,
        };
        if ended == Ended::BundleError {
            self.errors.fetch_add(1, Ordering::Relaxed);
            self.failed.notify_one();
        }
        self.metrics.record(took, ended);
        self.statistics.ended(queued, took, ended == Ended::Well);
        answer
    }
}

/// The table of serving models, and what all of them have counted.
#[derive(Default)]
pub(crate) struct Serving {
    models: RwLock<BTreeMap<ModelName, Arc<ServingModel>>>,
    metrics: Metrics,
    limits: Limits,
}

impl Serving {
    pub(crate) fn new(limits: Limits) -> Serving {
        Serving {
            limits,
            ..Serving::default()
        }
    }

    /// What the models count, those that were replaced too.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn get(&self, model: &ModelName) -> Option<Arc<ServingModel>> {
        self.models
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(model)
            .cloned()
    }

    /// All that serve now, by name.
    pub(crate) fn all(&self) -> Vec<(ModelName, Arc<ServingModel>)> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        models
            .iter()
            .map(|(name, model)| (name.clone(), Arc::clone(model)))
            .collect()
    }

    /// From the next request on this one answers; requests under way end where they began.
    pub(crate) fn replace(&self, name: ModelName, version: ModelVersion, bundle: LoadedBundle) {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        let admission = match models.get(&name) {
            Some(before) => Arc::clone(&before.admission),
            None => Arc::new(Admission::new(self.limits)),
        };
        let model = ServingModel {
            version,
            bundle,
            since: tokio::time::Instant::now(),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            failed: Notify::new(),
            admission,
            statistics: Statistics::default(),
            metrics: self.metrics.of(&name, version),
        };
        let before = models.insert(name, Arc::new(model));
        // Unloading a bundle takes time that no reader shall wait for.
        drop(models);
        drop(before);
    }

    pub(crate) fn remove(&self, model: &ModelName) {
        self.models
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(model);
    }
}
