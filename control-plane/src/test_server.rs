//! A whole control plane on ports that the system chooses, for tests of its edges.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Request, StatusCode, header, request::Builder},
};
use futures_util::{Stream, StreamExt};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rusqlite::{Connection, params};
use rustls::{ClientConfig, pki_types::PrivateKeyDer};
use skerry_shared::digest::Digest;
use tempfile::TempDir;
use tower::ServiceExt;

use crate::{
    access::Role,
    app::{self, Server},
    audit::By,
    ca::{self, crypto, tls},
    cli::{client::Client, keys, trust::Trust},
    config::{Config, Mqtt},
    db::DbError,
    devices::{self, Credential, Enrolment},
};

/// More than any body in these tests that should pass.
pub(crate) const BODY_LIMIT_BYTES: usize = 64 * 1024;

/// A running control plane with its data in a temporary folder.
pub(crate) struct TestServer {
    pub(crate) server: Server,
    pub(crate) router: Router,
    pub(crate) token: String,
    _dir: TempDir,
}

/// An answer, read to its end.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map(|value| value.to_str().unwrap())
            .unwrap_or_default()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn request(token: &str, method: &str, path: &str) -> Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
}

impl TestServer {
    pub(crate) async fn start() -> TestServer {
        TestServer::start_configured(|_| ()).await
    }

    pub(crate) async fn start_with(mqtt: Mqtt) -> TestServer {
        TestServer::start_configured(|config| config.mqtt = mqtt).await
    }

