//! The port as it is from outside: real sockets, real handshakes.

use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;
use crate::{
    app::now_ms,
    ca::{crypto, tls},
    test_server::TestServer,
};

const DAY_MS: u64 = 86_400_000;

/// Sends one request and reads everything that comes back.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer).await {
        // Closed without the TLS goodbye, as HTTP allows.
        Err(error) if answer.is_empty() || error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
        _ => {}
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

async fn call(server: &TestServer, config: ClientConfig, protocol: &[u8], request: &str) -> io::Result<String> {
    let tcp = TcpStream::connect(server.server.http_address()).await?;
    exchange(secured(tcp, config, protocol).await?, request).await
}

async fn secured(
    tcp: TcpStream,
    mut config: ClientConfig,
    protocol: &[u8],
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, future).await.expect("nothing came in time")
}

/// Asks until there is a place to be answered in.
async fn until_answered(server: &TestServer) {
    let answered = async {
        while !call(server, anybody(server), b"http/1.1", &get("localhost"))
            .await
            .is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
        {}
    };
    soon(answered).await;
}

/// A client without a certificate.
fn anybody(server: &TestServer) -> ClientConfig {
    let authority = server.server.app().certificates.authority();
    ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(tls::roots(authority).unwrap())
        .with_no_client_auth()
}

fn get(host: &str) -> String {
    format!("GET /api/v1/health HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
}

/// Renews with the certificate of `config`.
async fn renew(server: &TestServer, config: ClientConfig, request: &str) -> io::Result<String> {
    let body = json!({"request": request}).to_string();
    let head = format!(
        "POST /api/v1/renew HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    call(server, config, DEVICE_PROTOCOL, &(head + &body)).await
}

#[tokio::test]
async fn who_speaks_without_tls_is_told_so_and_nothing_else() {
    let server = TestServer::start().await;
    let tcp = TcpStream::connect(server.server.http_address()).await.unwrap();
    let answer = exchange(tcp, &get("localhost")).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("speaks HTTPS"),
        "{answer}"
    );
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
}

#[tokio::test]
async fn browsers_are_told_to_stay_with_tls_except_for_this_machine() {
    let server = TestServer::start().await;
    for (host, told) in [
        ("skerry.example", true),
        ("localhost:8080", false),
        ("localhost", false),
    ] {
        let answer = call(&server, anybody(&server), b"http/1.1", &get(host)).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(answer.contains("strict-transport-security:"), told, "{host}: {answer}");
    }
}

#[tokio::test]
async fn without_a_certificate_nothing_is_renewed() {
    let server = TestServer::start().await;
    server.enroll("dev-1", &[]).await;
    let (with, request) = server.device_certificate("dev-1", now_ms()).await;
    let answer = renew(&server, anybody(&server), &request).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    // Nor does a certificate count that was shown where people call.
    let head =
        "POST /api/v1/renew HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let body = json!({"request": request}).to_string();
    let whole = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    let answer = call(&server, with, b"http/1.1", &whole).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
}

#[tokio::test]
async fn a_certificate_renews_for_90_days_after_its_end_and_not_a_day_longer() {
    let server = TestServer::start().await;
    server.enroll("dev-1", &[]).await;
    for (age_days, renews) in [(20, true), (31, true), (119, true), (121, false)] {
        let (config, request) = server.device_certificate("dev-1", now_ms() - age_days * DAY_MS).await;
        let answer = renew(&server, config, &request).await;
        let renewed = answer.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "));
        assert_eq!(renewed, renews, "{age_days} days: {answer:?}");
    }
    let device = server.api("GET", "/api/v1/devices/dev-1", "").await.json();
    assert!(device["certificate_not_after_ms"].as_u64().unwrap() > now_ms() + 29 * DAY_MS);
}

#[tokio::test]
async fn a_device_renews_only_for_its_own_key_and_only_while_it_is_not_revoked() {
    let server = TestServer::start().await;
    for id in ["dev-1", "dev-2"] {
        server.enroll(id, &[]).await;
    }
    let (own, request) = server.device_certificate("dev-1", now_ms()).await;
    let (other, _) = server.device_certificate("dev-2", now_ms()).await;
    let answer = renew(&server, other, &request).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 403 ") && answer.contains("other-key"),
        "{answer}"
    );
    let answer = renew(&server, own.clone(), &request).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    server.api("POST", "/api/v1/devices/dev-1/revoke", "").await;
    let answer = renew(&server, own, &request).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 403 ") && answer.contains("device-revoked"),
        "{answer}"
    );
}

#[tokio::test]
async fn one_network_cannot_take_the_places_of_all_others() {
    let server = TestServer::start_configured(|config| config.connections.https.per_network = 2).await;
    let address = server.server.http_address();
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    // Not closed in its own time, as a silent one would be, but before its greeting is answered.
    let third = TcpStream::connect(address).await.unwrap();
    assert!(soon(secured(third, anybody(&server), b"http/1.1")).await.is_err());
    let elsewhere = tokio::net::TcpSocket::new_v4().unwrap();
    elsewhere.bind(SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
    let elsewhere = elsewhere.connect(address).await.unwrap();
    let stream = secured(elsewhere, anybody(&server), b"http/1.1").await.unwrap();
    let answer = exchange(stream, &get("localhost")).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    drop(silent);
    until_answered(&server).await;
}

#[tokio::test]
async fn who_does_not_read_the_answer_is_cut_off_in_time() {
    let limits = ConnectionLimits {
        per_network: 1,
        write_timeout: Duration::from_millis(300),
        ..ConnectionLimits::default()
    };
    let server = TestServer::start_configured(|config| config.connections.https = limits).await;
    let tcp = TcpStream::connect(server.server.http_address()).await.unwrap();
    let mut stalled = secured(tcp, anybody(&server), b"http/1.1").await.unwrap();
    // More answers than fit into the buffers of both sides.
    let request = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(400);
    stalled.write_all(request.as_bytes()).await.unwrap();
    stalled.flush().await.unwrap();
    // It holds the only place, until it is cut off.
    until_answered(&server).await;
    drop(stalled);
}
