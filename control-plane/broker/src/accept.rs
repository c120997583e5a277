//! The accept loop: takes sockets, serves each in its own task, and ends them all at shutdown.
//!
//! Ours rather than the wrapped broker's, because it binds port 0, bounds sockets before CONNECT, and lets each
//! connection carry what its transport has proved.

use crate::{
    Hooks, Limits, Shares,
    auth::ConnectionAuth,
    connections::{Connections, OpenConnection},
    limits::limit_writes,
};
use mqtt5::broker::{
    BrokerConfig as MqttConfig, DynamicStorage, ResourceMonitor, client_handler::ClientHandler, router::MessageRouter,
    sys_topics::BrokerStats, tls_acceptor::TlsStreamWrapper, transport::BrokerTransport,
};
use rustls::pki_types::CertificateDer;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, broadcast, oneshot},
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, warn};

/// Out of file descriptors, `accept` fails at once and for ever; the pause keeps the loop from eating a core.
const PAUSE_AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);

/// What every connection needs.
pub(crate) struct Core {
    pub(crate) hooks: Arc<dyn Hooks>,
    pub(crate) limits: Limits,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) config: Arc<MqttConfig>,
    pub(crate) router: Arc<MessageRouter>,
    pub(crate) storage: Arc<DynamicStorage>,
    pub(crate) stats: Arc<BrokerStats>,
    pub(crate) monitor: Arc<ResourceMonitor>,
    pub(crate) connections: Arc<Connections>,
}

impl Core {
    /// Serves one socket to its end; the connection is in the table until the future is dropped.
    async fn serve(
        self: Arc<Self>,
        (stream, peer): (TcpStream, SocketAddr),
        open: OpenConnection,
        mut stopped: broadcast::Receiver<()>,
    ) {
        let secured = tokio::select! {
            secured = timeout(self.limits.handshake_timeout, self.secure(stream)) => secured,
            _ = stopped.recv() => return,
        };
        let (transport, certificate) = match secured {
            Ok(Ok(secured)) => secured,
            // Not a warning: every port scanner would fill the log.
            Ok(Err(error)) => return debug!(%peer, %error, "MQTT connection broke while it was accepted"),
            Err(_) => return debug!(%peer, "the TLS handshake of an MQTT connection took too long"),
        };
        let auth = ConnectionAuth {
            hooks: Arc::clone(&self.hooks),
            connection: Arc::clone(&open.connection),
            certificate,
        };
        let handler = ClientHandler::new(
            transport,
            peer,
            Arc::clone(&self.config),
            Arc::clone(&self.router),
            Arc::new(auth),
            Some(Arc::clone(&self.storage)),
            Arc::clone(&self.stats),
            Arc::clone(&self.monitor),
            open.connection.stopped(),
        );
        // The handler looks at its stop signal only once the client is identified, and then it has a session to close.
        // Before that it has nothing, and is dropped.
        let stopped_early = async {
            let _ = stopped.recv().await;
            if open.connection.identity().is_some() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            outcome = handler.run() => if let Err(error) = outcome {
                debug!(%peer, %error, "MQTT connection ended");
            },
            () = stopped_early => debug!(%peer, "MQTT connection ended before it was identified"),
            () = open.connection.stop_in_time() => {}
        }
    }

    /// Does the TLS handshake, if there is to be one, and gives the certificate that it has verified.
    async fn secure(&self, stream: TcpStream) -> io::Result<(BrokerTransport, Option<CertificateDer<'static>>)> {
        stream.set_nodelay(true)?;
        limit_writes(&stream, self.limits.write_timeout)?;
        let Some(tls) = &self.tls else {
            return Ok((BrokerTransport::tcp(stream), None));
        };
        let stream = tls.accept(stream).await?;
        let chain = stream.get_ref().1.peer_certificates();
        let certificate = chain
            .and_then(|chain| chain.first())
            .map(|first| first.clone().into_owned());
        let certificate = certificate.ok_or_else(|| io::Error::other("the client has shown no certificate"))?;
        Ok((BrokerTransport::tls(TlsStreamWrapper::new(stream)), Some(certificate)))
    }
}

/// Accepts sockets until `stop` fires or its sender is dropped, then closes what is open.
pub(crate) async fn run(listener: TcpListener, core: Arc<Core>, mut stop: oneshot::Receiver<()>) {
    let places = Arc::new(Semaphore::new(core.limits.max_clients.min(Semaphore::MAX_PERMITS)));
    let shares = Shares::new(core.limits.handshakes_per_network);
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stop => break,
            Some(ended) = tasks.join_next() => log_panic(ended),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match (Arc::clone(&places).try_acquire_owned(), shares.take(peer.ip())) {
                    (Ok(place), Some(share)) => {
                        // Here and not in its task: a stop that comes before the task has begun must find it in the table.
                        let open = core.connections.open(share);
                        let stopped = open.connection.stopped();
                        let served = Arc::clone(&core).serve((stream, peer), open, stopped);
                        tasks.spawn(async move {
                            served.await;
                            drop(place);
                        });
                    }
                    (Err(_), _) => warn!(%peer, "MQTT connection refused: max_clients connections are open"),
                    // Not a warning: whoever floods would fill the log too.
                    (_, None) => debug!(%peer, "MQTT connection refused: its network has handshakes_per_network under way"),
                },
                Err(error) => {
                    warn!(%error, "cannot accept an MQTT connection");
                    sleep(PAUSE_AFTER_ACCEPT_ERROR).await;
                }
            },
        }
    }
    drop(listener);
    drain(tasks, &core).await;
}

/// Ends all connections: kindly, then, for clients that do not read, by force.
async fn drain(mut tasks: JoinSet<()>, core: &Core) {
    core.connections.stop_all();
    let all_ended = async {
        while let Some(ended) = tasks.join_next().await {
            log_panic(ended);
        }
    };
    if timeout(core.limits.shutdown_deadline, all_ended).await.is_err() {
        warn!(
            connections = tasks.len(),
            "MQTT connections did not end in time and are cut off"
        );
        tasks.shutdown().await;
    }
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "the task of an MQTT connection panicked");
    }
}