    pub(crate) async fn start_configured(change: impl FnOnce(&mut Config)) -> TestServer {
        let dir = tempfile::tempdir().unwrap();
        keys::init(&dir.path().join("signing")).unwrap();
        let mut config = Config::new(dir.path());
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        config.http_bind = any_port;
        config.mqtt = Mqtt::Embedded { bind: any_port };
        config.signing_dir = dir.path().join("signing/online");
        config.body_limit_bytes = BODY_LIMIT_BYTES;
        change(&mut config);
        let server = Server::start(config).await.unwrap();
        TestServer {
            router: app::router(server.app()),
            token: server.first_api_token().unwrap().to_owned(),
            server,
            _dir: dir,
        }
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        Answer {
            status,
            headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// Calls the API with the first token.
    pub(crate) async fn api(&self, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        self.api_as(&self.token, method, path, body).await
    }

    /// Calls the API with another token.
    pub(crate) async fn api_as(&self, token: &str, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        let request = request(token, method, path).header(header::CONTENT_TYPE, "application/json");
        self.send(request.body(body.into()).unwrap()).await
    }

    /// The status and the content type of an answer that may go on for ever.
    pub(crate) async fn start_answer(&self, method: &str, path: &str, token: &str) -> (u16, String) {
        let request = request(token, method, path).body(Body::empty()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let media_type = response.headers().get(header::CONTENT_TYPE);
        let media_type = media_type.map(|value| value.to_str().unwrap().to_owned());
        (response.status().as_u16(), media_type.unwrap_or_default())
    }

    /// The frames of an answer that goes on.
    pub(crate) async fn stream(&self, path: &str, token: &str) -> impl Stream<Item = String> + Unpin + use<> {
        let request = request(token, "GET", path).body(Body::empty()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let frames = response.into_body().into_data_stream();
        frames.map(|frame| String::from_utf8(frame.unwrap().to_vec()).unwrap())
    }

    /// A user with this role, and a token that acts for it.
    pub(crate) async fn token_of_user(&self, name: &str, role: Role) -> String {
        let body = serde_json::json!({"name": name, "role": role, "password": "correct horse battery"});
        let answer = self.api("POST", "/api/v1/users", body.to_string()).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
        let body = serde_json::json!({"name": "test", "user": name});
        let answer = self.api("POST", "/api/v1/tokens", body.to_string()).await;
        answer.json()["secret"].as_str().unwrap().to_owned()
    }

    /// A token that stands alone, of this role.
    pub(crate) async fn token_of(&self, role: Role) -> String {
        let body = serde_json::json!({"name": "test", "role": role, "alone": true});
        let answer = self.api("POST", "/api/v1/tokens", body.to_string()).await;
        answer.json()["secret"].as_str().unwrap().to_owned()
    }

    /// The API as the command line sees it.
    pub(crate) fn client(&self) -> Client {
        let pem = self.server.app().certificates.authority().pem().as_bytes();
        Client::new(
            &self.server.url(),
            Some(self.token.clone()),
            &Trust::of_pem(pem).unwrap(),
        )
    }

    /// Enrols a device without an agent.
    pub(crate) async fn enroll(&self, id: &str, labels: &[(&str, &str)]) {
        let core = &self.server.app().core;
        let now = app::now_ms();
        let secret = id.as_bytes().to_vec();
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        devices::create_token(core, Digest::of(&secret), labels, 1, now + 60_000, By::new("test", now))
            .await
            .unwrap();
        let enrolment = Enrolment {
            credential: Credential::Token(secret),
            device: id.parse().unwrap(),
            public_key: hex::encode(id),
            platform: "aarch64-unknown-linux-gnu".parse().unwrap(),
            agent_version: "0.1.0".to_owned(),
            certificate_not_after_ms: now + 60_000,
        };
        devices::enroll(core, enrolment, now).await.unwrap();
    }

    /// Gives an enrolled device a new key and a certificate, and says how it connects to the broker.
    pub(crate) async fn device_tls(&self, id: &str) -> Arc<ClientConfig> {
        let (config, _) = self.device_certificate(id, app::now_ms()).await;
        Arc::new(config)
    }

    /// The same, at a time of its own; with the request for a certificate that the key has signed.
    pub(crate) async fn device_certificate(&self, id: &str, now_ms: u64) -> (ClientConfig, String) {
        let app = self.server.app();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let asked = CertificateParams::default().serialize_request(&key).unwrap();
        let request = ca::Request::parse(asked.der()).unwrap();
        let (device, public_key) = (id.to_owned(), request.public_key_hex());
        let change = move |conn: &Connection| -> Result<(), DbError> {
            conn.execute("UPDATE devices SET public_key = ?2 WHERE id = ?1", [device, public_key])?;
            Ok(())
        };
        app.core.write(change).await.unwrap();
        let authority = app.certificates.authority();
        let life = app.config.tls.device_life;
        let issued = authority
            .issue_device(&request, &id.parse().unwrap(), life, now_ms)
            .unwrap();
        let chain = tls::certificates(issued.chain_pem.as_bytes()).unwrap();
        let config = ClientConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(tls::roots(authority).unwrap())
            .with_client_auth_cert(chain, PrivateKeyDer::from(key))
            .unwrap();
        (config, asked.pem().unwrap())
    }

    /// Makes a model version with a published bundle. No device could fetch it.
    pub(crate) async fn publish(&self, model: &str, version: u64) {
        let digest = Digest::of(format!("{model} {version}").as_bytes()).to_string();
        let (model, version) = (model.to_owned(), version as i64);
        let insert = move |conn: &Connection| -> Result<(), DbError> {
            conn.execute("INSERT OR IGNORE INTO models VALUES (?1, '', '{}', 0)", [&model])?;
            conn.execute(
                "INSERT INTO model_versions (model, version, digest, size_bytes, description, tags, inputs, outputs, created_at_ms)
                 VALUES (?1, ?2, ?3, 1048576, '', '{}',
                    '[{\"name\":\"window\",\"datatype\":\"FP32\",\"shape\":[-1,3]}]', '[]', 0)",
                params![model, version, digest],
            )?;
            conn.execute(
                "INSERT INTO bundles VALUES (?1, ?2, 'a target', ?3, 900, 2000000, 1500000, 0)",
                params![model, version, digest],
            )?;
            Ok(())
        };
        self.server.app().core.write(insert).await.unwrap();
    }
}
