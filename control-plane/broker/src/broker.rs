//! A running broker: assembled from the parts of the wrapped crate, restored from storage, swept, and shut down.
//!
//! Not its ready-made server, which cannot run without a listener of its own and opens a store in the working
//! directory unless told otherwise.

use crate::{
    BrokerError, Hooks, Limits,
    accept::{self, Core},
    connections::Connections,
};
use mqtt5::broker::{
    BrokerConfig as MqttConfig, DynamicStorage, FileBackend, MemoryBackend, ResourceLimits, ResourceMonitor,
    StorageBackend, router::MessageRouter, storage::QueueLimits, sys_topics::BrokerStats,
};
use rustls::ServerConfig;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

/// Topic aliases that an MQTT 5 client may define. Each costs up to 64 KiB per connection; ours use none.
const TOPIC_ALIAS_MAXIMUM: u16 = 16;

/// Where a broker listens and what it keeps.
#[derive(Debug, Clone)]
pub struct BrokerConfig {
    /// The TCP address; port 0 means any free one.
    pub bind: SocketAddr,
    /// The folder for sessions, their queues and retained messages; `None` keeps them in memory.
    ///
    /// Writes lag the acknowledgement by moments: what must survive a power cut needs another home. One broker per
    /// folder.
    pub storage: Option<PathBuf>,
    /// TLS, which must ask every client for a certificate; `None` is for this machine's own clients and for tests.
    ///
    /// It must not resume sessions: the certificate of a resumed one is not verified again.
    pub tls: Option<Arc<ServerConfig>>,
    /// What clients may use.
    pub limits: Limits,
}

/// A running broker. Dropping it stops it without waiting; [`shutdown`](Self::shutdown) waits.
pub struct Broker {
    local_addr: SocketAddr,
    connections: Arc<Connections>,
    storage: Arc<DynamicStorage>,
    stop: oneshot::Sender<()>,
    accepting: JoinHandle<()>,
}

impl Broker {
    /// Restores the stored state and starts to listen; clients can connect when this returns.
    ///
    /// # Errors
    /// A bad limit, a taken port or an unusable storage folder, each by name. Nothing is left running.
    pub async fn start(config: BrokerConfig, hooks: Arc<dyn Hooks>) -> Result<Self, BrokerError> {
        let BrokerConfig {
            bind,
            storage,
            tls,
            limits,
        } = config;
        limits.validate()?;
        let bind_error = |source| BrokerError::Bind { address: bind, source };
        let listener = TcpListener::bind(bind).await.map_err(bind_error)?;
        let local_addr = listener.local_addr().map_err(bind_error)?;

        let storage = Arc::new(open_storage(storage.as_deref(), &limits).await?);
        let router = MessageRouter::with_storage(Arc::clone(&storage))
            .with_fallback_queue_limits(queue_limits(&limits))
            .with_retained_limits(limits.max_retained_messages, limits.max_packet_bytes);
        let router = Arc::new(router);
        restore(&router, &storage, limits.session_expiry).await?;

        let connections = Arc::new(Connections::default());
        let core = Arc::new(Core {
            hooks,
            tls: tls.map(TlsAcceptor::from),
            config: Arc::new(mqtt_config(&limits)),
            router: Arc::clone(&router),
            storage: Arc::clone(&storage),
            stats: Arc::new(BrokerStats::new()),
            monitor: Arc::new(ResourceMonitor::new(resource_limits(&limits))),
            connections: Arc::clone(&connections),
            limits: limits.clone(),
        });
        let (stop, stopped) = oneshot::channel();
        let sweeping = sweep(router, Arc::clone(&storage), limits.sweep_interval);
        let accepting = tokio::spawn(async move {
            // The sweep lasts as long as the accept loop and never ends by itself.
            tokio::select! {
                () = accept::run(listener, core, stopped) => {}
                () = sweeping => {}
            }
        });
        tracing::info!(address = %local_addr, "MQTT broker listens");
        Ok(Self {
            local_addr,
            connections,
            storage,
            stop,
            accepting,
        })
    }

    /// Returns the address that clients reach: the real port, if port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Returns what ends the connections of single clients, for whoever does not own the broker.
    pub fn disconnect(&self) -> Disconnect {
        Disconnect(Arc::clone(&self.connections))
    }

