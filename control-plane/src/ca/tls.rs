//! How TLS uses the authority: the control plane's own certificates, which are replaced while it runs, and who is asked for
//! a client certificate.
//!
//! Invariant: no session of a client with a certificate is resumed. A resumed one would not be verified again, and would
//! outlive its certificate.

use std::{
    fmt,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{ResolvesClientCert, danger::HandshakeSignatureValid},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use skerry_tls::DEVICE_PROTOCOL;

use super::{Authority, CaError, RENEWAL_GRACE, certificate::ClientCertificate, crypto};

/// What people's clients speak.
pub const HTTP_PROTOCOL: &[u8] = b"http/1.1";

/// The certificates in PEM, or nothing if one of them is malformed.
pub fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()
}

/// A certificate with its key that can be replaced while connections use it.
pub struct Replaceable(RwLock<Arc<CertifiedKey>>);

impl Replaceable {
    /// Begins with one.
    pub fn new(first: CertifiedKey) -> Replaceable {
        Replaceable(RwLock::new(Arc::new(first)))
    }

    /// From the next handshake on.
    pub fn replace(&self, next: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    pub(super) fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Replaceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replaceable").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Replaceable {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }
}

impl ResolvesClientCert for Replaceable {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Reads a certificate chain and its key from files.
///
/// # Errors
/// [`CaError`], with the file.
pub fn read_certified(certificate: &Path, key: &Path) -> Result<CertifiedKey, CaError> {
    let unusable = |path: &Path, what| CaError::Unusable {
        path: path.to_owned(),
        what,
    };
    let chain = certificates(&read(certificate)?).filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| unusable(certificate, "certificates in PEM"))?;
    let pem = zeroize::Zeroizing::new(read(key)?);
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| unusable(key, "a private key in PEM"))?;
    CertifiedKey::from_der(chain, private, &crypto()).map_err(|_| unusable(key, "the private key of the certificate"))
}

fn read(path: &Path) -> Result<Vec<u8>, CaError> {
    std::fs::read(path).map_err(|source| CaError::File {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

/// Certificates to trust, from a file in PEM.
///
/// # Errors
/// [`CaError`], with the file.
pub fn read_roots(path: &Path) -> Result<RootCertStore, CaError> {
    let unusable = || CaError::Unusable {
        path: path.to_owned(),
        what: "certificates in PEM",
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&read(path)?).ok_or_else(unusable)?);
    if roots.is_empty() { Err(unusable()) } else { Ok(roots) }
}

/// The authority alone.
///
/// # Errors
/// [`CaError::Tls`].
pub fn roots(authority: &Authority) -> Result<RootCertStore, CaError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).map_err(CaError::Tls)?;
    Ok(roots)
}

fn tls13() -> Result<rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier>, CaError> {
    ServerConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(CaError::Tls)
}

fn without_resumption(mut config: ServerConfig) -> ServerConfig {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

/// For people: no client certificate.
///
/// # Errors
/// [`CaError::Tls`].
pub fn for_people(server: Arc<Replaceable>) -> Result<ServerConfig, CaError> {
    let mut config = tls13()?.with_no_client_auth().with_cert_resolver(server);
    config.alpn_protocols = vec![HTTP_PROTOCOL.to_vec()];
    Ok(config)
}

/// For devices that enrol, which have no certificate yet, or renew, whose certificate may have expired.
///
/// # Errors
/// [`CaError::Tls`].
pub fn for_renewal(authority: &Authority, server: Arc<Replaceable>) -> Result<ServerConfig, CaError> {
    let verifier = Arc::new(RenewalVerifier(verifier(authority)?));
    let config = tls13()?.with_client_cert_verifier(verifier).with_cert_resolver(server);
    let mut config = without_resumption(config);
    config.alpn_protocols = vec![DEVICE_PROTOCOL.to_vec()];
    Ok(config)
}

/// For the broker: a valid certificate of the authority, from everybody.
///
/// # Errors
/// [`CaError::Tls`].
pub fn for_broker(authority: &Authority, server: Arc<Replaceable>) -> Result<ServerConfig, CaError> {
    let config = tls13()?
        .with_client_cert_verifier(verifier(authority)?)
        .with_cert_resolver(server);
    Ok(without_resumption(config))
}

/// For the control plane's own connection to a broker.
///
/// # Errors
/// [`CaError::Tls`].
pub fn for_own_connection(roots: RootCertStore, own: Arc<Replaceable>) -> Result<ClientConfig, CaError> {
    let config = ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()
        .map_err(CaError::Tls)?;
    Ok(config.with_root_certificates(roots).with_client_cert_resolver(own))
}

pub(super) fn verifier(authority: &Authority) -> Result<Arc<dyn ClientCertVerifier>, CaError> {
    WebPkiClientVerifier::builder_with_provider(roots(authority)?.into(), crypto())
        .build()
        .map_err(|_| {
            CaError::Tls(rustls::Error::General(
                "the authority's own certificate is refused".to_owned(),
            ))
        })
}

/// Takes certificates that have expired lately, too. What they may do is the route's to say.
#[derive(Debug)]
pub(super) struct RenewalVerifier(pub(super) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for RenewalVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now);
        match verified {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. },
            )) => {}
            verified => return verified,
        }
        let ended = ClientCertificate::read(end_entity).map(|certificate| certificate.not_after_ms / 1000);
        match ended {
            Some(ended) if now.as_secs() <= ended + RENEWAL_GRACE.as_secs() => {
                // As it was in its last moment: everything but the time is checked.
                let then = UnixTime::since_unix_epoch(Duration::from_secs(ended));
                self.0.verify_client_cert(end_entity, intermediates, then)
            }
            _ => Err(CertificateError::Expired.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
