//! What a client certificate of ours says. Whether it is ours, TLS has decided before.

use skerry_shared::id::DeviceId;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::CONTROL_PLANE;

/// Whom a client certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientIdentity {
    /// The control plane itself.
    ControlPlane,
    /// A device.
    Device(DeviceId),
}

/// A client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Whom it names.
    pub identity: ClientIdentity,
    /// Its key in hex (SubjectPublicKeyInfo, DER).
    pub public_key: String,
    /// UTC milliseconds.
    pub not_after_ms: u64,
}

impl ClientCertificate {
    /// Reads a verified certificate; `None` when it names nobody that we know. The common name and the URI must agree: an
    /// external broker reads only the first.
    pub fn read(der: &[u8]) -> Option<ClientCertificate> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let mut names = certificate.subject().iter_common_name();
        let name = names.next()?.as_str().ok()?;
        if names.next().is_some() {
            return None;
        }
        let alternative = certificate.subject_alternative_name().ok()??.value;
        let [GeneralName::URI(uri)] = alternative.general_names[..] else {
            return None;
        };
        let (_fleet, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
        let identity = match path.split_once('/') {
            None if path == "control-plane" && name == CONTROL_PLANE => ClientIdentity::ControlPlane,
            Some(("device", id)) if id == name => ClientIdentity::Device(id.parse().ok()?),
            _ => return None,
        };
        Some(ClientCertificate {
            identity,
            public_key: hex::encode(certificate.public_key().raw),
            not_after_ms: u64::try_from(certificate.validity().not_after.timestamp()).ok()? * 1000,
        })
    }
}

/// The key of a certificate (SubjectPublicKeyInfo, DER).
pub(super) fn public_key(der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.public_key().raw.to_vec())
}
