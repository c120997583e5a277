//! The running control plane: its parts, and the one place that wires them.

use std::{
    fs::{File, TryLockError},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use axum::middleware;
use skerry_broker::{Broker, BrokerConfig, Limits};
use skerry_shared::{
    digest::Digest,
    dsse::Envelope,
    id::{DeviceId, ModelName, ModelVersion, RolloutId, RunId},
};
use tokio::{
    net::TcpListener,
    sync::{Notify, broadcast},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::{
    access::{self, Access},
    api,
    audit::{self, By},
    blob::BlobStore,
    config::{Config, Mqtt},
    db::{Db, DbError, Durability, Migration},
    mqtt, publish, rollouts,
    signing::online::OnlineKeys,
    telemetry,
    training::{Limits as TrainingLimits, Moved, Parts as TrainingParts, Training},
    transfer::Transfer,
    web,
};

pub(crate) const CORE_MIGRATIONS: &[Migration] = &[
    Migration {
        number: 1,
        sql: include_str!("../migrations/core/001_devices.sql"),
    },
    Migration {
        number: 2,
        sql: include_str!("../migrations/core/002_registry.sql"),
    },
    Migration {
        number: 3,
        sql: include_str!("../migrations/core/003_publish.sql"),
    },
    Migration {
        number: 4,
        sql: include_str!("../migrations/core/004_rollouts.sql"),
    },
    Migration {
        number: 5,
        sql: include_str!("../migrations/core/005_training.sql"),
    },
    Migration {
        number: 6,
        sql: include_str!("../migrations/core/006_enrolment.sql"),
    },
    Migration {
        number: 7,
        sql: include_str!("../migrations/core/007_roots.sql"),
    },
    Migration {
        number: 10,
        sql: include_str!("../migrations/core/010_access.sql"),
    },
    Migration {
        number: 11,
        sql: include_str!("../migrations/core/011_four_eyes.sql"),
    },
    Migration {
        number: 12,
        sql: include_str!("../migrations/core/012_audit.sql"),
    },
    Migration {
        number: 13,
        sql: include_str!("../migrations/core/013_approval.sql"),
    },
];

/// How often what was added to the audit log is signed: what a thief of the machine can cut off without a trace.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(3600);
/// The file of audit checkpoints in the data folder.
const CHECKPOINTS: &str = "audit-checkpoints.jsonl";
/// How long tasks may take to end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);
/// How often the metadata's life is looked at.
const RENEW_EVERY: Duration = Duration::from_secs(3600);
/// After a database error; the next change wakes the rollouts earlier.
const ROLLOUT_RETRY: Duration = Duration::from_secs(5);

/// What moved. The console, `rollout watch` and drivers listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A device: its connection, labels, desired or reported state.
    Device(DeviceId),
    /// A registered model.
    Model(ModelName),
    /// A published bundle.
    Bundle(ModelName, ModelVersion),
    /// A rollout: its state, or that of one of its devices.
    Rollout(RolloutId),
    /// Telemetry of some devices is stored.
    Telemetry,
    /// A training run: its status or metrics.
    Run(RunId),
    /// A user or an API token: what has signed in must be looked at again.
    Access,
}

/// Tells whoever listens that something moved. A slow listener misses changes and must look again.
#[derive(Clone)]
pub struct Changes(broadcast::Sender<Change>);

impl Changes {
    fn new() -> Changes {
        Changes(broadcast::channel(1024).0)
    }

    /// Tells all listeners.
    pub fn send(&self, change: Change) {
        // Nobody listening is no error.
        let _ = self.0.send(change);
    }

    /// Listens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.0.subscribe()
    }
}

