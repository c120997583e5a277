//! Signing in through an OpenID Connect provider: authorization code with PKCE, state and nonce.
//!
//! Not a way for programs: they have API tokens. The provider says who somebody is and in which groups; the configuration says
//! which role a group has. Invariants: nothing of an ID token is believed before its signature, issuer, audience, expiry and
//! nonce are checked; a user of the provider never becomes a user that was made here, whatever its name.

mod config;
mod people;

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use openidconnect::{
    AuthorizationCode, ClientId, ClientSecret, CsrfToken, EndpointMaybeSet, EndpointNotSet, EndpointSet, HttpRequest,
    HttpResponse, IssuerUrl, Nonce, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope,
    core::{CoreAuthenticationFlow, CoreClient, CoreJwsSigningAlgorithm, CoreProviderMetadata},
};
use skerry_broker::Shares;
use skerry_shared::digest::Digest;
use tokio::sync::Semaphore;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

pub(crate) use self::config::CALLBACK_PATH;
pub use self::config::OidcConfig;
use self::people::{Identity, take_in};
use super::{AccessError, Grant, Network, UserName, granted, store::Holder};
use crate::db::{Db, DbError};

/// A person needs less to sign in at the provider.
const PENDING_MS: u64 = 10 * 60_000;
/// Sign-ins under way; above it the oldest is forgotten.
const PENDING_MAX: usize = 10_000;
/// Calls of the provider at once: anybody may begin a sign-in, and nobody may use this to flood the provider.
const CALLS_MAX: usize = 8;
/// Those for one network: whoever begins sign-ins without end keeps out nobody else.
const CALLS_PER_NETWORK: usize = 3;
/// The provider is asked while a person waits.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Keys and metadata of a provider have a few kilobytes.
const ANSWER_MAX_BYTES: u64 = 1024 * 1024;

