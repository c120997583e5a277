//! Training runs, in MLflow's terms: experiments, runs, parameters, metrics, artifacts. The executor is a local process.
//!
//! A run comes before its model version in the flow, but a run that ends well registers its model: this module calls
//! `registry` and so comes after it in the reading order. It is no sandbox: a script gets an empty environment, its own folder
//! and its own process group, but it has the control plane's user. Whoever may submit a run may run code as that user.
//! Invariant: a run that has ended never changes, and a run that is `running` has an executor in this process.

pub mod run;

pub(crate) mod check;
mod end;
mod execution;
mod executor;
mod log;
mod outputs;
mod process;
mod store;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use skerry_shared::{
    digest::Digest,
    id::{ModelName, RunId},
};
use tokio::sync::Notify;

use crate::{
    audit::{self, By, Fact},
    blob::{BlobError, BlobStore},
    config::TrainingConfig,
    db::{Db, DbError},
};
use log::Live;
use run::{Experiment, MetricPoint, NewRun, Run};

/// Why a training call failed.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// There is no such run.
    #[error("there is no run `{0}`")]
    NotFound(RunId),
    /// The run has no such artifact.
    #[error("run {run} has no artifact `{path}`")]
    NoArtifact {
        /// The run.
        run: RunId,
        /// The path asked for.
        path: String,
    },
    /// The submitted run says something impossible.
    #[error(transparent)]
    Refused(#[from] check::Refusal),
    /// Content that was not uploaded first.
    #[error("the content of `{name}`, {digest}, has not been uploaded")]
    MissingBlob {
        /// The script or input.
        name: String,
        /// Its digest.
        digest: Digest,
    },
    /// The queue is full.
    #[error("{0} runs wait already; the queue is full")]
    QueueFull(usize),
    /// The run has ended, so it cannot be cancelled.
    #[error("run {0} has ended already")]
    Ended(RunId),
    /// The system gave no randomness for an id.
    #[error("no randomness from the system: {0}")]
    Random(getrandom::Error),
    /// The folder of the runs cannot be used.
    #[error("cannot use the folder of runs {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The blob store failed.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// What one run, and all runs together, may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Runs that wait. A client that submits in a loop is refused above it.
    pub scheduled_runs: usize,
    /// A log on disk; the rest of the output is dropped, and the log says so. Stops a script that prints for ever.
    pub log_bytes: u64,
    /// Metric points of a run; the others are dropped, and the log says so. Keeps the history one answer.
    pub metric_points: usize,
    /// What is read of `metrics.jsonl`: room for all points with long keys.
    pub metrics_bytes: u64,
    /// Artifacts of a run; a run with more fails.
    pub artifacts: usize,
    /// One artifact, which is in memory while it is stored; a run with a larger one fails.
    pub artifact_bytes: u64,
    /// All artifacts of a run; a run with more fails.
    pub artifacts_bytes: u64,
    /// From TERM to KILL. Shorter than the time that the control plane has to stop.
    pub terminate_grace: Duration,
    /// How often the metrics of a running script are read.
    pub metrics_every: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        const MIB: u64 = 1024 * 1024;
        Limits {
            scheduled_runs: 1000,
            log_bytes: 16 * MIB,
            metric_points: 100_000,
            metrics_bytes: 64 * MIB,
            artifacts: 1000,
            artifact_bytes: 256 * MIB,
            artifacts_bytes: 1024 * MIB,
            terminate_grace: Duration::from_secs(5),
            metrics_every: Duration::from_secs(1),
        }
    }
}

/// What training changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moved {
    /// A run's status or metrics.
    Run(RunId),
    /// A registered model has a new version.
    Model(ModelName),
}

/// What training works with.
pub struct Parts {
    /// `core.db`.
    pub db: Db,
    /// Scripts, inputs and artifacts.
    pub blobs: BlobStore,
    /// One folder for each run: its log, and while it runs what its script reads and writes.
    pub folder: PathBuf,
    /// The configuration.
    pub config: TrainingConfig,
    /// The limits.
    pub limits: Limits,
    /// The clock, in UTC milliseconds.
    pub now_ms: fn() -> u64,
    /// Is told what changed.
    pub moved: Box<dyn Fn(Moved) + Send + Sync>,
}

/// The runs of a control plane; cheap to clone.
#[derive(Clone)]
pub struct Training(Arc<Shared>);

struct Shared {
    parts: Parts,
    /// Wakes the executor: a run waits.
    wake: Notify,
    /// Every run that has not ended.
    live: Mutex<HashMap<RunId, Arc<Live>>>,
}

impl Training {
    /// Takes up what an earlier process left: its scheduled runs will start, its running ones have failed.
    ///
    /// # Errors
    /// [`TrainingError::Folder`], or the database's.
    pub async fn open(mut parts: Parts) -> Result<Training, TrainingError> {
        let path = parts.folder.clone();
        // A script has another working folder, so its folders must be absolute.
        let made = std::fs::create_dir_all(&path).and_then(|()| path.canonicalize());
        parts.folder = made.map_err(|source| TrainingError::Folder { path, source })?;
        let training = Training(Arc::new(Shared {
            parts,
            wake: Notify::new(),
            live: Mutex::default(),
        }));
        executor::recover(&training).await?;
        Ok(training)
    }

