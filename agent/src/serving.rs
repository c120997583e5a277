//! The models that serve now. Readers never wait for an update: a swap replaces one pointer.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use skerry_inference::{InferError, LoadedBundle};
use skerry_shared::{
    id::{ModelName, ModelVersion},
    oip::Tensor,
};

/// A model that serves.
pub(crate) struct ServingModel {
    pub(crate) version: ModelVersion,
    pub(crate) bundle: LoadedBundle,
    pub(crate) requests: AtomicU64,
    /// Failures that are the bundle's fault.
    pub(crate) errors: AtomicU64,
}

impl ServingModel {
    pub(crate) fn new(version: ModelVersion, bundle: LoadedBundle) -> ServingModel {
        ServingModel {
            version,
            bundle,
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    /// Answers a request and counts it.
    pub(crate) fn infer(&self, inputs: Vec<Tensor>) -> Result<Vec<Tensor>, InferError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let answer = self.bundle.infer(inputs);
        if answer.as_ref().is_err_and(|error| !error.is_bad_request()) {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }
}

/// The table of serving models.
#[derive(Default)]
pub(crate) struct Serving(RwLock<BTreeMap<ModelName, Arc<ServingModel>>>);

impl Serving {
    pub(crate) fn get(&self, model: &ModelName) -> Option<Arc<ServingModel>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(model)
            .cloned()
    }

    pub(crate) fn list(&self) -> Vec<(ModelName, Arc<ServingModel>)> {
        let models = self.0.read().unwrap_or_else(PoisonError::into_inner);
        models
            .iter()
            .map(|(name, model)| (name.clone(), Arc::clone(model)))
            .collect()
    }

    /// From the next request on this one answers; requests under way end where they began.
    pub(crate) fn replace(&self, name: ModelName, model: ServingModel) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, Arc::new(model));
    }

    pub(crate) fn remove(&self, model: &ModelName) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(model);
    }
}
