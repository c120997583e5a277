//! The control plane's REST API as typed calls. Blocking: the command line does one thing at a time.
//!
//! Answers stay JSON values where a command only prints them: `-o json` then shows exactly what the API said.

use std::{
    io::{BufRead, BufReader, Read},
    time::Duration,
};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skerry_shared::{
    digest::Digest,
    id::{ModelName, ModelVersion},
};
use ureq::{Agent, Body, http::Response};

use super::trust::Trust;

/// Long enough for a bundle's registration on a slow board, short enough to notice a dead server.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer that is read into memory: lists of a large fleet.
const ANSWER_LIMIT_BYTES: u64 = 256 * 1024 * 1024;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The control plane cannot be reached, or the connection broke.
    #[error(
        "cannot reach the control plane at {server} (is `skerry serve` running? `--server` or SKERRY_SERVER names another)"
    )]
    Connection {
        /// Its address.
        server: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// Whoever answers has no certificate that is trusted.
    #[error(
        "the certificate of {server} is not trusted: name the authority's own by --ca FILE or SKERRY_CA (on the control \
         plane's machine it is DATA-DIR/tls/ca.pem), or its digest by SKERRY_CA_SHA256, as `skerry serve` prints it"
    )]
    Certificate {
        /// Its address.
        server: String,
        /// Why.
        source: rustls::Error,
    },
    /// The answer broke off.
    #[error("the answer of {server} broke off")]
    Read {
        /// The server.
        server: String,
        /// Why.
        source: std::io::Error,
    },
    /// The control plane refused: its problem details.
    #[error("{title}{}", if detail.is_empty() { String::new() } else { format!(": {detail}") })]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The problem's title.
        title: String,
        /// What is wrong with this call.
        detail: String,
    },
    /// The answer is not what this program expects.
    #[error("the control plane's answer to {method} {path} is not understood")]
    Answer {
        /// The method.
        method: &'static str,
        /// The path.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
}

impl ClientError {
    /// True when the thing asked for is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ClientError::Refused { status: 404, .. })
    }

    /// True when the control plane, or the way to it, may be back in a moment.
    pub fn is_outage(&self) -> bool {
        match self {
            ClientError::Connection { .. } | ClientError::Read { .. } => true,
            // 502 to 504: a proxy that cannot reach it.
            ClientError::Refused { status, .. } => (502..=504).contains(status),
            ClientError::Certificate { .. } | ClientError::Answer { .. } => false,
        }
    }
}

/// A connection to the control plane.
#[derive(Clone)]
pub struct Client {
    server: String,
    token: Option<String>,
    agent: Agent,
    streaming: Agent,
}

impl Client {
    /// Makes a client of the control plane at `server`, for example `https://127.0.0.1:8080`, with a certificate that
    /// `trust` knows.
    pub fn new(server: &str, token: Option<String>, trust: &Trust) -> Client {
        let config = || {
            Agent::config_builder()
                .tls_config(trust.tls())
                .http_status_as_error(false)
                .timeout_connect(Some(Duration::from_secs(10)))
        };
        Client {
            server: server.trim_end_matches('/').to_owned(),
            token,
            agent: config().timeout_global(Some(TIMEOUT)).build().into(),
            streaming: config().build().into(),
        }
    }

