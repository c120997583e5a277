//! A small identity provider over HTTP, with an ES256 key of its own. It hands out what a test tells it to.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{
    Form, Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use p256::ecdsa::{Signature, SigningKey, signature::Signer};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, task::JoinHandle};

/// What the provider gives for a code.
struct Handed {
    challenge: String,
    id_token: String,
}

struct Inner {
    issuer: String,
    key: SigningKey,
    codes: Mutex<HashMap<String, Handed>>,
}

/// A running provider; it ends with its value.
pub(super) struct Provider {
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A new P-256 key.
pub(super) fn new_key() -> SigningKey {
    loop {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).unwrap();
        // All but about one in 2³² are a key.
        if let Ok(key) = SigningKey::from_slice(&bytes) {
            return key;
        }
    }
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A JWT of these claims.
pub(super) fn signed(key: &SigningKey, claims: &Value) -> String {
    let header = encode(json!({"alg": "ES256", "kid": "one", "typ": "JWT"}).to_string());
    let text = format!("{header}.{}", encode(claims.to_string()));
    let signature: Signature = key.sign(text.as_bytes());
    format!("{text}.{}", encode(signature.to_bytes()))
}

impl Provider {
    pub(super) async fn start() -> Provider {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let inner = Arc::new(Inner {
            issuer: format!("http://{}", listener.local_addr().unwrap()),
            key: new_key(),
            codes: Mutex::default(),
        });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(metadata))
            .route("/keys", get(keys))
            .route("/token", post(token))
            .with_state(Arc::clone(&inner));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Provider { inner, task }
    }

    pub(super) fn issuer(&self) -> &str {
        &self.inner.issuer
    }

    pub(super) fn key(&self) -> &SigningKey {
        &self.inner.key
    }

    /// Keeps an ID token for whoever brings the code and the verifier of the challenge.
    pub(super) fn hand_out(&self, code: &str, challenge: &str, id_token: String) {
        let challenge = challenge.to_owned();
        let handed = Handed { challenge, id_token };
        self.inner.codes.lock().unwrap().insert(code.to_owned(), handed);
    }
}

async fn metadata(State(inner): State<Arc<Inner>>) -> Json<Value> {
    let issuer = &inner.issuer;
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/keys"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    }))
}

async fn keys(State(inner): State<Arc<Inner>>) -> Json<Value> {
    let point = inner.key.verifying_key().to_sec1_point(false);
    let (x, y) = (encode(&point.as_bytes()[1..33]), encode(&point.as_bytes()[33..]));
    let key = json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "one", "x": x, "y": y});
    Json(json!({"keys": [key]}))
}

/// A code is good once, and only with the verifier of its challenge (RFC 7636 §4.6).
async fn token(
    State(inner): State<Arc<Inner>>,
    Form(form): Form<HashMap<String, String>>,
) -> Result<Json<Value>, (StatusCode, Json<Value>)> {
    let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
    let handed = inner.codes.lock().unwrap().remove(field("code"));
    let verifier = encode(Sha256::digest(field("code_verifier")));
    match handed {
        Some(handed) if handed.challenge == verifier => {
            let token = handed.id_token;
            Ok(Json(
                json!({"access_token": "unused", "token_type": "Bearer", "id_token": token}),
            ))
        }
        _ => Err((StatusCode::BAD_REQUEST, Json(json!({"error": "invalid_grant"})))),
    }
}