    /// Submits a run and returns it, scheduled.
    ///
    /// # Errors
    /// [`TrainingError`]; nothing is submitted then.
    pub async fn submit(&self, new: NewRun, by: By) -> Result<Run, TrainingError> {
        check::check(&new)?;
        for file in new.inputs.iter().chain([&new.script]) {
            if !self.0.parts.blobs.has(file.digest).await? {
                return Err(TrainingError::MissingBlob {
                    name: file.name.clone(),
                    digest: file.digest,
                });
            }
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(TrainingError::Random)?;
        let id: RunId = hex::encode(id).parse().expect("32 lower-case hex digits");
        // A task of its own: a client that goes away must not leave a run that nobody starts.
        let training = self.clone();
        let submitted = tokio::spawn(async move {
            training.add_live(&id);
            let limit = training.0.parts.limits.scheduled_runs;
            let dataset = check::dataset_digest(&new.inputs);
            let inserted = {
                let id = id.clone();
                training.0.parts.db.write(move |conn| {
                    if store::count_scheduled(conn)? >= limit {
                        return Err(TrainingError::QueueFull(limit));
                    }
                    store::insert(conn, &id, &new, dataset, &by)?;
                    let mut fact = Fact::new("run.submit", format!("run/{id}"))
                        .with("experiment", &new.experiment)
                        .with("code", new.script.digest);
                    if let Some(dataset) = dataset {
                        fact = fact.with("dataset", dataset);
                    }
                    if let Some(model) = &new.register_as {
                        fact = fact.with("register_as", model);
                    }
                    audit::append(conn, &by, fact)?;
                    store::get(conn, &id)?.ok_or(TrainingError::NotFound(id))
                })
            };
            let run = inserted.await;
            match &run {
                Ok(_) => {
                    training.0.wake.notify_one();
                    training.moved(Moved::Run(id));
                }
                Err(_) => drop(training.remove_live(&id)),
            }
            run
        });
        submitted.await.unwrap_or(Err(DbError::Closed.into()))
    }

    /// The newest runs, the newest first; of one experiment, if one is named.
    ///
    /// # Errors
    /// The database's.
    pub async fn list(&self, experiment: Option<String>) -> Result<Vec<Run>, DbError> {
        self.0
            .parts
            .db
            .read(move |conn| store::list(conn, experiment.as_deref()))
            .await
    }

    /// One run.
    ///
    /// # Errors
    /// [`TrainingError::NotFound`], or the database's.
    pub async fn get(&self, id: &RunId) -> Result<Run, TrainingError> {
        let id = id.clone();
        let run = self.0.parts.db.read(move |conn| match store::get(conn, &id)? {
            Some(run) => Ok(run),
            None => Err(TrainingError::NotFound(id)),
        });
        run.await
    }

    /// All experiments, by name.
    ///
    /// # Errors
    /// The database's.
    pub async fn experiments(&self) -> Result<Vec<Experiment>, DbError> {
        self.0.parts.db.read(store::experiments).await
    }

    /// The history of a run's metrics, in the order in which the script wrote it.
    ///
    /// # Errors
    /// [`TrainingError::NotFound`], or the database's.
    pub async fn metrics(&self, id: &RunId) -> Result<Vec<MetricPoint>, TrainingError> {
        let id = self.get(id).await?.id;
        Ok(self.0.parts.db.read(move |conn| store::metrics(conn, &id)).await?)
    }

    /// The content of an artifact.
    ///
    /// # Errors
    /// [`TrainingError::NotFound`], [`TrainingError::NoArtifact`], or the stores'.
    pub async fn artifact(&self, id: &RunId, path: &str) -> Result<Bytes, TrainingError> {
        let run = self.get(id).await?;
        let found = run.artifacts.into_iter().find(|artifact| artifact.path == path);
        let found = found.ok_or_else(|| TrainingError::NoArtifact {
            run: run.id,
            path: path.chars().take(200).collect(),
        })?;
        Ok(self.0.parts.blobs.get(found.digest).await?)
    }

    /// A run's log: standard output and standard error of the script, as they came, and lines of the executor, which begin
    /// with `skerry: `.
    ///
    /// # Errors
    /// [`TrainingError::NotFound`], or the database's. The stream fails when the file cannot be read.
    pub async fn log(
        &self,
        id: &RunId,
        until: LogEnd,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + use<>, TrainingError> {
        let id = self.get(id).await?.id;
        // Asked after the database: a run that is not live any more has its whole log on disk.
        let live = match until {
            LogEnd::Now => None,
            LogEnd::RunEnded => self.lock_live().get(&id).cloned(),
        };
        Ok(log::stream(self.folder_of(&id).join(execution::LOG), live))
    }

    /// Kills a run, and returns it when it has ended.
    ///
    /// # Errors
    /// [`TrainingError::NotFound`], [`TrainingError::Ended`], or the database's.
    pub async fn cancel(&self, id: &RunId, by: By) -> Result<Run, TrainingError> {
        if self.get(id).await?.status.has_ended() {
            return Err(TrainingError::Ended(id.clone()));
        }
        let training = self.clone();
        let of = id.clone();
        let cancelled = tokio::spawn(async move { executor::cancel(&training, &of, by).await });
        cancelled.await.unwrap_or(Err(DbError::Closed))?;
        self.get(id).await
    }

    fn now(&self) -> u64 {
        (self.0.parts.now_ms)()
    }

    fn moved(&self, moved: Moved) {
        (self.0.parts.moved)(moved);
    }

    fn folder_of(&self, id: &RunId) -> PathBuf {
        self.0.parts.folder.join(id.as_str())
    }

    fn lock_live(&self) -> MutexGuard<'_, HashMap<RunId, Arc<Live>>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_live(&self, id: &RunId) -> Arc<Live> {
        Arc::clone(self.lock_live().entry(id.clone()).or_default())
    }

    fn remove_live(&self, id: &RunId) -> Option<Arc<Live>> {
        self.lock_live().remove(id)
    }
}

/// How far a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEnd {
    /// To what is there now.
    Now,
    /// Until the run ends.
    RunEnded,
}

#[cfg(test)]
mod tests;
