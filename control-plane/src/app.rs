//! The running control plane: its parts, and the one place that wires them.

use std::{
    fs::{File, TryLockError},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail};
use axum::middleware;
use skerry_broker::{Broker, BrokerConfig, Disconnect};
use skerry_shared::{
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
    ca::own::OwnCertificates,
    config::{BrokerAccess, Config, Mqtt},
    db::{Db, DbError, Durability, Migration},
    devices::{self, DeviceError, token::Pins},
    https, mqtt, publish, rollouts,
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
        number: 8,
        sql: include_str!("../migrations/core/008_certificates.sql"),
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
    Migration {
        number: 15,
        sql: include_str!("../migrations/core/015_model_signatures.sql"),
    },
    Migration {
        number: 16,
        sql: include_str!("../migrations/core/016_device_keys.sql"),
    },
    Migration {
        number: 17,
        sql: include_str!("../migrations/core/017_device_keys_network.sql"),
    },
    Migration {
        number: 18,
        sql: include_str!("../migrations/core/018_agent_packages.sql"),
    },
];

/// How often what was added to the audit log is signed: what a thief of the machine can cut off without a trace.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(3600);
/// The file of audit checkpoints in the data folder.
const CHECKPOINTS: &str = "audit-checkpoints.jsonl";
/// How long tasks may take to end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);
/// How often the control plane looks at the life of its metadata and of its certificates.
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
    /// Root or targets metadata: a bundle may be forbidden now.
    Metadata,
    /// A rollout: its state, or that of one of its devices.
    Rollout(RolloutId),
    /// Telemetry of some devices is stored.
    Telemetry,
    /// A training run: its status or metrics.
    Run(RunId),
    /// A user or an API token: what has signed in must be looked at again.
    Access,
    /// A key that may enrol without a token, or asks to.
    DeviceKeys,
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
    /// The fleet's certificate authority, and the control plane's own certificates.
    pub certificates: Arc<OwnCertificates>,
    /// The sending side of the transfer.
    pub transfer: Transfer,
    /// Training runs.
    pub training: Training,
    /// Checks credentials.
    pub access: Access,
    /// The identity provider, if people sign in through one.
    #[cfg(feature = "oidc")]
    pub oidc: Option<Arc<access::oidc::Oidc>>,
    /// What moved.
    pub changes: Changes,
    /// Wakes the publisher of desired states.
    pub desired_changed: Notify,
    /// Where devices find the broker; without a host it is where they found the API.
    pub mqtt_address: (Option<String>, u16),
    /// Ends connections at the embedded broker.
    pub broker: Option<Disconnect>,
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

    /// What a device that enrols from now on must trust.
    pub fn pins(&self) -> Pins {
        Pins {
            root: self.keys.root_digest(),
            authority: self.certificates.authority().digest(),
        }
    }

    /// Takes a device's access away, and ends its connection at once. A broker elsewhere must be told by its own means: until
    /// then it believes the certificate.
    ///
    /// # Errors
    /// [`DeviceError::NotFound`], or the database's.
    pub async fn revoke_device(&self, id: &DeviceId, by: By) -> Result<(), DeviceError> {
        devices::revoke(&self.core, id, by).await?;
        // Also if it was revoked before: the connection may have outlived a crash in between.
        if let Some(broker) = &self.broker {
            broker.client(id.as_str());
        }
        self.changes.send(Change::Device(id.clone()));
        Ok(())
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
        let certificates = Arc::new(OwnCertificates::open(&config, now_ms())?);
        let security = match config.http_plain {
            true => https::Security::Plain,
            false => https::Security::Tls {
                people: Arc::new(certificates.for_people()?),
                devices: Arc::new(certificates.for_renewal()?),
            },
        };
        let core = Db::open(&data.join("core.db"), Durability::Full, CORE_MIGRATIONS)?;
        let newest_root = publish::newest_root(&core).await?;
        let keys = Arc::new(OnlineKeys::read(config.signing(), newest_root)?);
        let telemetry = Db::open(&data.join("telemetry.db"), Durability::Normal, telemetry::MIGRATIONS)?;
        let blobs = BlobStore::open_folder(&data.join("blobs"))?;
        publish::ensure(&core, &keys, By::control_plane(now_ms()))
            .await
            .context("cannot make the first metadata")?;
        #[cfg(feature = "oidc")]
        let oidc = config.oidc.clone().map(access::oidc::Oidc::new).transpose()?;
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
        let (broker, connection) = start_broker(&config, &core, &certificates).await?;
        let shutdown = CancellationToken::new();
        // Shown once: only now that nothing can keep it from being shown.
        let first_api_token = access::ensure_first_token(&core, now_ms()).await?;
        let bound = broker.as_ref().map(|broker| broker.local_addr().ip().to_string());
        let mqtt_address = config.advertised(bound.as_ref().unwrap_or(&connection.host), connection.port);
        let app = Arc::new(App {
            training: training.clone(),
            transfer: Transfer::new(core.clone(), blobs.clone()),
            mqtt_address,
            broker: broker.as_ref().map(Broker::disconnect),
            access: Access::new(&config.requests),
            #[cfg(feature = "oidc")]
            oidc: oidc.map(Arc::new),
            config,
            core,
            telemetry,
            blobs,
            keys,
            certificates,
            changes,
            desired_changed: Notify::new(),
            shutdown: shutdown.clone(),
        });
        let mut tasks = JoinSet::new();
        mqtt::spawn(&mut tasks, &app, connection, &shutdown);
        tasks.spawn(renew(Arc::clone(&app), shutdown.clone()));
        tasks.spawn(sign_audit_log(Arc::clone(&app), shutdown.clone()));
        tasks.spawn(drive_rollouts(Arc::clone(&app), shutdown.clone()));
        tasks.spawn(training.execute(shutdown.clone()));
        let router = router(&app);
        let limits = app.config.connections.https;
        tasks.spawn(https::serve(listener, security, limits, router, shutdown.clone()));
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

    /// True unless a proxy is to do TLS.
    pub fn is_secured(&self) -> bool {
        !self.app.config.http_plain
    }

    /// The API's address as a URL.
    pub fn url(&self) -> String {
        let scheme = if self.is_secured() { "https" } else { "http" };
        format!("{scheme}://{}", self.http_address)
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

/// Starts the embedded broker, if there is to be one, and says how to reach it or the one elsewhere.
async fn start_broker(
    config: &Config,
    core: &Db,
    certificates: &OwnCertificates,
) -> anyhow::Result<(Option<Broker>, mqtt::Connection)> {
    let bind = match &config.mqtt {
        Mqtt::Embedded { bind } => *bind,
        Mqtt::External { host, port, access } => {
            let security = match access {
                BrokerAccess::Tls { ca, own } => {
                    let tls = certificates.for_external_broker(ca.as_deref(), own.as_ref())?;
                    mqtt::Security::Tls(Arc::new(tls))
                }
                BrokerAccess::Plain { username, password } => {
                    mqtt::Security::Plain(Some((username.clone(), password.clone())))
                }
            };
            let connection = mqtt::Connection {
                host: host.clone(),
                port: *port,
                security,
                admitted: None,
            };
            return Ok((None, connection));
        }
    };
    let (tls, proof, security) = match config.mqtt_plain {
        true => (None, mqtt::Proof::None, mqtt::Security::Plain(None)),
        false => {
            let tls = Arc::new(certificates.for_broker()?);
            let own = Arc::new(certificates.for_embedded_broker()?);
            (Some(tls), mqtt::Proof::Certificate, mqtt::Security::Tls(own))
        }
    };
    let hooks = Arc::new(mqtt::BrokerHooks::new(core.clone(), proof));
    let admitted = hooks.admitted();
    let broker = BrokerConfig {
        bind,
        storage: Some(config.data_dir.join("broker")),
        tls,
        limits: config.connections.broker(),
    };
    let broker = Broker::start(broker, hooks).await?;
    let address = broker.local_addr();
    // A broker that listens everywhere listens here, too; no certificate says `0.0.0.0`.
    let host = match address.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let connection = mqtt::Connection {
        host: host.to_string(),
        port: address.port(),
        security,
        admitted: Some(admitted),
    };
    Ok((Some(broker), connection))
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

async fn renew(app: Arc<App>, shutdown: CancellationToken) {
    loop {
        if let Err(error) = publish::renew(&app.core, &app.keys, now_ms()).await {
            tracing::error!(error = %anyhow::Error::new(error), "cannot renew the metadata");
        }
        if let Err(error) = app.certificates.renew(now_ms()) {
            tracing::error!(
                error = format!("{:#}", anyhow::Error::new(error)),
                "cannot renew the certificates"
            );
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
            Ok(Change::Device(_) | Change::Rollout(_) | Change::Metadata)
            | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Ok(
                Change::Model(_)
                | Change::Bundle(..)
                | Change::Run(_)
                | Change::Telemetry
                | Change::Access
                | Change::DeviceKeys,
            ) => {}
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
