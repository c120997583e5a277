//! The agent's loop: one place where everything that can happen is seen, the state is written, and the effect is started.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::Context;
use rumqttc::QoS;
use skerry_inference::Runtime;
use skerry_shared::{desired::ReportedError, id::BootId, schema::Envelope, time::NONCE_BYTES, topic::Channel};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    config::Config,
    disk::{self, Disk, DiskError},
    enroll::Identity,
    fetch::Fetcher,
    jitter::jitter,
    link::{self, FromBroker},
    loading::{Kept, Loading},
    record::Keeper,
    renew::Renewal,
    report::{self, Facts},
    serve,
    serving::{Serving, admission::Limits},
    store::Store,
    telemetry::{self, spool::TelemetryStatus},
    time_request::Asking,
    tls,
    update::{
        Effect, Event, Job, State,
        decide::{self, Cost, Left},
        effect_of,
        postponed::Postponed,
    },
    verify::{Trust, VerifyError},
    watchdog::{self, Pulse},
    worker::{Fetch, Progress, Work, Worker},
};

/// What `skerry-agent run` was told.
pub(crate) struct Options {
    pub(crate) state_dir: PathBuf,
    pub(crate) api: serve::door::Options,
    pub(crate) bandwidth: Option<u64>,
    pub(crate) telemetry_interval: Duration,
    pub(crate) store_limit: Option<u64>,
    pub(crate) config: Config,
    /// The words that make this program load a model apart.
    pub(crate) loader_words: Vec<OsString>,
}

/// How often the progress of a download is reported.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// How often a report is repeated when nothing changes: the last one may be lost, and so may what it answers.
const REPORT_EVERY: Duration = Duration::from_secs(300);
/// How often the metadata is looked at when nothing else asks for it: what was blocked is learned, and a root that was
/// rotated. One look is two small files.
const REFRESH_EVERY: Duration = Duration::from_secs(3600);
/// After a look that failed.
const REFRESH_RETRY: Duration = Duration::from_secs(60);
/// Between looks that are caused by messages whose signers we do not know: anybody at the broker can send such.
const REFRESH_PAUSE: Duration = Duration::from_secs(5);
/// Between tries to write down on a full disk that a blocked bundle was left.
const DISK_RETRY: Duration = Duration::from_secs(60);
/// Between looks that interrupt a download: when it goes on, the chunks that are there are read again.
const DOWNLOAD_PAUSE: Duration = Duration::from_secs(300);
/// How long requests under way may take to end at shutdown; what they count is still collected.
const API_DRAIN: Duration = Duration::from_secs(5);