/// Why a sign-in through the provider failed.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The configuration cannot be used.
    #[error("the configuration of the identity provider cannot be used: {what}")]
    Config {
        /// What is wrong.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The provider cannot be reached, or its answer is refused.
    #[error("the identity provider does not answer as it should: {what}")]
    Provider {
        /// What was asked.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The browser comes back from a sign-in that nobody has begun here, or too late.
    #[error("this sign-in was not begun here, or it took too long")]
    UnknownState,
    /// The provider sent the browser back without a code.
    #[error("the identity provider has not signed you in")]
    Declined,
    /// Too many sign-ins at once.
    #[error("too many people are signing in; try again in a moment")]
    Busy,
    /// The ID token has no name that could be a user's.
    #[error("the identity provider gives no name that could be a user's")]
    NoName,
    /// None of the groups has a role.
    #[error("`{0}` is in no group that has a role here")]
    NoRole(UserName),
    /// A user of this name is somebody else.
    #[error("there is another user `{0}` here already")]
    Taken(UserName),
    /// The user is shut out.
    #[error("the user `{0}` is shut out")]
    ShutOut(UserName),
    /// Users cannot be read or written.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// A sign-in that has begun: where the browser goes, and what it must bring back.
pub struct Begun {
    /// The provider's page.
    pub url: String,
    /// The state, also for the browser's cookie.
    pub state: String,
}

/// A sign-in under way.
struct Pending {
    nonce: Nonce,
    verifier: PkceCodeVerifier,
    begun_at_ms: u64,
}

/// The provider, as far as this control plane knows it.
pub struct Oidc {
    config: OidcConfig,
    secret: Option<ClientSecret>,
    agent: ureq::Agent,
    calls: Arc<Semaphore>,
    shares: Arc<Shares>,
    /// By the digest of the state.
    pending: Mutex<HashMap<Digest, Pending>>,
}

type Client =
    CoreClient<EndpointSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointMaybeSet, EndpointMaybeSet>;

impl Oidc {
    /// Reads the files that the configuration names. The provider itself is asked when somebody signs in.
    ///
    /// # Errors
    /// [`OidcError::Config`].
    pub fn new(config: OidcConfig) -> Result<Oidc, OidcError> {
        let secret = config.client_secret_file.as_deref().map(read_secret).transpose()?;
        let roots = match config.issuer.starts_with("https:") {
            true => read_certificates(&config.ca_file)?,
            false => Vec::new(),
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(TIMEOUT))
            // A provider that sends elsewhere would choose whom the control plane calls.
            .max_redirects(0)
            // Nor may what it says of itself lead away from TLS.
            .https_only(config.issuer.starts_with("https:"))
            .http_status_as_error(false)
            .build();
        Ok(Oidc {
            config,
            secret,
            agent: agent.into(),
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            shares: Shares::new(CALLS_PER_NETWORK),
            pending: Mutex::default(),
        })
    }

    /// Begins a sign-in.
    ///
    /// # Errors
    /// [`OidcError::Provider`] or [`OidcError::Busy`].
    pub async fn begin(self: &Arc<Self>, from: Network, now_ms: u64) -> Result<Begun, OidcError> {
        self.call_out(from, move |oidc| {
            let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
            let client = oidc.client()?;
            let request = client.authorize_url(
                CoreAuthenticationFlow::AuthorizationCode,
                CsrfToken::new_random,
                Nonce::new_random,
            );
            let scopes = ["profile", "email", "groups"].map(|scope| Scope::new(scope.to_owned()));
            let (url, state, nonce) = request.add_scopes(scopes).set_pkce_challenge(challenge).url();
            let pending = Pending {
                nonce,
                verifier,
                begun_at_ms: now_ms,
            };
            oidc.remember(Digest::of(state.secret().as_bytes()), pending, now_ms);
            Ok(Begun {
                url: url.to_string(),
                state: state.into_secret(),
            })
        })
        .await
    }

    fn remember(&self, state: Digest, pending: Pending, now_ms: u64) {
        let mut all = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, pending| now_ms.saturating_sub(pending.begun_at_ms) < PENDING_MS);
        if all.len() >= PENDING_MAX {
            let oldest = all.iter().min_by_key(|(_, pending)| pending.begun_at_ms);
            if let Some(oldest) = oldest.map(|(state, _)| *state) {
                all.remove(&oldest);
            }
        }
        all.insert(state, pending);
    }

    /// Ends a sign-in: exchanges the code, checks the ID token, and makes or updates the user. A state is good once.
    ///
    /// # Errors
    /// [`OidcError`]; nobody is signed in then.
    pub async fn finish(
        self: &Arc<Self>,
        db: &Db,
        (state, code): (&str, String),
        from: Network,
        now_ms: u64,
    ) -> Result<Grant, OidcError> {
        let pending = {
            let mut all = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            all.remove(&Digest::of(state.as_bytes()))
        };
        let pending = pending.filter(|pending| now_ms.saturating_sub(pending.begun_at_ms) < PENDING_MS);
        let pending = pending.ok_or(OidcError::UnknownState)?;
        if code.is_empty() {
            return Err(OidcError::Declined);
        }
        let identity = self.call_out(from, move |oidc| oidc.identify(code, pending)).await?;
        db.write(move |conn| {
            let user = take_in(conn, &identity, now_ms)?;
            let name = user.user.name.clone();
            granted(Holder::User(user), now_ms).ok_or(OidcError::ShutOut(name))
        })
        .await
    }

    fn identify(&self, code: String, pending: Pending) -> Result<Identity, OidcError> {
        let client = self.client()?;
        let exchange = client
            .exchange_code(AuthorizationCode::new(code))
            .map_err(provider("it has no token endpoint"))?;
        let call = |request| self.call(request);
        let answer = exchange.set_pkce_verifier(pending.verifier).request(&call);
        let answer = answer.map_err(provider("it refused the code"))?;
        let missing = || provider("it sent no ID token")(io::Error::other("the answer has none"));
        let token = answer.extra_fields().id_token().ok_or_else(missing)?;
        let verifier = client.id_token_verifier().set_allowed_algs([
            CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
            CoreJwsSigningAlgorithm::RsaSsaPssSha256,
            CoreJwsSigningAlgorithm::EcdsaP256Sha256,
            CoreJwsSigningAlgorithm::EcdsaP384Sha384,
            CoreJwsSigningAlgorithm::EdDsa,
        ]);
        let claims = token
            .claims(&verifier, &pending.nonce)
            .map_err(provider("its ID token is refused"))?;
        // Whoever may write any address there could take the name of somebody who has not signed in yet.
        let email = claims.email().filter(|_| claims.email_verified() == Some(true));
        let names = [
            claims.preferred_username().map(|name| name.as_str()),
            email.map(|email| email.as_str()),
        ];
        let name = names
            .into_iter()
            .flatten()
            .find_map(|name| name.to_lowercase().parse().ok());
        let name: UserName = name.ok_or(OidcError::NoName)?;
        let groups = groups_of(&token.to_string(), &self.config.groups_claim);
        let roles = groups.iter().filter_map(|group| self.config.roles.get(group));
        let role = *roles.max().ok_or_else(|| OidcError::NoRole(name.clone()))?;
        Ok(Identity {
            subject: format!("{} {}", claims.issuer().as_str(), claims.subject().as_str()),
            name,
            role,
        })
    }

    /// Its metadata and keys are asked for each time: people sign in rarely, and a rotated key is then no case of its own.
    fn client(&self) -> Result<Client, OidcError> {
        let issuer = IssuerUrl::new(self.config.issuer.clone()).map_err(unusable("issuer"))?;
        let redirect = RedirectUrl::new(self.config.redirect_url.clone()).map_err(unusable("redirect_url"))?;
        let call = |request| self.call(request);
        let metadata =
            CoreProviderMetadata::discover(&issuer, &call).map_err(provider("it tells nothing about itself"))?;
        let client = CoreClient::from_provider_metadata(
            metadata,
            ClientId::new(self.config.client_id.clone()),
            self.secret.clone(),
        );
        Ok(client.set_redirect_uri(redirect))
    }

    /// Calls the provider away from the runtime's threads.
    async fn call_out<T: Send + 'static>(
        self: &Arc<Self>,
        from: Network,
        work: impl FnOnce(&Oidc) -> Result<T, OidcError> + Send + 'static,
    ) -> Result<T, OidcError> {
        let share = self.shares.take(from.address()).ok_or(OidcError::Busy)?;
        let place = Arc::clone(&self.calls).try_acquire_owned();
        let place = (place.map_err(|_| OidcError::Busy)?, share);
        let oidc = Arc::clone(self);
        let work = move || {
            // The call goes on when the browser does not wait for it: its place is taken until it ends.
            let _place = place;
            work(&oidc)
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.unwrap_or_else(|error| Err(provider("the call ended early")(error)))
    }

    fn call(&self, request: HttpRequest) -> Result<HttpResponse, CallError> {
        let answer = self.agent.run(request).map_err(CallError::Send)?;
        let (parts, mut body) = answer.into_parts();
        let body = body.with_config().limit(ANSWER_MAX_BYTES).read_to_vec();
        Ok(HttpResponse::from_parts(parts, body.map_err(CallError::Send)?))
    }
}

#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("cannot call the identity provider")]
    Send(#[source] ureq::Error),
}

fn provider<E: std::error::Error + Send + Sync + 'static>(what: &'static str) -> impl FnOnce(E) -> OidcError {
    move |source| OidcError::Provider {
        what,
        source: Box::new(source),
    }
}