/// The parts of a running control plane.
pub struct App {
    /// The configuration.
    pub config: Config,
    /// `core.db`: devices, registry, published metadata.
    pub core: Db,
    /// `telemetry.db`. Only the edge writes to it, through [`telemetry::ingest`].
    pub telemetry: Db,
    /// Content by digest.
    pub blobs: BlobStore,
    /// The online keys.
    pub keys: Arc<OnlineKeys>,
    /// The sending side of the transfer.
    pub transfer: Transfer,
    /// Training runs.
    pub training: Training,
    /// Checks credentials.
    pub access: Access,
    /// What moved.
    pub changes: Changes,
    /// Wakes the publisher of desired states.
    pub desired_changed: Notify,
    /// Where devices find the broker; without a host it is where they found the API.
    pub mqtt_address: (Option<String>, u16),
    /// Cancelled when the control plane ends: an answer that goes on must end then.
    pub shutdown: CancellationToken,
}

impl App {
    /// The newest audit checkpoint; signs a new one if entries have come since.
    ///
    /// # Errors
    /// The database's.
    pub async fn checkpoint(&self) -> Result<Envelope, DbError> {
        let file = self.config.data_dir.join(CHECKPOINTS);
        audit::checkpoint::make(&self.core, &self.keys, &file, now_ms()).await
    }
}

/// Now, in UTC milliseconds.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis() as u64
}

/// A running control plane.
pub struct Server {
    app: Arc<App>,
    http_address: SocketAddr,
    first_api_token: Option<Zeroizing<String>>,
    broker: Option<Broker>,
    tasks: JoinSet<()>,
    shutdown: CancellationToken,
    /// Held for as long as the data folder is in use.
    _lock: File,
}

impl Server {
    /// Opens the data folder and starts listening. Everything works when it returns.
    ///
    /// # Errors
    /// When a port is taken, the keys are missing or the data cannot be opened; nothing is left running.
    pub async fn start(config: Config) -> anyhow::Result<Server> {
        let data = &config.data_dir;
        std::fs::create_dir_all(data).with_context(|| format!("cannot make data folder {}", data.display()))?;
        let lock = lock(data)?;
        let core = Db::open(&data.join("core.db"), Durability::Full, CORE_MIGRATIONS)?;
        let newest_root = publish::newest_root(&core).await?;
        let keys = Arc::new(OnlineKeys::read(config.signing(), newest_root)?);
        let telemetry = Db::open(&data.join("telemetry.db"), Durability::Normal, telemetry::MIGRATIONS)?;
        let blobs = BlobStore::open_folder(&data.join("blobs"))?;
        publish::ensure(&core, &keys, By::control_plane(now_ms()))
            .await
            .context("cannot make the first metadata")?;
        let listener = TcpListener::bind(config.http_bind).await;
        let listener = listener.with_context(|| {
            format!(
                "cannot listen on {} for HTTP (--http-bind or [http] bind chooses another address)",
                config.http_bind
            )
        })?;
        let http_address = listener.local_addr().context("cannot learn the HTTP address")?;

        let changes = Changes::new();
        let training = open_training(&config, &core, &blobs, changes.clone()).await?;

        // The broker last: what fails before it leaves nothing running.
        let own_password = random_hex::<32>()?;
        let (broker, connection) = match &config.mqtt {
            Mqtt::Embedded { bind } => {
                let hooks = Arc::new(mqtt::BrokerHooks::new(
                    core.clone(),
                    Digest::of(own_password.as_bytes()),
                ));
                let admitted = hooks.admitted();
                let storage = Some(data.join("broker"));
                let broker = BrokerConfig {
                    bind: *bind,
                    storage,
                    limits: Limits::default(),
                };
                let broker = Broker::start(broker, hooks).await?;
                let address = broker.local_addr();
                let connection = mqtt::Connection {
                    host: address.ip().to_string(),
                    port: address.port(),
                    username: mqtt::CONTROL_PLANE.to_owned(),
                    password: own_password,
                    admitted: Some(admitted),
                };
                (Some(broker), connection)
            }
            Mqtt::External {
                host,
                port,
                username,
                password,
            } => {
                let (username, password) = (username.clone(), password.clone());
                (
                    None,
                    mqtt::Connection {
                        host: host.clone(),
                        port: *port,
                        username,
                        password,
                        admitted: None,
                    },
                )
            }
        };
        let shutdown = CancellationToken::new();
        // Shown once: only now that nothing can keep it from being shown.
        let first_api_token = access::ensure_first_token(&core, now_ms()).await?;
        let app = Arc::new(App {
            training: training.clone(),
            transfer: Transfer::new(core.clone(), blobs.clone()),
            mqtt_address: config.advertised(&connection.host, connection.port),
            access: Access::new(&config.requests),
            config,
            core,
            telemetry,
            blobs,
            keys,
            changes,
            desired_changed: Notify::new(),
            shutdown: shutdown.clone(),
        });
        let mut tasks = JoinSet::new();
        mqtt::spawn(&mut tasks, &app, connection, &shutdown);
        tasks.spawn(renew_metadata(Arc::clone(&app), shutdown.clone()));
        tasks.spawn(sign_audit_log(Arc::clone(&app), shutdown.clone()));
        tasks.spawn(drive_rollouts(Arc::clone(&app), shutdown.clone()));
        tasks.spawn(training.execute(shutdown.clone()));
        let service = router(&app).into_make_service_with_connect_info::<SocketAddr>();
        let stop = shutdown.clone().cancelled_owned();
        tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, service).with_graceful_shutdown(stop).await {
                tracing::error!(%error, "the HTTP server ended");
            }
        });
        tracing::info!(address = %http_address, "control plane listens");
        Ok(Server {
            app,
            http_address,
            first_api_token,
            broker,
            tasks,
            shutdown,
            _lock: lock,
        })
    }

    /// Where the API listens: the real port, if port 0 was asked for.
    pub fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// Where the embedded broker listens.
    pub fn mqtt_address(&self) -> Option<SocketAddr> {
        self.broker.as_ref().map(Broker::local_addr)
    }

    /// The parts.
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// The first API token, at the first start with this data folder. It is not stored and not shown again.
    pub fn first_api_token(&self) -> Option<&str> {
        self.first_api_token.as_ref().map(|token| token.as_str())
    }

    /// Ends all tasks, within a deadline.
    pub async fn shutdown(mut self) {
        self.shutdown.cancel();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_DEADLINE, drained).await.is_err() {
            tracing::warn!("some tasks did not end in time");
            self.tasks.abort_all();
        }
        log_db(self.app.checkpoint().await.map(drop), "audit checkpoint");
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
    }
}