/// Runs the agent until `shutdown`.
///
/// # Errors
/// When the device is not enrolled, its state is unreadable, or the local API's port is taken.
pub(crate) async fn run(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let disk = Disk::real();
    let identity = Identity::read(&disk, &options.state_dir)?;
    let _lock = disk::lock(&options.state_dir)?;
    let (key, certificate) = tls::read_own(&disk, &options.state_dir)?;
    let mut boot = [0; 16];
    getrandom::fill(&mut boot).context("no randomness from the system")?;
    let boot_id: BootId = hex::encode(boot).parse().expect("sixteen bytes are 32 hex digits");
    let (keeper, store, trust) = open_state(&disk, &options.state_dir, options.store_limit)?;
    // The certificate was signed, too.
    let signed_ms = keeper.get().time_floor_ms.max(identity.certificate.issued_at_ms);
    let clock = Clock::of_this_machine(signed_ms);
    let tls = tls::for_broker(&identity.broker_authority()?, Arc::clone(&certificate), &clock)?;
    let serving = Arc::new(Serving::new(Limits::of_this_machine(options.api.api_queue)));
    let engines = options.config.inference.engines();
    let loading = Loading::Apart {
        words: options.loader_words,
        kept: Kept::open(&disk, &options.state_dir, &engines),
        config: options.config.inference,
    };
    let runtime = Runtime::with_engines(engines)?;

    let door = options.api.open().await?;
    let listens = door.tcp.local_addr()?;
    let address = listens.to_string();
    disk.write(
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
    let api = tokio::spawn(serve::run(door, Arc::clone(&serving), statuses, shutdown.clone()));

    let renewal = Renewal {
        clock: clock.clone(),
        disk: disk.clone(),
        state_dir: options.state_dir.clone(),
        identity: identity.clone(),
        key,
        certificate,
    };
    let renewal = tokio::spawn(renewal.run(shutdown.clone()));
    let (sender, received) = link::start(&identity, tls, &boot_id, shutdown.clone());
    let telemetry = telemetry::Task {
        clock: clock.clone(),
        disk: disk.clone(),
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
    let wants = sender.clone();
    let send = move |want| {
        wants.try_publish(Channel::Want, QoS::AtLeastOnce, want);
    };
    let fetcher = Fetcher::new(Box::new(send), received.parts, options.bandwidth);
    let progress = Arc::new(Progress::default());
    let worker = Worker {
        store,
        trust,
        fetcher,
        runtime,
        loading,
        serving: Arc::clone(&serving),
        progress: Arc::clone(&progress),
        resuming: matches!(keeper.get().update, State::Download { .. }),
        keeper: keeper.clone(),
        clock: clock.clone(),
    };
    let mut agent = Agent {
        clock,
        asking: Asking::default(),
        disk,
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
        reported_at: Instant::now(),
        refused: None,
        unverified: None,
        refresh_at: Instant::now() + REFRESH_EVERY,
        looked_at: None,
        worker: Some(worker),
        running: None,
        postponed: None,
        blocks_unwritten: None,
        pulse: Pulse::default(),
    };
    // Inference comes first, but not with what is known to be blocked.
    let left = agent.leave_blocked();
    agent.start_serving().await;
    for left in left {
        tracing::warn!(model.name = %left.model, model.version = left.blocked.version.0, "a blocked bundle was left");
    }
    watchdog::ready();
    tokio::spawn(watchdog::run(agent.pulse.clone(), listens, shutdown.clone()));
    agent.turn(Event::Started);
    let ended = agent.serve_events(received.events, &shutdown).await;
    watchdog::stopping();
    // However it ended, everything else ends too, and what was counted is kept.
    shutdown.cancel();
    let drained = tokio::time::timeout(API_DRAIN, api).await;
    counted.cancel();
    telemetry.await.context("telemetry ended badly")?;
    renewal.await.context("the renewal of the certificate ended badly")?;
    match drained {
        Ok(ended) => ended.context("the local API ended badly")?,
        Err(_) => tracing::warn!("some inference requests did not end in time"),
    }
    ended
}

/// Opens what an earlier start has left.
pub(crate) fn open_state(
    disk: &Disk,
    state_dir: &Path,
    store_limit: Option<u64>,
) -> anyhow::Result<(Keeper, Store, Trust)> {
    let keeper = Keeper::open(disk, state_dir)?;
    let store = Store::open(disk, state_dir, store_limit)?;
    let trust = Trust::open(disk, state_dir, keeper.get().floors).context("the trusted metadata is unusable")?;
    let floors = trust.floors();
    keeper.change(|record| record.floors = floors)?;
    Ok((keeper, store, trust))
}

/// What the loop owns.
struct Agent {
    clock: Clock,
    asking: Asking,
    disk: Disk,
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
    reported_at: Instant,
    refused: Option<ReportedError>,
    /// A desired state whose signers are not known: a newer root may name them.
    unverified: Option<Vec<u8>>,
    /// When the metadata is looked at again, if there is nothing else to do.
    refresh_at: Instant,
    /// When it was looked at last.
    looked_at: Option<Instant>,
    /// With the effect that runs, or here.
    worker: Option<Worker>,
    running: Option<Running>,
    /// While the update under way waits for something that may pass by itself.
    postponed: Option<Postponed>,
    /// While the record still names a blocked bundle, because the disk took nothing more: when to try again.
    blocks_unwritten: Option<Instant>,
    /// Shows that the loop turns.
    pulse: Pulse,
}

/// The effect that runs.
struct Running {
    task: JoinHandle<(Worker, Ended)>,
    cancel: CancellationToken,
    kind: Kind,
}

/// What runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Effect,
    /// An effect that was told to stop for a look at the metadata, and begins again after it.
    Interrupted,
    Look,
}

/// What a worker comes back with.
enum Ended {
    /// An effect of the update machine.
    Effect(Event),
    /// A look at the metadata.
    Refresh(Result<(), ReportedError>),
}

/// Whether a desired state was refused before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    First,
    Second,
}

