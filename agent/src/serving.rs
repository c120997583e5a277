//! The models that serve now. Readers never wait for an update: a swap replaces one pointer.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use skerry_inference::{InferError, LoadedBundle};
use skerry_shared::{
    id::{ModelName, ModelVersion},
    oip::Tensor,
};

use crate::telemetry::metrics::{Ended, Metrics, ModelMetrics};

/// A model that serves.
pub(crate) struct ServingModel {
    pub(crate) version: ModelVersion,
    pub(crate) bundle: LoadedBundle,
    /// Since this model was loaded: what probation looks at.
    pub(crate) requests: AtomicU64,
    /// Failures that are the bundle's fault.
    pub(crate) errors: AtomicU64,
    metrics: Arc<ModelMetrics>,
}

impl ServingModel {
    /// Answers a request and counts it.
    pub(crate) fn infer(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
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
        }
        self.metrics.record(took, ended);
        answer
    }
}

/// The table of serving models, and what all of them have counted.
#[derive(Default)]
pub(crate) struct Serving {
    models: RwLock<BTreeMap<ModelName, Arc<ServingModel>>>,
    metrics: Metrics,
}

impl Serving {
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

    /// From the next request on this one answers; requests under way end where they began.
    pub(crate) fn replace(&self, name: ModelName, version: ModelVersion, bundle: LoadedBundle) {
        let model = ServingModel {
            version,
            bundle,
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            metrics: self.metrics.of(&name, version),
        };
        self.models
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, Arc::new(model));
    }

    pub(crate) fn remove(&self, model: &ModelName) {
        self.models
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(model);
    }
}