/// All routes: the API, and the console for the rest.
pub(crate) fn router(app: &Arc<App>) -> axum::Router {
    api::router(Arc::clone(app))
        .merge(web::router(Arc::clone(app)))
        .layer(middleware::from_fn_with_state(Arc::clone(app), api::load::bound))
}

/// Holds the data folder for one control plane: a second one would take the first one's runs for dead.
fn lock(data: &Path) -> anyhow::Result<File> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data.join("lock"));
    let file = file.with_context(|| format!("cannot open the lock in {}", data.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("another control plane runs with data folder {}", data.display()),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", data.display())),
    }
}

async fn open_training(config: &Config, core: &Db, blobs: &BlobStore, changes: Changes) -> anyhow::Result<Training> {
    let parts = TrainingParts {
        db: core.clone(),
        blobs: blobs.clone(),
        folder: config.data_dir.join("runs"),
        config: config.training.clone(),
        limits: TrainingLimits::default(),
        now_ms,
        moved: Box::new(move |moved| {
            changes.send(match moved {
                Moved::Run(run) => Change::Run(run),
                Moved::Model(model) => Change::Model(model),
            });
        }),
    };
    Training::open(parts).await.context("cannot take up the training runs")
}

async fn renew_metadata(app: Arc<App>, shutdown: CancellationToken) {
    loop {
        if let Err(error) = publish::renew(&app.core, &app.keys, now_ms()).await {
            tracing::error!(error = %anyhow::Error::new(error), "cannot renew the metadata");
        }
        tokio::select! {
            () = tokio::time::sleep(RENEW_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn sign_audit_log(app: Arc<App>, shutdown: CancellationToken) {
    loop {
        log_db(app.checkpoint().await.map(drop), "audit checkpoint");
        tokio::select! {
            () = tokio::time::sleep(CHECKPOINT_EVERY) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// Evaluates rollouts when a device has said something, when a person has changed one, and when a silence may have become
/// too long. Changes that come while it works are looked at together.
async fn drive_rollouts(app: Arc<App>, shutdown: CancellationToken) {
    let mut changes = app.changes.subscribe();
    loop {
        let next_look_at_ms = match evaluate_all(&app).await {
            Ok(next) => next,
            Err(error) => {
                tracing::error!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "cannot evaluate the rollouts"
                );
                Some(now_ms() + ROLLOUT_RETRY.as_millis() as u64)
            }
        };
        let wait = async {
            match next_look_at_ms {
                Some(at) => tokio::time::sleep(Duration::from_millis(at.saturating_sub(now_ms()))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = wait => {}
            () = relevant_change(&mut changes) => {}
            () = shutdown.cancelled() => return,
        }
        // Everything that has come by now is seen by the next evaluation.
        changes = changes.resubscribe();
    }
}

async fn relevant_change(changes: &mut broadcast::Receiver<Change>) {
    loop {
        match changes.recv().await {
            Ok(Change::Device(_) | Change::Rollout(_)) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Ok(Change::Model(_) | Change::Bundle(..) | Change::Run(_) | Change::Telemetry | Change::Access) => {}
            // The sender lives in the app, which this task holds.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// When to look again, in UTC milliseconds.
async fn evaluate_all(app: &App) -> Result<Option<u64>, rollouts::RolloutError> {
    let mut next_look_at_ms = None;
    for id in rollouts::under_way(&app.core).await? {
        loop {
            let evaluated = rollouts::evaluate(&app.core, &app.config.rollouts, id, now_ms()).await?;
            if evaluated.assigned {
                app.desired_changed.notify_one();
            }
            if !evaluated.changed {
                next_look_at_ms = evaluated.next_look_at_ms.into_iter().chain(next_look_at_ms).min();
                break;
            }
            // One step may make the next one possible: a group that has just passed begins the one after it.
            app.changes.send(Change::Rollout(id));
        }
    }
    Ok(next_look_at_ms)
}

/// `N` random bytes in hex.
///
/// # Errors
/// When the system has no randomness.
pub fn random_hex<const N: usize>() -> anyhow::Result<String> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("no randomness from the system")?;
    Ok(hex::encode(bytes))
}

/// A database error on a path where only the log can be told.
pub(crate) fn log_db(result: Result<(), DbError>, what: &'static str) {
    if let Err(error) = result {
        tracing::error!(error = %anyhow::Error::new(error), what, "a database call failed");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cli::keys;

    #[tokio::test]
    async fn the_first_token_is_made_by_the_start_that_can_show_it() {
        let folder = tempfile::tempdir().unwrap();
        keys::init(&folder.path().join("signing")).unwrap();
        let mut config = Config::new(folder.path());
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        config.http_bind = any_port;
        config.mqtt = Mqtt::Embedded { bind: any_port };
        config.signing_dir = folder.path().join("signing/online");
        let in_the_way = config.data_dir.join("runs");
        std::fs::create_dir_all(&config.data_dir).unwrap();
        std::fs::write(&in_the_way, "").unwrap();
        assert!(Server::start(config.clone()).await.is_err());
        std::fs::remove_file(in_the_way).unwrap();
        let server = Server::start(config).await.unwrap();
        assert!(server.first_api_token().is_some());
        let second = Server::start(server.app().config.clone()).await.err().unwrap();
        assert!(second.to_string().contains("another control plane"), "{second}");
    }
}