impl Agent {
    /// Loads what the slots say: inference comes first, before any network. A bundle that does not load gives its place to the
    /// previous one, and is fetched anew.
    async fn start_serving(&mut self) {
        let slots = self.keeper.get().slots.clone();
        let Some(mut worker) = self.worker.take() else { return };
        let loaded = tokio::task::spawn_blocking(move || {
            let unusable = worker.serve_slots(&slots);
            (worker, unusable)
        });
        let Ok((worker, unusable)) = loaded.await else { return };
        self.worker = Some(worker);
        for (model, error) in unusable {
            if let Err(error) = decide::give_up_current(&self.keeper, &model, error) {
                log_disk(error);
            }
        }
    }

    async fn serve_events(
        &mut self,
        mut events: mpsc::Receiver<FromBroker>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(PROGRESS_EVERY);
        let mut last_progress = 0;
        loop {
            let running = self.running.as_mut().map(|running| &mut running.task);
            tokio::select! {
                done = async { match running { Some(task) => task.await, None => std::future::pending().await } } => {
                    let kind = self.running.take().map(|running| running.kind);
                    match done {
                        Ok((worker, ended)) => {
                            self.worker = Some(worker);
                            self.obey_blocks().await;
                            match ended {
                                Ended::Effect(Event::Superseded) if kind == Some(Kind::Interrupted) => self.look(),
                                Ended::Effect(event) => self.effect_ended(event),
                                Ended::Refresh(result) => self.refreshed(result),
                            }
                        }
                        // Its worker is gone with it: a new start repeats the effect, and counts.
                        Err(error) => return Err(error).context("an update step ended badly"),
                    }
                }
                event = events.recv() => match event {
                    Some(FromBroker::Connected) => {
                        self.ask_for_the_time();
                        self.report();
                        self.refresh_at = Instant::now();
                        if let Some(postponed) = &mut self.postponed {
                            postponed.hasten(Instant::now());
                        }
                        self.refresh_if_due();
                    }
                    Some(FromBroker::Time(bytes)) => self.on_time(&bytes),
                    Some(FromBroker::Desired(bytes)) => self.on_desired(&bytes, Attempt::First),
                    None => return Ok(()),
                },
                _ = tick.tick() => {
                    self.pulse.beat();
                    self.show_connection();
                    if self.blocks_unwritten.is_some_and(|at| at <= Instant::now()) {
                        // Nothing of it serves any more: only the record is behind.
                        self.leave_blocked();
                    }
                    // What could not be written, on a full disk for example, is tried again, and so is what was postponed.
                    if self.running.is_none() && self.keeper.get().update != State::Idle {
                        self.go_on();
                    }
                    self.keep_time();
                    self.refresh_if_due();
                    let have = self.progress.have.load(Ordering::Relaxed);
                    if have != last_progress || self.reported_at.elapsed() >= REPORT_EVERY {
                        last_progress = have;
                        self.report();
                    }
                }
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// An effect of the update machine has come to its end.
    fn effect_ended(&mut self, event: Event) {
        let synced = matches!(self.keeper.get().update, State::Sync { .. });
        if synced && event == Event::Done {
            self.looked(REFRESH_EVERY);
        }
        // It has walked the roots, if nothing else: an intent may be verified by now that was not.
        let walked = synced && matches!(event, Event::Done | Event::Postponed(_));
        self.turn(event);
        if walked && let Some(bytes) = self.unverified.take() {
            self.on_desired(&bytes, Attempt::Second);
        }
    }

    /// Goes on with the update under way, unless it is not wanted any more.
    fn go_on(&mut self) {
        let update = self.keeper.get().update.clone();
        if self.is_outdated(&update) {
            self.turn(Event::Superseded);
        } else {
            self.begin(effect_of(&update));
        }
    }

    /// One turn of the machine: the next state is on disk before its effect starts.
    fn turn(&mut self, event: Event) {
        match &event {
            Event::Postponed(error) => {
                let before = self.postponed.as_ref();
                let postponed = Postponed::after(before, error.clone(), Instant::now(), jitter());
                tracing::warn!(
                    code = error.code,
                    error = error.message,
                    "the update waits and is tried again"
                );
                self.postponed = Some(postponed);
            }
            Event::Wanted(_) | Event::Superseded => self.postponed = None,
            Event::Started | Event::Done | Event::Failed(_) => {}
        }
        let effect = match decide::advance(&self.keeper, event) {
            Ok(effect) => effect,
            // The state stays: the same effect runs again at the next tick.
            Err(error) => return log_disk(error),
        };
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
                let event = decide::commit(&self.keeper, &job, self.take_cost());
                self.turn(event);
            }
            Effect::Record {
                job,
                error,
                rolled_back,
            } => {
                let assignment = &job.assignment;
                tracing::warn!(model.name = %assignment.model, model.version = assignment.version.0, code = error.code, "an update failed");
                let event = decide::write_failure(&self.keeper, &job, error, rolled_back, self.take_cost());
                self.turn(event);
            }
            Effect::Sync(job) => {
                let now = Instant::now();
                if self.postponed.as_ref().is_none_or(|postponed| postponed.is_due(now)) {
                    self.spawn(job, Work::Fetch(Fetch::Metadata));
                }
            }
            Effect::Download(job) => self.spawn(job, Work::Fetch(Fetch::Bundle)),
            Effect::Verify(job) => self.spawn(job, Work::Verify),
            Effect::Install(job) => self.spawn(job, Work::Install),
            // The intent may have changed while it was loaded.
            Effect::Watch(job) if !self.wants(&job) => self.turn(Event::Superseded),
            Effect::Watch(job) => self.spawn(job, Work::Watch),
            Effect::RollBack(job) => self.spawn(job, Work::RollBack),
        }
    }

    fn spawn(&mut self, job: Job, work: Work) {
        let Some(mut worker) = self.worker.take() else { return };
        if let Work::Fetch(Fetch::Metadata) = work {
            self.looked_at = Some(Instant::now());
        }
        let record = self.keeper.get();
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        let task = tokio::spawn(async move {
            let event = worker.work(work, &job, &record, &token).await;
            (worker, Ended::Effect(event))
        });
        let kind = Kind::Effect;
        self.running = Some(Running { task, cancel, kind });
    }

    /// Looks at the metadata, if it is time. A download and a probation may take hours, in which what they bring here may be
    /// blocked: they are interrupted. Every other state looks itself, or is soon over.
    fn refresh_if_due(&mut self) {
        let pause = match &self.keeper.get().update {
            State::Idle => Duration::ZERO,
            State::Download { .. } => DOWNLOAD_PAUSE,
            State::Probation { .. } => REFRESH_PAUSE,
            State::Sync { .. }
            | State::Verify { .. }
            | State::Install { .. }
            | State::Commit { .. }
            | State::Rollback { .. }
            | State::Failure { .. } => return,
        };
        let due = self
            .looked_at
            .map_or(self.refresh_at, |at| self.refresh_at.max(at + pause));
        // Without a connection there is nothing to see: the next one begins with a look.
        if Instant::now() < due || !self.sender.is_connected() {
            return;
        }
        match &mut self.running {
            None => self.look(),
            Some(running) if running.kind == Kind::Effect => {
                running.kind = Kind::Interrupted;
                running.cancel.cancel();
            }
            Some(_) => {}
        }
    }

    fn look(&mut self) {
        let Some(mut worker) = self.worker.take() else { return };
        self.looked_at = Some(Instant::now());
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        let task = tokio::spawn(async move {
            let result = worker.look_again(&token).await;
            (worker, Ended::Refresh(result))
        });
        let kind = Kind::Look;
        self.running = Some(Running { task, cancel, kind });
    }

    /// Puts the next look off, unless there was a reason for another one since this one began.
    fn looked(&mut self, next: Duration) {
        if self.looked_at.is_some_and(|at| self.refresh_at <= at) {
            self.refresh_at = Instant::now() + next;
        }
    }

    fn refreshed(&mut self, result: Result<(), ReportedError>) {
        match result {
            Ok(()) => {
                self.looked(REFRESH_EVERY);
                if let Some(bytes) = self.unverified.take() {
                    self.on_desired(&bytes, Attempt::Second);
                }
            }
            Err(error) => {
                tracing::warn!(
                    code = error.code,
                    error = error.message,
                    "the metadata is not up to date"
                );
                self.looked(REFRESH_RETRY);
            }
        }
        // If it was interrupted, the update goes on where it was.
        if self.running.is_none() {
            self.go_on();
        }
    }

    /// Drops bundles that signed metadata blocks from the slots, and says what shall serve instead. What could not be
    /// written is left all the same, and written later.
    fn leave_blocked(&mut self) -> Vec<Left> {
        let Some(worker) = &self.worker else { return Vec::new() };
        let (left, written) = decide::leave_blocked(&self.keeper, &worker.trust);
        self.blocks_unwritten = written.is_err().then(|| Instant::now() + DISK_RETRY);
        if let Err(error) = written {
            log_disk(error);
        }
        left
    }

    /// Lets nothing serve that the metadata has come to block.
    async fn obey_blocks(&mut self) {
        let left = self.leave_blocked();
        if left.is_empty() {
            return;
        }
        let Some(mut worker) = self.worker.take() else { return };
        let served = tokio::task::spawn_blocking(move || {
            for left in &left {
                tracing::warn!(model.name = %left.model, model.version = left.blocked.version.0, "a blocked bundle is left");
                worker.serve_instead(left);
            }
            worker
        });
        match served.await {
            Ok(worker) => self.worker = Some(worker),
            Err(error) => tracing::error!(%error, "leaving a blocked bundle ended badly"),
        }
        self.report();
    }

    /// Idle: drop what is not wanted any more, clean up, take the next job.
    fn look_for_work(&mut self) {
        let desired = self.keeper.get().desired.clone();
        let Some(desired) = desired else { return };
        let Some(worker) = &self.worker else { return };
        let (dropped, job) = match decide::rest(&self.keeper, &worker.store, &desired) {
            Ok(decided) => decided,
            Err(error) => return log_disk(error),
        };
        for model in dropped {
            self.serving.remove(&model);
        }
        match job {
            Some(job) => {
                self.progress.begin();
                self.turn(Event::Wanted(job));
            }
            None => {
                self.report();
                self.refresh_if_due();
            }
        }
    }

    /// While an effect runs, its worker holds the trusted keys: read them from disk, they are the same.
    fn with_trust<T>(&self, ask: impl FnOnce(&Trust) -> Result<T, VerifyError>) -> Result<T, VerifyError> {
        match &self.worker {
            Some(worker) => ask(&worker.trust),
            None => ask(&Trust::open(&self.disk, &self.state_dir, self.keeper.get().floors)?),
        }
    }

    fn ask_for_the_time(&mut self) {
        let mut random = [0; NONCE_BYTES];
        if let Err(error) = getrandom::fill(&mut random) {
            return tracing::error!(%error, "no randomness from the system: the time is not asked for");
        }
        let request = self.asking.ask(random, self.clock.monotonic_ms());
        // One that does not leave is put again.
        self.sender
            .try_publish(Channel::TimeRequest, QoS::AtLeastOnce, request.to_json());
    }

    fn on_time(&mut self, bytes: &[u8]) {
        let mut asking = std::mem::take(&mut self.asking);
        let device = &self.identity.device_id;
        let answered = self.with_trust(|trust| Ok(asking.answered(bytes, device, trust, &self.clock)));
        self.asking = asking;
        match answered {
            Ok(Ok(())) => {
                tracing::info!(now_ms = self.clock.now().ms, "the control plane says what time it is");
                self.keep_time();
                self.report();
            }
            Ok(Err(error)) => tracing::warn!(%error, "a time is not taken"),
            Err(error) => tracing::warn!(%error, "a time is not taken"),
        }
    }

    /// Writes the time down if it has moved enough, and asks again if nobody has answered.
    fn keep_time(&mut self) {
        let kept = self.keeper.get().time_floor_ms;
        if let Some(floor_ms) = self.clock.floor_to_persist(kept)
            && let Err(error) = self.keeper.change(|record| record.time_floor_ms = floor_ms)
        {
            log_disk(error);
        }
        if self.asking.is_overdue(self.clock.monotonic_ms()) {
            self.ask_for_the_time();
        }
    }

    fn alarms(&self) -> Vec<ReportedError> {
        let alarm = |code: &str, message: &str| ReportedError {
            code: code.to_owned(),
            message: message.to_owned(),
        };
        let mut alarms = Vec::new();
        if self.progress.stale.load(Ordering::Relaxed) {
            alarms.push(alarm(
                "stale_metadata",
                "the newest metadata that comes has expired: nothing is installed",
            ));
        }
        if self.blocks_unwritten.is_some() {
            alarms.push(alarm(
                "disk",
                "a blocked bundle was left, and the disk does not take it: its slot is still named",
            ));
        }
        if !self.clock.now().trusted {
            alarms.push(alarm(
                "time_untrusted",
                "the clock disagrees with signed times, and nobody has answered what time it is",
            ));
        }
        alarms
    }

    fn on_desired(&mut self, bytes: &[u8], attempt: Attempt) {
        let record = self.keeper.get();
        let judged = self.with_trust(|trust| {
            let signed = trust.desired(bytes, &self.identity.device_id)?;
            let news = decide::is_news(&record, trust, &signed);
            Ok((signed, news))
        });
        let (signed, news) = match judged {
            Ok(judged) => judged,
            Err(error) => {
                tracing::warn!(code = error.code(), "a desired state is refused");
                // Its key may be newer than our root. Whoever sends rubbish can make us look once per pause.
                if matches!(error.code(), "sig_threshold" | "root_below_floor") && attempt == Attempt::First {
                    self.unverified = Some(bytes.to_vec());
                    let now = Instant::now();
                    let soon = self.looked_at.map_or(now, |at| now.max(at + REFRESH_PAUSE));
                    self.refresh_at = self.refresh_at.min(soon);
                }
                self.refused = Some(error.report());
                self.report();
                return self.refresh_if_due();
            }
        };
        // Whatever was refused before, the control plane's own word has arrived now.
        let complained = self.refused.take().is_some();
        if !news {
            if complained {
                self.report();
            }
            return;
        }
        tracing::info!(generation = signed.desired.generation.0, "a new desired state");
        let contradicts = decide::contradicts_the_time(&record, &self.clock, &signed.desired);
        if let Err(error) = decide::accept(&self.keeper, &self.clock, signed) {
            return log_disk(error);
        }
        if contradicts {
            self.ask_for_the_time();
        }
        // Whoever asks anew has a reason.
        self.postponed = None;
        // It may have come because something is blocked now.
        self.refresh_at = Instant::now();
        let update = self.keeper.get().update.clone();
        let outdated = self.is_outdated(&update);
        match (&self.running, update) {
            (None, _) => self.go_on(),
            // A look at the metadata: the work looks too.
            (Some(running), State::Idle) => running.cancel.cancel(),
            // The worker answers with `Superseded`.
            (
                Some(running),
                State::Sync { .. } | State::Download { .. } | State::Verify { .. } | State::Probation { .. },
            ) if outdated => running.cancel.cancel(),
            _ => {}
        }
    }

    /// True when the intent has changed since this update began. A Sync has brought nothing here yet, so that it begins again
    /// for every new intent: what it ends with is said of the newest.
    fn is_outdated(&self, update: &State) -> bool {
        let desired = self.keeper.get().desired.as_ref().map(|desired| desired.generation);
        match update {
            State::Idle => false,
            State::Sync { job } => desired != Some(job.generation),
            update => update.job().is_some_and(|job| !self.wants(job)),
        }
    }

    /// True when the intent still asks for what this job brings.
    fn wants(&self, job: &Job) -> bool {
        let record = self.keeper.get();
        let desired = record.desired.as_ref();
        desired.is_some_and(|desired| desired.bundles.iter().any(|a| a.index == job.assignment.index))
    }

    /// What the update under way has cost; counted once.
    fn take_cost(&self) -> Cost {
        Cost {
            wire_bytes: self.progress.wire.swap(0, Ordering::Relaxed),
            resumed: self.progress.resumed.swap(0, Ordering::Relaxed) as u32,
        }
    }

    /// The local status says whether the broker is there. The report itself need not: it would not arrive.
    fn show_connection(&self) {
        let connected = serde_json::Value::Bool(self.sender.is_connected());
        self.status.send_if_modified(|status| {
            let changed = status["connected"] != connected;
            status["connected"] = connected;
            changed
        });
    }

    /// Why the update waits. Once it goes on it does not: what it waited for has passed.
    fn waits(&self) -> Option<ReportedError> {
        let postponed = self.postponed.as_ref()?;
        matches!(self.keeper.get().update, State::Sync { .. }).then(|| postponed.error.clone())
    }

    fn report(&mut self) {
        self.seq += 1;
        self.reported_at = Instant::now();
        let facts = Facts {
            device: &self.identity.device_id,
            boot_id: &self.boot_id,
            seq: self.seq,
            now_ms: self.clock.now().ms,
            alarms: self.alarms(),
            inference_address: Some(self.address.clone()),
            progress: (
                self.progress.have.load(Ordering::Relaxed),
                self.progress.total.load(Ordering::Relaxed),
            ),
            refused: self.refused.clone(),
            waits: self.waits(),
        };
        let reported = report::reported(&self.keeper.get(), &facts);
        self.status
            .send_replace(serde_json::to_value(&reported).unwrap_or_default());
        self.show_connection();
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
