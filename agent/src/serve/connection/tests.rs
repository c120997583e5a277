//! The doors as they are from outside: real sockets, real handshakes, both versions of HTTP.

use axum::routing::{get, post};
use bytes::Bytes;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
};
use tokio::{io::AsyncReadExt, net::TcpListener};
use tokio_rustls::TlsConnector;
use tokio_util::sync::DropGuard;

use super::*;

const TOKEN: &str = "0123456789abcdef";

struct Server {
    address: SocketAddr,
    folder: tempfile::TempDir,
    certificate: CertificateDer<'static>,
    ended: tokio::task::JoinHandle<usize>,
    guard: DropGuard,
}

impl Server {
    async fn start(with_tls: bool, token: Option<&str>) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let mut tls = ServerConfig::builder_with_provider(crate::tls::crypto())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let token_file = folder.path().join("token");
        let token = token.map(|token| {
            std::fs::write(&token_file, token).unwrap();
            door::read_token(&token_file).unwrap()
        });
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let door = Door {
            tcp,
            unix: Some(UnixListener::bind(folder.path().join("api.sock")).unwrap()),
            tls: with_tls.then(|| Arc::new(tls)),
            token,
        };
        let router = Router::new()
            .route("/v2/health/live", get(async || "alive"))
            .route("/echo", post(async |body: Bytes| body));
        let shutdown = CancellationToken::new();
        Server {
            address,
            folder,
            certificate: cert.der().clone(),
            ended: tokio::spawn(serve(door, router, shutdown.clone())),
            guard: shutdown.drop_guard(),
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn connect_tls(&self, protocol: &str) -> tokio_rustls::client::TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(crate::tls::crypto())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, self.connect().await).await.unwrap()
    }
}

/// Sends one request and reads everything that comes back.
async fn http1(mut stream: impl AsyncRead + AsyncWrite + Unpin, method: &str, path: &str, header: &str) -> String {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{header}content-length: 4\r\n\r\nbody"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Closed without the TLS goodbye, as HTTP allows.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

/// The same over HTTP/2: status, header fields, body.
async fn http2<S>(stream: S, path: &str, headers: &[(&str, &str)]) -> (StatusCode, axum::http::HeaderMap, Vec<u8>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::post(format!("http://localhost{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut client = client.ready().await.unwrap();
    let (answer, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
    body.send_data(Bytes::from_static(b"body"), true).unwrap();
    let (head, mut body) = answer.await.unwrap().into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        bytes.extend(data.unwrap());
    }
    (head.status, head.headers, bytes)
}

#[tokio::test]
async fn one_port_speaks_both_versions_with_tls_and_without() {
    let server = Server::start(true, None).await;
    // Who is on this machine may go on without TLS.
    let answer = http1(server.connect().await, "POST", "/echo", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("body"),
        "{answer}"
    );
    let answer = http1(server.connect_tls("http/1.1").await, "POST", "/echo", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("body"),
        "{answer}"
    );
    for (status, _, body) in [
        http2(server.connect().await, "/echo", &[]).await,
        http2(server.connect_tls("h2").await, "/echo", &[]).await,
    ] {
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"body"[..]));
    }
}

#[tokio::test]
async fn without_the_token_only_health_is_answered() {
    let server = Server::start(false, Some(TOKEN)).await;
    let first_line = async |method: &str, path: &str, header: &str| {
        let answer = http1(server.connect().await, method, path, header).await;
        answer.lines().next().unwrap_or_default().to_owned()
    };
    let right = format!("authorization: Bearer {TOKEN}\r\n");
    assert_eq!(first_line("POST", "/echo", &right).await, "HTTP/1.1 200 OK");
    assert_eq!(first_line("GET", "/v2/health/live", "").await, "HTTP/1.1 200 OK");
    for wrong in [
        "",
        "authorization: Bearer 0123456789abcdeF\r\n",
        "authorization: Basic 0123456789abcdef\r\n",
    ] {
        assert_eq!(
            first_line("POST", "/echo", wrong).await,
            "HTTP/1.1 401 Unauthorized",
            "{wrong}"
        );
    }
    let grpc = ("content-type", "application/grpc");
    let (_, headers, _) = http2(server.connect().await, "/echo", &[grpc]).await;
    assert_eq!(headers["grpc-status"], "16", "UNAUTHENTICATED");
    let bearer = format!("Bearer {TOKEN}");
    let (_, _, body) = http2(server.connect().await, "/echo", &[grpc, ("authorization", &bearer)]).await;
    assert_eq!(body, b"body");
}

#[tokio::test]
async fn the_socket_needs_no_token() {
    let server = Server::start(true, Some(TOKEN)).await;
    let connect = async || {
        UnixStream::connect(server.folder.path().join("api.sock"))
            .await
            .unwrap()
    };
    let answer = http1(connect().await, "POST", "/echo", "").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let (status, _, _) = http2(connect().await, "/echo", &[]).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn shutdown_ends_idle_connections_of_every_kind() {
    let server = Server::start(false, None).await;
    let silent = server.connect().await;
    let mut kept = server.connect().await;
    kept.write_all(b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 15];
    kept.read_exact(&mut answer).await.unwrap();
    let (client, connection) = h2::client::handshake(server.connect().await).await.unwrap();
    tokio::spawn(connection);
    let client = client.ready().await.unwrap();
    drop(server.guard);
    assert_eq!(server.ended.await.unwrap(), 0, "none was cut off");
    drop((silent, kept, client));
}
