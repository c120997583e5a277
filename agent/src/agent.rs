//! The agent's loop: one place where everything that can happen is seen, the state is written, and the effect is started.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use rumqttc::QoS;
use skerry_inference::{LoadedBundle, Runtime};
use skerry_shared::{
    bundle::{GoldenVectors, MANIFEST_NAME},
    desired::{Desired, OutcomeResult, ReportedError},
    id::{BootId, ModelName},
    schema::Envelope,
    topic::Channel,
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, block_in_place},
};
use tokio_util::sync::CancellationToken;

use crate::{
    disk::{self, DiskError},
    enroll::Identity,
    fetch::Fetcher,
    link::{self, FromBroker},
    record::{Installed, Keeper},
    report::{self, Facts},
    serve,
    serving::Serving,
    store::Store,
    telemetry::{self, spool::TelemetryStatus},
    update::{Effect, Event, Job, State, effect_of, next_job, step},
    verify::{self, Trust, VerifyError},
};

/// What `skerry-agent run` was told.
pub(crate) struct Options {
    pub(crate) state_dir: PathBuf,
    pub(crate) listen: std::net::SocketAddr,
    pub(crate) bandwidth: Option<u64>,
    pub(crate) telemetry_interval: Duration,
    pub(crate) store_limit: Option<u64>,
}

/// How often probation is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(50);
/// How often the progress of a download is reported.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// How long requests under way may take to end at shutdown; what they count is still collected.
const API_DRAIN: Duration = Duration::from_secs(5);

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64
}

/// Bytes of the download under way, for reports.
#[derive(Default)]
pub(crate) struct Progress {
    have: AtomicU64,
    total: AtomicU64,
    resumed: AtomicU64,
    wire: AtomicU64,
}

