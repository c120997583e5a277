//! Whom the command line takes for its control plane: by the certificate of its authority, from a file or by its digest.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use skerry_shared::digest::Digest;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::Global;
use crate::ca::{
    crypto,
    tls::{DEVICE_PROTOCOL, certificates},
};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Where the authorities of the world are, for a control plane with a certificate of one of them.
const SYSTEM_ROOTS: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem"];

/// The certificates that are trusted; by default none.
#[derive(Clone, Debug, Default)]
pub struct Trust(Vec<Certificate<'static>>);

impl Trust {
    /// Trusts the certificates in a text in PEM.
    ///
    /// # Errors
    /// When there is none, or one is malformed.
    pub fn of_pem(pem: &[u8]) -> anyhow::Result<Trust> {
        let all = certificates(pem).filter(|all| !all.is_empty());
        let all = all.context("there is no certificate in PEM")?;
        Ok(Trust(
            all.iter().map(|one| Certificate::from_der(one).to_owned()).collect(),
        ))
    }

    /// Trusts the certificates in a file.
    ///
    /// # Errors
    /// When it cannot be read, or does not hold certificates.
    pub fn of_file(path: &Path) -> anyhow::Result<Trust> {
        let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Trust::of_pem(&pem).with_context(|| format!("cannot use {}", path.display()))
    }

    /// What the options and the environment say; else the first of the usual places that is there.
    pub(super) fn find(global: &Global) -> anyhow::Result<Trust> {
        if !global.server.starts_with("https://") {
            return Ok(Trust::default());
        }
        if let Some(path) = &global.ca {
            return Trust::of_file(path);
        }
        if let Some(digest) = &global.ca_sha256 {
            // openssl prints it in pairs.
            let digest = Digest::from_hex(&digest.replace(':', "")).context("SKERRY_CA_SHA256 is no SHA-256 in hex")?;
            return Trust::pinned(&global.server, digest);
        }
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config/skerry/ca.pem"));
        let usual = [PathBuf::from("skerry-data/tls/ca.pem")].into_iter().chain(home);
        let usual = usual.chain(SYSTEM_ROOTS.map(PathBuf::from));
        match usual.into_iter().find(|path| path.is_file()) {
            // A bundle of the system may hold what rustls does not know; it is a list of choices, not one.
            Some(path) => Trust::of_file(&path),
            None => Ok(Trust::default()),
        }
    }

    /// For HTTP clients.
    pub fn tls(&self) -> TlsConfig {
        let roots: RootCerts = self.0.iter().cloned().into();
        TlsConfig::builder()
            .root_certs(roots)
            .unversioned_rustls_crypto_provider(crypto())
            .build()
    }

    /// Asks the control plane for the certificate of its authority, and trusts it if its digest is the one that is known.
    fn pinned(server: &str, digest: Digest) -> anyhow::Result<Trust> {
        let url: ureq::http::Uri = server.parse().with_context(|| format!("`{server}` is no URL"))?;
        let host = url.host().with_context(|| format!("`{server}` names no host"))?;
        let host = host.trim_matches(['[', ']']);
        let chain = shown_chain(host, url.port_u16().unwrap_or(443))
            .with_context(|| format!("cannot reach the control plane at {server}"))?;
        match chain.last() {
            Some(last) if Digest::of(last) == digest => Ok(Trust(vec![Certificate::from_der(last).to_owned()])),
            _ => bail!(
                "{server} is not the control plane that is known: its certificate is not of the authority with SHA-256 {digest}"
            ),
        }
    }
}

/// The certificates that a server shows. Nothing is said to it: the handshake is broken off.
fn shown_chain(host: &str, port: u16) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let seen = Arc::new(Look::default());
    let mut config = ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![DEVICE_PROTOCOL.to_vec()];
    let name = ServerName::try_from(host.to_owned())?;
    let mut connection = ClientConnection::new(Arc::new(config), name)?;
    let mut stream = reach(host, port)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // It always fails: the certificates are refused once they have been seen.
    let broken_off = connection.complete_io(&mut stream);
    let chain = seen.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (chain, broken_off) {
        (Some(chain), _) => Ok(chain),
        (None, Err(error)) => Err(error.into()),
        (None, Ok(_)) => bail!("it shows no certificate"),
    }
}

/// A connection to the first address of a host that answers in time.
fn reach(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Looks at the certificates of a server, and refuses them.
#[derive(Debug, Default)]
struct Look(Mutex<Option<Vec<CertificateDer<'static>>>>);

impl ServerCertVerifier for Look {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = [end_entity].into_iter().chain(intermediates);
        let chain = chain.map(|one| one.clone().into_owned()).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(chain);
        Err(refused())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refused())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refused())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto().signature_verification_algorithms.supported_schemes()
    }
}

fn refused() -> rustls::Error {
    rustls::Error::General("the certificates were only looked at".to_owned())
}