    /// The server's address.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Gets JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.get_as(path)
    }

    /// Gets JSON of a known form.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get_as<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let bytes = self.get_bytes(path)?;
        parse("GET", path, &bytes)
    }

    /// Gets bytes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get_bytes(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        let request = self.agent.get(self.url(path));
        let request = self.with_token(request);
        self.finish(request.call())
    }

    /// Posts JSON and gets JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let request = self.with_token(self.agent.post(self.url(path)));
        let bytes = self.finish(request.send_json(body))?;
        parse("POST", path, &bytes)
    }

    /// Posts bytes and gets JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post_bytes(&self, path: &str, body: &[u8]) -> Result<Value, ClientError> {
        let request = self.with_token(self.agent.post(self.url(path)));
        let bytes = self.finish(request.content_type("application/octet-stream").send(body))?;
        parse("POST", path, &bytes)
    }

    /// Puts JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn put(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let request = self.with_token(self.agent.put(self.url(path)));
        let bytes = self.finish(request.send_json(body))?;
        parse("PUT", path, &bytes)
    }

    /// Changes a part of something.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn patch(&self, path: &str, body: &Value) -> Result<Value, ClientError> {
        let request = self.with_token(self.agent.patch(self.url(path)));
        let bytes = self.finish(request.send_json(body))?;
        parse("PATCH", path, &bytes)
    }

    /// Removes something.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn delete(&self, path: &str) -> Result<(), ClientError> {
        let request = self.with_token(self.agent.delete(self.url(path)));
        self.finish(request.call()).map(drop)
    }

    /// Uploads content under its digest, unless the control plane has it. Returns the bytes sent.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn upload(&self, digest: &Digest, content: &[u8]) -> Result<u64, ClientError> {
        let path = format!("/api/v1/blobs/{}", digest.to_hex());
        let request = self.with_token(self.agent.head(self.url(&path)));
        match self.finish(request.call()) {
            Ok(_) => return Ok(0),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        let request = self.with_token(self.agent.put(self.url(&path)));
        self.finish(request.content_type("application/octet-stream").send(content))?;
        Ok(content.len() as u64)
    }

    /// Opens an answer that goes on: a log, or server-sent events. No time limit.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stream(&self, path: &str) -> Result<impl Read + use<>, ClientError> {
        let request = self.with_token(self.streaming.get(self.url(path)));
        let response = request.call().map_err(|source| self.connection(source))?;
        if response.status().is_success() {
            return Ok(response.into_body().into_reader());
        }
        Err(self.finish(Ok(response)).err().unwrap_or_else(|| refused(500, &[])))
    }

    /// Calls `each` with the data of every server-sent event until it returns false or the stream ends.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn events(&self, path: &str, mut each: impl FnMut(Value) -> bool) -> Result<(), ClientError> {
        let reader = BufReader::new(self.stream(path)?);
        for line in reader.lines() {
            let line = line.map_err(|source| ClientError::Read {
                server: self.server.clone(),
                source,
            })?;
            let Some(data) = line.strip_prefix("data:") else {
                continue;
            };
            if !each(parse("GET", path, data.trim_start().as_bytes())?) {
                break;
            }
        }
        Ok(())
    }

    /// Registers an ONNX file as a new version of a model; registers the model too if it is new.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn register_model(&self, model: &ModelName, onnx: &[u8]) -> Result<Value, ClientError> {
        self.post_bytes(&format!("/api/v1/models/{model}/versions"), onnx)
    }

    /// The devices that match a label selector; an empty one means all.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn devices(&self, selector: &str) -> Result<Vec<Value>, ClientError> {
        let answer = self.get(&format!("/api/v1/devices?selector={}", encode(selector)))?;
        Ok(list(answer, "devices"))
    }

    /// Makes an enrolment token.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn device_token(&self, ttl: Duration, uses: u32, labels: &Value) -> Result<Value, ClientError> {
        let body = json!({"ttl_seconds": ttl.as_secs(), "uses": uses, "labels": labels});
        self.post("/api/v1/device-tokens", &body)
    }

    /// A rollout with its groups and devices.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn rollout(&self, id: u64) -> Result<Value, ClientError> {
        self.get(&format!("/api/v1/rollouts/{id}"))
    }

    /// The published bundle of a model version.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn bundle(&self, model: &ModelName, version: ModelVersion) -> Result<Value, ClientError> {
        self.get(&format!("/api/v1/bundles/{model}/{version}"))
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.server)
    }

    fn with_token<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn connection(&self, source: ureq::Error) -> ClientError {
        let server = self.server.clone();
        match certificate_error(&source) {
            Some(source) => ClientError::Certificate { server, source },
            None => ClientError::Connection {
                server,
                source: Box::new(source),
            },
        }
    }

    fn finish(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Vec<u8>, ClientError> {
        let mut response = answer.map_err(|source| self.connection(source))?;
        let status = response.status();
        let body = response
            .body_mut()
            .with_config()
            .limit(ANSWER_LIMIT_BYTES)
            .read_to_vec();
        let bytes = body.map_err(|source| self.connection(source))?;
        if status.is_success() {
            Ok(bytes)
        } else {
            Err(refused(status.as_u16(), &bytes))
        }
    }
}

/// What is wrong with the server's certificate, if that is what was wrong.
fn certificate_error(error: &ureq::Error) -> Option<rustls::Error> {
    let found = match error {
        ureq::Error::Rustls(error) => Some(error),
        // From inside a handshake it comes as an I/O error.
        ureq::Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref()),
        _ => None,
    };
    found
        .filter(|error| matches!(error, rustls::Error::InvalidCertificate(_)))
        .cloned()
}

/// The items of a list answer.
pub fn list(answer: Value, key: &str) -> Vec<Value> {
    match answer {
        Value::Object(mut object) => match object.remove(key) {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// Percent-encodes a query value.
pub fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes()
        .map(|b| {
            if plain(b) {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

fn parse<T: DeserializeOwned>(method: &'static str, path: &str, bytes: &[u8]) -> Result<T, ClientError> {
    // 204, and writes without an answer.
    let bytes = if bytes.is_empty() { b"null" } else { bytes };
    serde_json::from_slice(bytes).map_err(|source| ClientError::Answer {
        method,
        path: path.to_owned(),
        source,
    })
}

fn refused(status: u16, body: &[u8]) -> ClientError {
    let problem: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
    let title = match (text("title"), status) {
        (title, _) if !title.is_empty() => title,
        (_, 401) => "the control plane wants an API token (--token or SKERRY_TOKEN)".to_owned(),
        (_, 404) => "not found".to_owned(),
        _ => format!("the control plane answered with status {status}"),
    };
    ClientError::Refused {
        status,
        title,
        detail: text("detail"),
    }
}