/// Runs the agent until `shutdown`.
///
/// # Errors
/// When the device is not enrolled, its state is unreadable, or the local API's port is taken.
pub(crate) async fn run(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let identity = Identity::read(&options.state_dir)?;
    let mut boot = [0; 16];
    getrandom::fill(&mut boot).context("no randomness from the system")?;
    let boot_id: BootId = hex::encode(boot).parse().expect("sixteen bytes are 32 hex digits");
    let keeper = Keeper::open(&options.state_dir)?;
    let store = Store::open(&options.state_dir, options.store_limit)?;
    let trust = Trust::open(&options.state_dir, keeper.get().floors).context("the trusted metadata is unusable")?;
    let serving = Arc::new(Serving::default());
    let runtime = Runtime::new()?;

    let listener = tokio::net::TcpListener::bind(options.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {} for inference requests", options.listen))?;
    let address = listener.local_addr()?.to_string();
    disk::write(
        &options.state_dir.join("inference-address"),
        address.as_bytes(),
        disk::Access::Everybody,
    )?;
    tracing::info!(%address, "local API listens");
    let (status, statuses) = tokio::sync::watch::channel(serde_json::Value::Null);
    let (telemetry_status, telemetry_statuses) = tokio::sync::watch::channel(TelemetryStatus::default());
    let statuses = serve::Statuses {
        agent: statuses,
        telemetry: telemetry_statuses,
    };
    let api = tokio::spawn(serve::run(listener, Arc::clone(&serving), statuses, shutdown.clone()));

    let (sender, received) = link::start(&identity, &boot_id, shutdown.clone());
    let telemetry = telemetry::Task {
        state_dir: options.state_dir.clone(),
        interval: options.telemetry_interval,
        device: identity.device_id.clone(),
        boot_id: boot_id.clone(),
        serving: Arc::clone(&serving),
        sender: sender.clone(),
        acks: received.acks,
        connection: received.connection,
        status: telemetry_status,
    };
    // Not `shutdown`: requests that end after it are still counted.
    let counted = CancellationToken::new();
    let telemetry = tokio::spawn(telemetry.run(counted.clone()));
    let fetcher = Fetcher::new(sender.clone(), received.parts, options.bandwidth);
    let progress = Arc::new(Progress::default());
    let worker = Worker {
        store,
        trust,
        fetcher,
        runtime,
        serving: Arc::clone(&serving),
        progress: Arc::clone(&progress),
        floors: None,
    };
    let mut agent = Agent {
        state_dir: options.state_dir.clone(),
        identity,
        boot_id,
        address,
        keeper,
        serving,
        sender,
        progress,
        status,
        seq: 0,
        refused: None,
        worker: Some(worker),
        running: None,
    };
    agent.start_serving().await;
    agent.turn(Event::Started);
    agent.serve_events(received.events, &shutdown).await;
    let drained = tokio::time::timeout(API_DRAIN, api).await;
    counted.cancel();
    telemetry.await.context("telemetry ended badly")?;
    match drained {
        Ok(ended) => ended.context("the local API ended badly"),
        Err(_) => {
            tracing::warn!("some inference requests did not end in time");
            Ok(())
        }
    }
}

/// What the loop owns.
struct Agent {
    state_dir: PathBuf,
    identity: Identity,
    boot_id: BootId,
    address: String,
    keeper: Keeper,
    serving: Arc<Serving>,
    sender: link::Sender,
    progress: Arc<Progress>,
    status: tokio::sync::watch::Sender<serde_json::Value>,
    seq: u64,
    refused: Option<ReportedError>,
    /// With the effect that runs, or here.
    worker: Option<Worker>,
    running: Option<Running>,
}

/// The effect that runs.
struct Running {
    task: JoinHandle<(Worker, Event)>,
    cancel: CancellationToken,
}

impl Agent {
    /// Loads what the slots say: inference comes first, before any network.
    async fn start_serving(&mut self) {
        let installed: Vec<(ModelName, Installed)> = self
            .keeper
            .get()
            .slots
            .iter()
            .filter_map(|(model, slots)| Some((model.clone(), slots.current.clone()?)))
            .collect();
        let Some(mut worker) = self.worker.take() else { return };
        let loaded = tokio::task::spawn_blocking(move || {
            for (model, installed) in installed {
                if let Err(error) = worker.serve_installed(&model, &installed) {
                    tracing::error!(model.name = %model, code = error.code, error = error.message, "cannot serve an installed bundle");
                }
            }
            worker
        });
        self.worker = loaded.await.ok();
    }

    async fn serve_events(&mut self, mut events: mpsc::Receiver<FromBroker>, shutdown: &CancellationToken) {
        let mut tick = tokio::time::interval(PROGRESS_EVERY);
        let mut last_progress = 0;
        loop {
            let running = self.running.as_mut().map(|running| &mut running.task);
            tokio::select! {
                done = async { match running { Some(task) => task.await, None => std::future::pending().await } } => {
                    self.running = None;
                    match done {
                        Ok((mut worker, event)) => {
                            self.keep_floors(worker.floors.take());
                            self.worker = Some(worker);
                            self.turn(event);
                        }
                        // Without its worker the agent serves what it serves; a restart repeats the effect.
                        Err(error) => tracing::error!(%error, "an update step ended badly; restart the agent"),
                    }
                }
                event = events.recv() => match event {
                    Some(FromBroker::Connected) => self.report(),
                    Some(FromBroker::Desired(bytes)) => self.on_desired(&bytes),
                    None => return,
                },
                _ = tick.tick() => {
                    // A state that could not be written, on a full disk for example, is tried again.
                    if self.running.is_none() && self.keeper.get().update != State::Idle {
                        self.begin(effect_of(&self.keeper.get().update));
                    }
                    let have = self.progress.have.load(Ordering::Relaxed);
                    if have != last_progress {
                        last_progress = have;
                        self.report();
                    }
                }
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// The metadata versions that must never go back are kept apart from the metadata files.
    fn keep_floors(&mut self, risen: Option<skerry_tuf::VersionFloors>) {
        if let Some(floors) = risen
            && let Err(error) = self.keeper.change(|record| record.floors = floors)
        {
            log_disk(error);
        }
    }

    /// One turn of the machine: the next state is on disk before its effect starts.
    fn turn(&mut self, event: Event) {
        let before = self.keeper.get().update.clone();
        let (next, effect) = step(before, event);
        if let Err(error) = self.keeper.change(|record| record.update = next) {
            // The state stays: the same effect runs again at the next tick.
            return log_disk(error);
        }
        tracing::info!(
            update.state = self.keeper.get().update.update_state().as_str(),
            "the update goes on"
        );
        self.report();
        if self.running.is_none() {
            self.begin(effect);
        }
    }

    fn begin(&mut self, effect: Effect) {
        match effect {
            Effect::Rest => self.look_for_work(),
            Effect::Commit(job) => {
                let event = self.commit(&job);
                self.turn(event);
            }
            Effect::Record {
                job,
                error,
                rolled_back,
            } => {
                let event = self.write_failure(&job, error, rolled_back);
                self.turn(event);
            }
            Effect::Sync(job) => self.spawn(job, Work::Fetch(Fetch::Metadata)),
            Effect::Download(job) => self.spawn(job, Work::Fetch(Fetch::Bundle)),
            Effect::Verify(job) => self.spawn(job, Work::Verify),
            Effect::Install(job) => self.spawn(job, Work::Install),
            Effect::Watch(job) => self.spawn(job, Work::Watch),
            Effect::RollBack(job) => self.spawn(job, Work::RollBack),
        }
    }

    fn spawn(&mut self, job: Job, work: Work) {
        let Some(mut worker) = self.worker.take() else { return };
        let record = self.keeper.get().clone();
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        let task = tokio::spawn(async move {
            let event = worker.work(work, &job, &record, &token).await;
            (worker, event)
        });
        self.running = Some(Running { task, cancel });
    }

    /// Idle: drop what is not wanted any more, clean up, take the next job.
    fn look_for_work(&mut self) {
        let desired = self.keeper.get().desired.clone();
        let Some(desired) = desired else { return };
        let wanted = |model: &ModelName| desired.bundles.iter().any(|assignment| assignment.model == *model);
        let dropped: Vec<ModelName> = self
            .keeper
            .get()
            .slots
            .keys()
            .filter(|model| !wanted(model))
            .cloned()
            .collect();
        let changed = self
            .keeper
            .change(|record| record.slots.retain(|model, _| wanted(model)));
        if let Err(error) = changed {
            return log_disk(error);
        }
        for model in dropped {
            self.serving.remove(&model);
        }
        if let Some(job) = next_job(&desired, self.keeper.get()) {
            return self.turn(Event::Wanted(job));
        }
        if let Some(worker) = &self.worker
            && let Err(error) = worker.store.collect_garbage(self.keeper.get())
        {
            tracing::warn!(%error, "cannot clean the store up");
        }
        self.report();
    }

    fn on_desired(&mut self, bytes: &[u8]) {
        // While an effect runs, its worker holds the trusted keys: read them from disk, they are the same.
        let trust = match &self.worker {
            Some(worker) => worker.trust.desired(bytes, &self.identity.device_id),
            None => match Trust::open(&self.state_dir, self.keeper.get().floors) {
                Ok(trust) => trust.desired(bytes, &self.identity.device_id),
                Err(error) => Err(error),
            },
        };
        let desired = match trust {
            Ok(desired) => desired,
            Err(error) => {
                tracing::warn!(code = error.code(), "a desired state is refused");
                self.refused = Some(error.report());
                return self.report();
            }
        };
        let known = self.keeper.get().desired.as_ref().map(|desired| desired.generation);
        if known.is_some_and(|known| desired.generation <= known) {
            return;
        }
        tracing::info!(generation = desired.generation.0, "a new desired state");
        self.refused = None;
        if let Err(error) = self.accept(desired) {
            return log_disk(error);
        }
        let still_wanted = self.keeper.get().update.job().is_some_and(|job| {
            let desired = self.keeper.get().desired.as_ref();
            desired.is_some_and(|desired| desired.bundles.iter().any(|a| a.index == job.assignment.index))
        });
        match (&self.running, &self.keeper.get().update) {
            (None, State::Idle) => self.look_for_work(),
            // The worker answers with `Superseded`.
            (Some(running), State::Sync { .. } | State::Download { .. } | State::Verify { .. }) if !still_wanted => {
                running.cancel.cancel();
            }
            _ => {}
        }
    }

    fn accept(&mut self, desired: Desired) -> Result<(), DiskError> {
        self.keeper.change(|record| {
            record.time_floor_ms = record.time_floor_ms.max(desired.issued_at_ms);
            record.desired = Some(desired);
        })
    }

    fn commit(&mut self, job: &Job) -> Event {
        let wire = self.progress.wire.swap(0, Ordering::Relaxed);
        let resumed = self.progress.resumed.swap(0, Ordering::Relaxed) as u32;
        let changed = self.keeper.change(|record| {
            let candidate = Installed {
                version: job.assignment.version,
                index: job.assignment.index,
            };
            let slots = record.slots.entry(job.assignment.model.clone()).or_default();
            if slots.current.as_ref() != Some(&candidate) {
                slots.previous = slots.current.replace(candidate);
            }
            let outcome = report::outcome(job, OutcomeResult::Succeeded, wire, resumed);
            record.outcomes.insert(job.assignment.model.clone(), outcome);
        });
        match changed {
            Ok(()) => Event::Done,
            Err(error) => Event::Failed(VerifyError::Disk(error).report()),
        }
    }

    fn write_failure(&mut self, job: &Job, error: ReportedError, rolled_back: bool) -> Event {
        tracing::warn!(model.name = %job.assignment.model, model.version = job.assignment.version.0, code = error.code, "an update failed");
        let wire = self.progress.wire.swap(0, Ordering::Relaxed);
        let resumed = self.progress.resumed.swap(0, Ordering::Relaxed) as u32;
        let changed = self.keeper.change(|record| {
            let model = job.assignment.model.clone();
            record
                .failed
                .insert(model.clone(), (job.assignment.index, job.generation));
            let result = match rolled_back {
                true => OutcomeResult::RolledBack(error),
                false => OutcomeResult::Failed(error),
            };
            record
                .outcomes
                .insert(model, report::outcome(job, result, wire, resumed));
        });
        match changed {
            Ok(()) => Event::Done,
            Err(error) => Event::Failed(VerifyError::Disk(error).report()),
        }
    }

    fn report(&mut self) {
        self.seq += 1;
        let facts = Facts {
            device: &self.identity.device_id,
            boot_id: &self.boot_id,
            seq: self.seq,
            now_ms: now_ms(),
            inference_address: Some(self.address.clone()),
            progress: (
                self.progress.have.load(Ordering::Relaxed),
                self.progress.total.load(Ordering::Relaxed),
            ),
            refused: self.refused.clone(),
        };
        let reported = report::reported(self.keeper.get(), &facts);
        self.status
            .send_replace(serde_json::to_value(&reported).unwrap_or_default());
        if !self
            .sender
            .try_publish(Channel::Reported, QoS::AtLeastOnce, reported.to_json())
        {
            tracing::debug!("a report waits for the next connection");
        }
    }
}

fn log_disk(error: DiskError) {
    tracing::error!(
        error = format!("{:#}", anyhow::Error::new(error)),
        "cannot write the state"
    );
}

/// What comes over the link.
#[derive(Clone, Copy, Debug)]
enum Fetch {
    Metadata,
    Bundle,
}

/// What a worker is asked to do.
#[derive(Clone, Copy, Debug)]
enum Work {
    Fetch(Fetch),
    Verify,
    Install,
    Watch,
    RollBack,
}

/// Does the effects that take time. It owns the disk store, the trusted metadata and the fetching side of the link.
struct Worker {
    store: Store,
    trust: Trust,
    fetcher: Fetcher,
    runtime: Runtime,
    serving: Arc<Serving>,
    progress: Arc<Progress>,
    /// Floors to be kept in the record, if they have risen.
    floors: Option<skerry_tuf::VersionFloors>,
}

impl Worker {
    async fn work(
        &mut self,
        work: Work,
        job: &Job,
        record: &crate::record::Record,
        cancel: &CancellationToken,
    ) -> Event {
        let done = async {
            match work {
                Work::Fetch(fetch) => self.fetch_patiently(fetch, job, record).await,
                Work::Verify => block_in_place(|| self.verified(job).map(|_| ()).map_err(|error| error.report())),
                Work::Install => block_in_place(|| self.install(job)),
                Work::Watch => self.watch(job).await,
                Work::RollBack => block_in_place(|| self.roll_back(job, record)),
            }
        };
        tokio::select! {
            result = done => match result {
                Ok(()) => Event::Done,
                Err(error) => Event::Failed(error),
            },
            () = cancel.cancelled() => Event::Superseded,
        }
    }

    /// Repeats what stalled: a device that is cut off for days goes on where it was.
    async fn fetch_patiently(
        &mut self,
        fetch: Fetch,
        job: &Job,
        record: &crate::record::Record,
    ) -> Result<(), ReportedError> {
        loop {
            let before = self.fetcher.wire_bytes;
            let result = match fetch {
                Fetch::Metadata => self.sync(job, record).await,
                Fetch::Bundle => self.download(job, record).await,
            };
            let received = self.fetcher.wire_bytes - before;
            self.progress.wire.fetch_add(received, Ordering::Relaxed);
            match result {
                Err(error) if error.is_stalled() => tracing::warn!(%error, "nothing comes from the control plane"),
                result => return result.map_err(|error| error.report()),
            }
        }
    }

    async fn sync(&mut self, job: &Job, record: &crate::record::Record) -> Result<(), VerifyError> {
        let now = now_ms().max(record.time_floor_ms);
        let mut floors = None;
        let refreshed = self.trust.refresh(&mut self.fetcher, now, |risen| {
            floors = Some(risen);
            Ok(())
        });
        let refreshed = refreshed.await;
        self.floors = floors.or(self.floors.take());
        refreshed?;
        let bytes = self.trust.fetch_index(&mut self.fetcher, &job.assignment, now).await?;
        Ok(self.store.put_index(job.assignment.index, &bytes)?)
    }

    async fn download(&mut self, job: &Job, record: &crate::record::Record) -> Result<(), VerifyError> {
        let digest = job.assignment.index;
        let index = self
            .store
            .index(digest)?
            .ok_or_else(|| VerifyError::File("the chunk index".to_owned()))?;
        if self.store.has_staged(&index)? {
            self.progress.resumed.fetch_add(1, Ordering::Relaxed);
        }
        let sources = self.store.sources(record)?;
        // The manifest first: it says what else this device needs.
        let manifest_file = index.file(MANIFEST_NAME).ok_or(VerifyError::Manifest(None))?;
        self.fetch(digest, &index, &[manifest_file], &sources).await?;
        let manifest = verify::manifest(&self.store, &index)?;
        let files = verify::needed_files(&index, &manifest, &skerry_inference::host_platform())?;
        let needed_bytes: u64 = files.iter().map(|file| file.size_bytes).sum();
        let free_bytes = self.store.room_bytes()?;
        if free_bytes < needed_bytes * 2 {
            return Err(VerifyError::DiskFull {
                free_bytes,
                needed_bytes: needed_bytes * 2,
            });
        }
        self.fetch(digest, &index, &files, &sources).await
    }

    async fn fetch(
        &mut self,
        digest: skerry_shared::digest::Digest,
        index: &skerry_shared::chunk::ChunkIndex,
        files: &[&skerry_shared::chunk::FileEntry],
        sources: &crate::store::Sources,
    ) -> Result<(), VerifyError> {
        let missing = block_in_place(|| self.store.missing_chunks(index, files, sources))?;
        let lacking: u64 = missing
            .iter()
            .map(|part| u64::from(index.chunks()[*part as usize].raw_len))
            .sum();
        let total: u64 = files.iter().map(|file| file.size_bytes).sum();
        self.progress.total.store(total, Ordering::Relaxed);
        self.progress.have.store(total - lacking, Ordering::Relaxed);
        let (store, progress) = (&self.store, &self.progress);
        self.fetcher
            .chunks((digest, index), missing, |chunk, raw| {
                progress.have.fetch_add(raw.len() as u64, Ordering::Relaxed);
                store.stage(chunk.raw, raw)
            })
            .await?;
        block_in_place(|| {
            for file in files {
                if !self.store.assemble(index, file)? {
                    return Err(VerifyError::File(file.name.to_string()));
                }
            }
            Ok(())
        })
    }

    fn verified(&self, job: &Job) -> Result<verify::VerifiedBundle, VerifyError> {
        let assigned = (&job.assignment.model, job.assignment.version);
        verify::bundle(
            &self.store,
            job.assignment.index,
            assigned,
            &skerry_inference::host_platform(),
        )
    }

    fn install(&mut self, job: &Job) -> Result<(), ReportedError> {
        let verified = self.verified(job).map_err(|error| error.report())?;
        let model = self.load(&verified)?;
        self.serving
            .replace(job.assignment.model.clone(), job.assignment.version, model);
        Ok(())
    }

    /// Loads a bundle and proves it on its golden vectors, beside whatever serves.
    fn load(&self, verified: &verify::VerifiedBundle) -> Result<LoadedBundle, ReportedError> {
        let manifest = verified.manifest();
        let mut read = |resource: &skerry_shared::bundle::Resource| {
            let content = self.store.object(resource.digest).map_err(std::io::Error::other)?;
            content.ok_or_else(|| std::io::ErrorKind::NotFound.into())
        };
        let failure = |code: &str, error: anyhow::Error| ReportedError {
            code: code.to_owned(),
            message: format!("{error:#}"),
        };
        let mut bundle = LoadedBundle::load(&self.runtime, manifest, &mut read)
            .map_err(|error| failure("load", anyhow::Error::new(error)))?;
        if let Some(golden) = &manifest.golden {
            let resource = manifest
                .resource(&golden.resource)
                .context("the golden vectors are missing");
            let bytes = resource
                .and_then(|resource| Ok(read(resource)?))
                .map_err(|error| failure("load", error))?;
            let vectors: GoldenVectors =
                serde_json::from_slice(&bytes).map_err(|error| failure("load", anyhow::Error::new(error)))?;
            bundle
                .check_golden(&vectors, golden.tolerance)
                .map_err(|error| failure("golden_mismatch", anyhow::Error::new(error)))?;
        }
        Ok(bundle)
    }

    /// Lets the candidate serve for its probation; its own failures end it at once.
    async fn watch(&mut self, job: &Job) -> Result<(), ReportedError> {
        let candidate = match self.serving.get(&job.assignment.model) {
            Some(model) if model.version == job.assignment.version => model,
            // The agent started anew while it was on probation.
            _ => {
                block_in_place(|| self.install(job))?;
                self.serving.get(&job.assignment.model).ok_or_else(|| ReportedError {
                    code: "load".to_owned(),
                    message: "the candidate does not serve".to_owned(),
                })?
            }
        };
        let end = tokio::time::Instant::now() + Duration::from_millis(u64::from(job.assignment.probation_ms));
        loop {
            let errors = candidate.errors.load(Ordering::Relaxed);
            if errors > 0 {
                let message = format!(
                    "{errors} of {} requests failed on probation",
                    candidate.requests.load(Ordering::Relaxed)
                );
                return Err(ReportedError {
                    code: "probation_errors".to_owned(),
                    message,
                });
            }
            if tokio::time::Instant::now() >= end {
                return Ok(());
            }
            tokio::time::sleep(WATCH_EVERY.min(end - tokio::time::Instant::now())).await;
        }
    }

    /// Lets the current slot serve again, or nothing if there is none. Needs no network.
    fn roll_back(&mut self, job: &Job, record: &crate::record::Record) -> Result<(), ReportedError> {
        let model = &job.assignment.model;
        let current = record.slots.get(model).and_then(|slots| slots.current.as_ref());
        let serves = self.serving.get(model).map(|model| model.version);
        match current {
            Some(installed) if serves == Some(installed.version) => Ok(()),
            Some(installed) => self.serve_installed(model, installed),
            None => {
                self.serving.remove(model);
                Ok(())
            }
        }
    }

    fn serve_installed(&mut self, model: &ModelName, installed: &Installed) -> Result<(), ReportedError> {
        let assigned = (model, installed.version);
        let verified = verify::bundle(
            &self.store,
            installed.index,
            assigned,
            &skerry_inference::host_platform(),
        );
        let bundle = self.load(&verified.map_err(|error| error.report())?)?;
        self.serving.replace(model.clone(), installed.version, bundle);
        Ok(())
    }
}