    /// Stops listening, ends all connections within [`Limits::shutdown_deadline`] and writes the stored state out.
    ///
    /// Last wills are sent, and stay if retained. Messages under way to a client that does not read may be lost when
    /// it is cut off.
    pub async fn shutdown(self) {
        // An error means that the loop has ended already, which the join below reports.
        let _ = self.stop.send(());
        if let Err(error) = self.accepting.await {
            tracing::error!(%error, "the MQTT accept loop did not end by itself");
        }
        if let Err(error) = self.storage.shutdown().await {
            tracing::error!(%error, "cannot write the broker's stored state out");
        }
    }
}

/// Ends the connections of single clients.
#[derive(Clone)]
pub struct Disconnect(Arc<Connections>);

impl Disconnect {
    /// Closes the connection of a client, if it has one; its session and last will go as in a lost connection.
    ///
    /// It may come back at once: have [`Hooks::authenticate`] refuse it first. An MQTT 5 client is told "server
    /// shutting down". Returns without waiting for the connection to end.
    pub fn client(&self, client_id: &str) {
        self.0.stop_client(client_id);
    }
}

async fn open_storage(path: Option<&Path>, limits: &Limits) -> Result<DynamicStorage, BrokerError> {
    let queues = queue_limits(limits);
    let Some(path) = path else {
        return Ok(DynamicStorage::Memory(MemoryBackend::with_queue_limits(queues)));
    };
    if path.as_os_str().is_empty() {
        return Err(BrokerError::EmptyStoragePath);
    }
    let backend = FileBackend::with_queue_limits(path, queues)
        .await
        .map_err(|source| BrokerError::OpenStorage {
            path: path.to_owned(),
            source: source.into(),
        })?;
    Ok(DynamicStorage::File(backend))
}

async fn restore(
    router: &MessageRouter,
    storage: &DynamicStorage,
    session_expiry: Duration,
) -> Result<(), BrokerError> {
    let session_expiry_secs = u32::try_from(session_expiry.as_secs()).unwrap_or(u32::MAX);
    let restored = async {
        // In this order: sessions are capped to the limit, then what has expired goes, then messages are loaded.
        router.recover_sessions(session_expiry_secs).await?;
        storage.cleanup_expired().await?;
        router.initialize().await
    };
    restored
        .await
        .map_err(|source| BrokerError::Restore { source: source.into() })
}

async fn sweep(router: Arc<MessageRouter>, storage: Arc<DynamicStorage>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        if let Err(error) = storage.cleanup_expired().await {
            tracing::warn!(%error, "cannot remove expired MQTT messages");
        }
        router.sweep_sessions().await;
    }
}

fn queue_limits(limits: &Limits) -> QueueLimits {
    QueueLimits {
        max_messages: limits.max_queued_messages,
        max_bytes: limits.max_queued_bytes,
    }
}

/// The wrapped broker's configuration. It binds and stores nothing here: those parts are ours.
fn mqtt_config(limits: &Limits) -> MqttConfig {
    MqttConfig {
        bind_addresses: Vec::new(),
        max_clients: limits.max_clients,
        session_expiry_interval: limits.session_expiry,
        max_packet_size: limits.max_packet_bytes,
        topic_alias_maximum: TOPIC_ALIAS_MAXIMUM,
        max_subscriptions_per_client: limits.max_subscriptions_per_client,
        max_retained_messages: limits.max_retained_messages,
        max_retained_message_size: limits.max_packet_bytes,
        client_channel_capacity: limits.client_channel_capacity,
        max_outbound_inflight: limits.max_outbound_inflight,
        server_receive_maximum: Some(limits.server_receive_maximum),
        sys_topics_enabled: false,
        ..MqttConfig::default()
    }
}

/// The accept loop counts connections itself, and rates are not limited; the monitor only keeps the books.
fn resource_limits(limits: &Limits) -> ResourceLimits {
    ResourceLimits {
        max_connections: limits.max_clients,
        max_connections_per_ip: limits.max_clients,
        max_message_rate_per_client: 0,
        max_bandwidth_per_client: 0,
        max_connection_rate: u32::MAX,
        rate_limit_window: Duration::from_secs(1),
    }
}
