//! The control plane's own certificates: what people see, what devices see, and what the broker is shown. They are renewed
//! while the control plane runs.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{ClientConfig, ServerConfig};

use super::{Authority, CaError, ServerNames, tls, tls::Replaceable};
use crate::config::Config;

/// The authority, and the certificates that it has issued to the control plane itself.
pub struct OwnCertificates {
    authority: Authority,
    /// More names than this machine's own.
    names: Vec<String>,
    /// What people see instead of `server`.
    files: Option<(PathBuf, PathBuf)>,
    people: Arc<Replaceable>,
    server: Arc<Replaceable>,
    client: Arc<Replaceable>,
    issued: Mutex<Issued>,
}

struct Issued {
    at_ms: u64,
    names: ServerNames,
}

impl OwnCertificates {
    /// Opens the authority of a data folder and issues what the configuration asks for.
    ///
    /// # Errors
    /// [`CaError`], with the file.
    pub fn open(config: &Config, now_ms: u64) -> Result<OwnCertificates, CaError> {
        let authority = Authority::open(&config.data_dir.join("tls"), now_ms)?;
        let mut more = config.tls.names.clone();
        more.extend(config.mqtt_advertise.iter().map(|(host, _)| host.clone()));
        let binds = [Some(config.http_bind), config.embedded_bind()];
        let addresses = binds.into_iter().flatten().map(|bind| bind.ip());
        more.extend(addresses.filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string()));
        let names = names(&more);
        let server = Arc::new(Replaceable::new(authority.issue_server(&names, now_ms)?));
        let people = match &config.tls.files {
            Some((certificate, key)) => Arc::new(Replaceable::new(tls::read_certified(certificate, key)?)),
            None => Arc::clone(&server),
        };
        let client = Arc::new(Replaceable::new(authority.issue_control_plane(now_ms)?));
        Ok(OwnCertificates {
            authority,
            names: more,
            files: config.tls.files.clone(),
            people,
            server,
            client,
            issued: Mutex::new(Issued { at_ms: now_ms, names }),
        })
    }

    /// The authority.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// True when people see a certificate of the authority, and must trust it.
    pub fn people_trust_the_authority(&self) -> bool {
        self.files.is_none()
    }

    /// By which certificate a client without any other trust knows the port that people see, in PEM: the authority's; or, where
    /// files are configured, the very one that is shown, since nobody here knows who has signed it.
    pub fn anchor_pem(&self) -> String {
        match &self.files {
            None => self.authority.pem().to_owned(),
            Some(_) => self
                .people
                .current()
                .cert
                .first()
                .map(|der| pem(der))
                .unwrap_or_default(),
        }
    }

    /// Issues new certificates when the names of this machine have changed or the old ones have lived two thirds of their
    /// life, and reads files again, which somebody else renews.
    ///
    /// # Errors
    /// [`CaError`]; the old certificates stay.
    pub fn renew(&self, now_ms: u64) -> Result<(), CaError> {
        let names = names(&self.names);
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        if names != issued.names || Authority::own_are_due(issued.at_ms, now_ms) {
            self.server.replace(self.authority.issue_server(&names, now_ms)?);
            self.client.replace(self.authority.issue_control_plane(now_ms)?);
            *issued = Issued { at_ms: now_ms, names };
        }
        if let Some((certificate, key)) = &self.files {
            self.people.replace(tls::read_certified(certificate, key)?);
        }
        Ok(())
    }

    /// For people's connections.
    ///
    /// # Errors
    /// [`CaError::Tls`].
    pub fn for_people(&self) -> Result<ServerConfig, CaError> {
        tls::for_people(Arc::clone(&self.people))
    }

    /// For devices that enrol or renew.
    ///
    /// # Errors
    /// [`CaError::Tls`].
    pub fn for_renewal(&self) -> Result<ServerConfig, CaError> {
        tls::for_renewal(&self.authority, Arc::clone(&self.server))
    }

    /// For the embedded broker.
    ///
    /// # Errors
    /// [`CaError::Tls`].
    pub fn for_broker(&self) -> Result<ServerConfig, CaError> {
        tls::for_broker(&self.authority, Arc::clone(&self.server))
    }

    /// For the control plane's own connection to the embedded broker.
    ///
    /// # Errors
    /// [`CaError::Tls`].
    pub fn for_embedded_broker(&self) -> Result<ClientConfig, CaError> {
        tls::for_own_connection(tls::roots(&self.authority)?, Arc::clone(&self.client))
    }

    /// For the control plane's own connection to a broker elsewhere: whom it trusts there and who it is, from files or of the
    /// fleet's own authority.
    ///
    /// # Errors
    /// [`CaError`], with the file.
    pub fn for_external_broker(
        &self,
        ca: Option<&Path>,
        own: Option<&(PathBuf, PathBuf)>,
    ) -> Result<ClientConfig, CaError> {
        let roots = match ca {
            Some(path) => tls::read_roots(path)?,
            None => tls::roots(&self.authority)?,
        };
        let own = match own {
            Some((certificate, key)) => Arc::new(Replaceable::new(tls::read_certified(certificate, key)?)),
            None => Arc::clone(&self.client),
        };
        tls::for_own_connection(roots, own)
    }
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

fn names(more: &[String]) -> ServerNames {
    ServerNames::of_this_machine(more.iter().map(String::as_str))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn devices_know_the_port_by_the_authority_or_by_the_very_certificate_that_is_configured() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new(folder.path());
        let own = OwnCertificates::open(&config, 0).unwrap();
        assert_eq!(own.anchor_pem(), own.authority().pem());

        // Any certificate with its key: here the authority's own.
        let file = |name: &str| folder.path().join("tls").join(name);
        config.tls.files = Some((file("ca.pem"), file("ca.key")));
        let configured = OwnCertificates::open(&config, 0).unwrap();
        let anchor = tls::certificates(configured.anchor_pem().as_bytes()).unwrap();
        assert_eq!(anchor, [configured.authority().certificate().clone()]);
    }
}
