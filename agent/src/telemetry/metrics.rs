//! What the models count while they answer. It outlives a model that is replaced: its last counts are still collected.
//!
//! Invariant: every answered request is in exactly one interval, whole: its count, its error and its duration together.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use skerry_shared::{
    histogram::Histogram,
    id::{ModelName, ModelVersion},
};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Well,
    /// The request is at fault.
    BadRequest,
    /// The bundle is at fault.
    BundleError,
}

/// The counts of one model version since the last collection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interval {
    /// Requests that reached the model.
    pub(crate) count: u64,
    pub(crate) bundle_errors: u64,
    pub(crate) bad_requests: u64,
    /// Seconds of the requests that ended well: a failure ends early and would flatter the others.
    pub(crate) durations: Histogram,
}

/// Since the agent started, over all models.
#[derive(Debug, Default)]
struct Totals {
    requests: AtomicU64,
    errors: AtomicU64,
}

/// Where one model version counts.
#[derive(Debug)]
pub(crate) struct ModelMetrics {
    interval: Mutex<Interval>,
    totals: Arc<Totals>,
}

impl ModelMetrics {
    /// Counts a request: one short lock, no allocation once the histogram has its buckets.
    pub(crate) fn record(&self, took: Duration, ended: Ended) {
        self.totals.requests.fetch_add(1, Ordering::Relaxed);
        let mut interval = self.interval.lock().unwrap_or_else(PoisonError::into_inner);
        interval.count += 1;
        match ended {
            Ended::Well => interval.durations.record(took.as_secs_f64()),
            Ended::BadRequest => interval.bad_requests += 1,
            Ended::BundleError => {
                interval.bundle_errors += 1;
                self.totals.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// All models that have counted something since the last collection, or may still.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    models: Mutex<BTreeMap<(ModelName, ModelVersion), Arc<ModelMetrics>>>,
    totals: Arc<Totals>,
}

impl Metrics {
    /// Where a model version counts, for as long as the caller holds it.
    pub(crate) fn of(&self, model: &ModelName, version: ModelVersion) -> Arc<ModelMetrics> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = models.entry((model.clone(), version)).or_insert_with(|| {
            Arc::new(ModelMetrics {
                interval: Mutex::default(),
                totals: Arc::clone(&self.totals),
            })
        });
        Arc::clone(metrics)
    }

    /// Takes the counts of all models that have any, and forgets models that nobody holds any more.
    pub(crate) fn collect(&self) -> Vec<(ModelName, ModelVersion, Interval)> {
        let mut collected = Vec::new();
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.retain(|(model, version), metrics| {
            // Looked at before the counts are taken: who holds none can count no more. Handles come from under this lock.
            let held = Arc::strong_count(metrics) > 1;
            let mut interval = metrics.interval.lock().unwrap_or_else(PoisonError::into_inner);
            let interval = std::mem::take(&mut *interval);
            if interval.count > 0 {
                collected.push((model.clone(), *version, interval));
            }
            held
        });
        collected
    }

    /// Requests since the agent started, those of replaced versions too.
    pub(crate) fn requests(&self) -> u64 {
        self.totals.requests.load(Ordering::Relaxed)
    }

    /// Failures since the agent started that were a bundle's fault.
    pub(crate) fn errors(&self) -> u64 {
        self.totals.errors.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn model(metrics: &Metrics, version: u64) -> Arc<ModelMetrics> {
        metrics.of(&"m".parse().unwrap(), ModelVersion(version))
    }

    #[test]
    fn a_replaced_version_is_collected_once_more_and_then_forgotten() {
        let metrics = Metrics::default();
        let old = model(&metrics, 1);
        old.record(MS, Ended::Well);
        old.record(MS, Ended::BundleError);
        drop(old);
        let new = model(&metrics, 2);
        let collected = metrics.collect();
        assert_eq!(collected.len(), 1, "version 2 has counted nothing");
        let (_, version, interval) = &collected[0];
        assert_eq!((version.0, interval.count, interval.bundle_errors), (1, 2, 1));
        assert_eq!(interval.durations.count(), 1);
        assert_eq!(metrics.models.lock().unwrap().len(), 1);
        new.record(MS, Ended::BadRequest);
        assert_eq!((metrics.requests(), metrics.errors()), (3, 1));
    }

    #[test]
    fn every_request_is_in_exactly_one_interval() {
        let metrics = Metrics::default();
        let handles: Vec<_> = (0..4).map(|_| model(&metrics, 1)).collect();
        let total: u64 = std::thread::scope(|scope| {
            for handle in handles {
                scope.spawn(move || (0..1000).for_each(|_| handle.record(MS, Ended::Well)));
            }
            (0..100).map(|_| counts(&metrics)).sum()
        });
        assert_eq!(total + counts(&metrics), 4000);
        assert!(metrics.models.lock().unwrap().is_empty());
    }

    fn counts(metrics: &Metrics) -> u64 {
        let collected = metrics.collect();
        assert!(
            collected
                .iter()
                .all(|(_, _, interval)| interval.count == interval.durations.count())
        );
        collected.iter().map(|(_, _, interval)| interval.count).sum()
    }
}
