//! Where the API and the console listen: HTTPS, with time limits for the handshake, for headers and for whoever does not read,
//! and limits on open connections, in all and of one network.
//!
//! It knows bytes and certificates, no routes. A device says in its TLS greeting that it is one; only then is a client
//! certificate asked for. Invariant: whatever a client does or leaves out, its place is free again after a limited time,
//! unless it is being answered.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{HeaderValue, Request, Response, header},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::{ServerConfig, server::Acceptor};
use skerry_broker::{Shares, limit_writes};
use skerry_tls::{DEVICE_PROTOCOL, NOT_TLS, TLS_HANDSHAKE};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::ca::certificate::ClientCertificate;

/// A slow board over a bad link needs seconds; whoever needs longer holds a place for nothing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Also how long an idle connection is kept for the next request.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(30);
/// Out of file descriptors, `accept` fails at once and for ever; the pause keeps the loop from eating a core.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);
/// How long answers under way may take at shutdown.
const DRAIN: Duration = Duration::from_secs(5);
/// A year: a browser that has trusted the certificate once never asks without TLS again.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// How connections are secured.
#[derive(Clone)]
pub(crate) enum Security {
    /// Not at all: a proxy on this machine does it.
    Plain,
    /// By TLS.
    Tls {
        people: Arc<ServerConfig>,
        devices: Arc<ServerConfig>,
    },
}

/// How many connections there may be, and how long one may stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Open connections: a fleet that renews and the people who watch it, at some tens of KiB each. The next one is closed.
    pub in_all: usize,
    /// Those of one network, an IPv4 address or a /64: many people or devices may share one, and a single one that wants all
    /// places must not get them. Behind a proxy on this machine everybody has one address, so that it does not count there.
    pub per_network: usize,
    /// How long a client may take nothing of its answer.
    pub write_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> ConnectionLimits {
        ConnectionLimits {
            in_all: 2048,
            per_network: 512,
            write_timeout: Duration::from_secs(60),
        }
    }
}

/// The device at the other end, by its certificate, which TLS has verified; it may have expired lately.
#[derive(Clone, Debug)]
pub(crate) struct PeerCertificate(pub(crate) Arc<ClientCertificate>);

/// Serves until `shutdown`, then ends what is under way.
pub(crate) async fn serve(
    listener: TcpListener,
    security: Security,
    limits: ConnectionLimits,
    router: Router,
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.in_all.min(Semaphore::MAX_PERMITS)));
    let shares = Shares::new(match security {
        Security::Plain => usize::MAX,
        Security::Tls { .. } => limits.per_network,
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => if let Err(error) = ended {
                tracing::error!(%error, "the task of an HTTP connection broke");
            },
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match (Arc::clone(&places).try_acquire_owned(), shares.take(peer.ip())) {
                    (Ok(place), Some(share)) => {
                        if let Err(error) = limit_writes(&stream, limits.write_timeout) {
                            tracing::debug!(%peer, %error, "an HTTP connection broke while it was accepted");
                            continue;
                        }
                        let (security, router, shutdown) = (security.clone(), router.clone(), shutdown.clone());
                        connections.spawn(async move {
                            connection(stream, peer, security, router, shutdown).await;
                            drop((place, share));
                        });
                    }
                    (Err(_), _) => tracing::warn!(%peer, "an HTTP connection is refused: {} are open", limits.in_all),
                    // Not a warning: whoever floods would fill the log too.
                    (_, None) => tracing::debug!(%peer, "an HTTP connection is refused: its network has its share"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept an HTTP connection");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                }
            },
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, all_ended).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "HTTP connections did not end in time and are cut off"
        );
        connections.shutdown().await;
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    security: Security,
    router: Router,
    shutdown: CancellationToken,
) {
    // It only saves time.
    let _ = stream.set_nodelay(true);
    let Security::Tls { people, devices } = security else {
        return answer(stream, peer, None, Hsts::Unset, router, shutdown).await;
    };
    let secured = tokio::select! {
        secured = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(stream, people, devices)) => secured,
        () = shutdown.cancelled() => return,
    };
    match secured {
        Ok(Ok(Some(stream))) => {
            let certificates = stream.get_ref().1.peer_certificates();
            let certificate = certificates.and_then(|chain| ClientCertificate::read(chain.first()?));
            answer(stream, peer, certificate, Hsts::Set, router, shutdown).await;
        }
        Ok(Ok(None)) => tracing::debug!(%peer, "a client speaks HTTP without TLS"),
        // Not a warning: every port scanner would fill the log.
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
    }
}

/// The secured stream; `None` after a client that does not speak TLS was told so.
async fn handshake(
    mut stream: TcpStream,
    people: Arc<ServerConfig>,
    devices: Arc<ServerConfig>,
) -> io::Result<Option<TlsStream<TcpStream>>> {
    let mut first = [TLS_HANDSHAKE];
    stream.peek(&mut first).await?;
    if first[0] != TLS_HANDSHAKE {
        stream.write_all(NOT_TLS).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would take the answer back.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
        return Ok(None);
    }
    let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    let protocols = start.client_hello().alpn();
    let is_device = protocols.is_some_and(|mut protocols| protocols.any(|protocol| protocol == DEVICE_PROTOCOL));
    let config = if is_device { devices } else { people };
    start.into_stream(config).await.map(Some)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hsts {
    Set,
    Unset,
}

async fn answer<S>(
    stream: S,
    peer: SocketAddr,
    certificate: Option<ClientCertificate>,
    hsts: Hsts,
    router: Router,
    shutdown: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let routes = TowerToHyperService::new(router);
    let certificate = certificate.map(|certificate| PeerCertificate(Arc::new(certificate)));
    let service = service_fn(move |mut request: Request<Incoming>| {
        let hsts = hsts == Hsts::Set && !is_localhost(&request);
        request.extensions_mut().insert(ConnectInfo(peer));
        if let Some(certificate) = &certificate {
            request.extensions_mut().insert(certificate.clone());
        }
        let answered = hyper::service::Service::call(&routes, request);
        async move {
            let mut response: Response<Body> = answered.await?;
            if hsts {
                response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, HSTS);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "an HTTP connection ended badly");
    }
}

/// The browser would apply it to every other server on this machine, too.
fn is_localhost(request: &Request<Incoming>) -> bool {
    let host = request.headers().get(header::HOST).map(HeaderValue::as_bytes);
    host.is_some_and(|host| host == b"localhost" || host.starts_with(b"localhost:"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
