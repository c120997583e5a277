//! Takes connections and speaks HTTP/1 or HTTP/2 over them, with TLS or without.
//!
//! It knows bytes, addresses and the token, no routes. Invariant: whatever a client does or leaves out, its place is free again
//! after a limited time, unless it is being answered, or speaks HTTP/2 and says that it is still there.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    http::{Request, Response, StatusCode, header},
    response::IntoResponse,
};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use serde_json::json;
use skerry_tls::{NOT_TLS, TLS_HANDSHAKE};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::serve::{
    door::{self, Door, Token},
    stream::ClientStream,
};

/// A slow board over a bad link needs seconds; whoever needs longer holds a place for nothing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection is kept: clients hold theirs open between two readings of a sensor.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a client may take nothing of its answer, which is in memory meanwhile.
const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// How often an HTTP/2 client that is silent is asked whether it is still there, and how long it may think.
const PING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));
/// Open connections: a quarter of the files that the service may open.
const CONNECTIONS_MAX: usize = 256;
/// Requests at once over one HTTP/2 connection.
const STREAMS_MAX: u32 = 64;
/// What an HTTP/2 client may send before it is read, over one stream and over all of them: some camera frames a second.
const WINDOWS: (u32, u32) = (1024 * 1024, 2 * 1024 * 1024);
/// More than the fields of any client.
const HEADERS_BYTES: u32 = 16 * 1024;
/// Out of file descriptors, `accept` fails at once and for ever; the pause keeps the loop from eating a core.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);
/// How long answers under way may take at shutdown.
const DRAIN: Duration = Duration::from_secs(4);

/// What every connection needs.
#[derive(Clone)]
struct Shared {
    router: Router,
    tls: Option<Arc<ServerConfig>>,
    token: Option<Token>,
    shutdown: CancellationToken,
}

/// Serves until `shutdown`, then ends what is under way. Returns how many connections did not end in time and were cut off.
pub(crate) async fn serve(door: Door, router: Router, shutdown: CancellationToken) -> usize {
    let Door { tcp, unix, tls, token } = door;
    let shared = Shared {
        router,
        tls,
        token,
        shutdown,
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shared.shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the task of a connection to the local API broke");
                }
                continue;
            }
            accepted = tcp.accept() => accepted.map(|(stream, peer)| Client::Tcp(stream, peer)),
            accepted = accept_unix(unix.as_ref()) => accepted.map(Client::Unix),
        };
        match accepted {
            Ok(client) => match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    let shared = shared.clone();
                    connections.spawn(async move {
                        client.answer(shared).await;
                        drop(place);
                    });
                }
                Err(_) => tracing::warn!("a connection to the local API is refused: {CONNECTIONS_MAX} are open"),
            },
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the local API");
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
            }
        }
    }
    drop((tcp, unix));
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, all_ended).await.is_ok() {
        return 0;
    }
    let late = connections.len();
    connections.shutdown().await;
    late
}

async fn accept_unix(listener: Option<&UnixListener>) -> io::Result<UnixStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

enum Client {
    Tcp(TcpStream, SocketAddr),
    /// The socket's mode has said who may come.
    Unix(UnixStream),
}

impl Client {
    async fn answer(self, mut shared: Shared) {
        let ended = match self {
            Client::Unix(stream) => {
                shared.token = None;
                http(stream, shared).await
            }
            Client::Tcp(stream, peer) => tcp(stream, peer, shared).await,
        };
        // Not a warning: every port scanner would fill the log.
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection to the local API ended badly");
        }
    }
}

/// Anything that ends a connection.
type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn tcp(mut stream: TcpStream, peer: SocketAddr, shared: Shared) -> Ended {
    // Small answers must not wait for more. It only saves time.
    let _ = stream.set_nodelay(true);
    let Some(config) = shared.tls.clone() else {
        return http(stream, shared).await;
    };
    let is_tls = tokio::select! {
        first = tokio::time::timeout(HANDSHAKE_TIMEOUT, first_byte(&stream)) => first?? == Some(TLS_HANDSHAKE),
        () = shared.shutdown.cancelled() => return Ok(()),
    };
    if is_tls {
        let handshake = TlsAcceptor::from(config).accept(stream);
        let secured = tokio::select! {
            secured = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake) => secured??,
            () = shared.shutdown.cancelled() => return Ok(()),
        };
        return http(secured, shared).await;
    }
    let local = stream.local_addr().ok().map(|address| address.ip());
    if door::is_here(peer.ip(), local) {
        return http(stream, shared).await;
    }
    let refused = async {
        stream.write_all(NOT_TLS).await?;
        stream.shutdown().await?;
        // Closing with unread bytes would take the answer back.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, refused).await??;
    Ok(())
}

async fn first_byte(stream: &TcpStream) -> io::Result<Option<u8>> {
    let mut first = [0];
    let came = stream.peek(&mut first).await?;
    Ok((came > 0).then_some(first[0]))
}

async fn http<S>(stream: S, shared: Shared) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = tokio::select! {
        begun = tokio::time::timeout(HEADERS_TIMEOUT, ClientStream::begin(stream, WRITE_TIMEOUT)) => begun??,
        () = shared.shutdown.cancelled() => return Ok(()),
    };
    let Shared {
        router,
        token,
        shutdown,
        ..
    } = shared;
    let routes = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        let answered = match &token {
            Some(token) if !may_pass(token, &request) => Err(no_token(&request)),
            _ => Ok(hyper::service::Service::call(&routes, request)),
        };
        async move {
            match answered {
                Ok(answered) => answered.await,
                Err(refusal) => Ok::<_, Infallible>(refusal),
            }
        }
    });
    /// Ends an idle connection at shutdown, and lets a busy one end its answers.
    macro_rules! run {
        ($connection:expr) => {{
            let mut connection = std::pin::pin!($connection);
            tokio::select! {
                ended = connection.as_mut() => Ok(ended?),
                () = shutdown.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    Ok(connection.await?)
                }
            }
        }};
    }
    if stream.is_http2() {
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .max_header_list_size(HEADERS_BYTES);
        run!(http.serve_connection(TokioIo::new(stream), service))
    } else {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT);
        run!(http.serve_connection(TokioIo::new(stream), service))
    }
}

/// Whether the agent lives may be asked by anybody: its service manager does.
fn may_pass(token: &Token, request: &Request<Incoming>) -> bool {
    if request.uri().path().starts_with("/v2/health/") {
        return true;
    }
    let bearer = request.headers().get(header::AUTHORIZATION);
    let bearer = bearer.and_then(|value| value.as_bytes().split_at_checked("Bearer ".len()));
    bearer.is_some_and(|(scheme, text)| scheme.eq_ignore_ascii_case(b"Bearer ") && token.is(text))
}

/// In the words of the protocol that was spoken.
fn no_token(request: &Request<Incoming>) -> Response<Body> {
    const WORDS: &str = "this needs the API's token: `Authorization: Bearer TOKEN`";
    let content_type = request.headers().get(header::CONTENT_TYPE);
    if content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc")) {
        return Status::unauthenticated(WORDS).into_http();
    }
    let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, challenge, Json(json!({"error": WORDS}))).into_response()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