fn read_secret(path: &Path) -> Result<ClientSecret, OidcError> {
    let text = std::fs::read_to_string(path).map_err(unusable("client_secret_file"))?;
    Ok(ClientSecret::new(text.trim().to_owned()))
}

fn read_certificates(path: &Path) -> Result<Vec<Certificate<'static>>, OidcError> {
    let pem = std::fs::read(path).map_err(unusable("ca_file"))?;
    let certificates = ureq::tls::parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let certificates: Vec<_> = certificates.collect();
    if certificates.is_empty() {
        return Err(unusable("ca_file")(io::Error::other("there is no certificate in it")));
    }
    Ok(certificates)
}

fn unusable<E: std::error::Error + Send + Sync + 'static>(what: &'static str) -> impl FnOnce(E) -> OidcError {
    move |source| OidcError::Config {
        what,
        source: Box::new(source),
    }
}

/// The groups in an ID token whose signature has been checked.
fn groups_of(token: &str, claim: &str) -> Vec<String> {
    let payload = token
        .split('.')
        .nth(1)
        .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims: serde_json::Value = payload
        .and_then(|payload| serde_json::from_slice(&payload).ok())
        .unwrap_or_default();
    let groups = claims[claim].as_array().into_iter().flatten();
    groups.filter_map(|group| group.as_str().map(str::to_owned)).collect()
}
