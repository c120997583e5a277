//! Whom the command line takes for its control plane: by the certificate of its authority, from a file or by its digest.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use skerry_shared::digest::Digest;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::Global;
use crate::ca::{crypto, tls::certificates};

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
        let chain = skerry_tls::shown_chain(host, url.port_u16().unwrap_or(443), TIMEOUT)
            .with_context(|| format!("cannot reach the control plane at {server}"))?;
        match chain.last() {
            Some(last) if Digest::of(last) == digest => Ok(Trust(vec![Certificate::from_der(last).to_owned()])),
            _ => bail!(
                "{server} is not the control plane that is known: its certificate is not of the authority with SHA-256 {digest}"
            ),
        }
    }
}
