//! The fleet's own certificate authority: it names devices to the broker, and the control plane to devices and people.
//!
//! Not the trust in models: signing keys are apart from these (`signing`). Invariants: a certificate for a device is issued
//! only for a key that has signed its request, and says nothing of what the request asked for; the private keys of the server
//! and of the control plane's own client never reach a disk.

pub mod certificate;
mod files;
mod names;
pub mod own;
pub mod tls;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::{
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use skerry_shared::{digest::Digest, id::DeviceId};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};
use zeroize::Zeroizing;

pub use names::ServerNames;

const DAY: Duration = Duration::from_secs(86_400);
/// Nobody changes the root of a fleet often: devices that are offline for years must still know it.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Long enough for a control plane that is restarted seldom; it renews its own certificates at two thirds.
const OWN_LIFE: Duration = Duration::from_secs(90 * 86_400);
/// How long after its end a device's certificate may still fetch a new one: boats and mountain huts have off-seasons.
pub const RENEWAL_GRACE: Duration = Duration::from_secs(90 * 86_400);
/// A certificate is valid from before it was made: the clock of a device without a battery is slow.
const BACKDATED: Duration = DAY;
/// The common name of the control plane's own client certificate, and its client id at the broker.
pub const CONTROL_PLANE: &str = "skerry-control-plane";

/// Why the authority failed.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the authority cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The certificate is there and its key is not: making a new one would cut every device off.
    #[error(
        "{} is missing, and devices trust the certificate beside it: restore it from a backup", path.display()
    )]
    KeyMissing {
        /// The key's file.
        path: PathBuf,
    },
    /// The files do not hold what they should, or not of each other.
    #[error("{} does not hold {what}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// A request for a certificate is malformed, or not signed by the key that it names.
    #[error("the certificate request is refused: {0}")]
    Request(&'static str),
    /// The library could not make a certificate or a key.
    #[error("cannot make a certificate")]
    Make(#[source] rcgen::Error),
    /// rustls does not take what was made or read.
    #[error("cannot use a certificate for TLS")]
    Tls(#[source] rustls::Error),
    /// The system has no randomness.
    #[error("no randomness from the system")]
    Random,
}

/// The cryptography of every TLS connection, named explicitly: nothing depends on a default of the process.
pub fn crypto() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// A certificate that was issued, with when it ends.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate, then the authority's, in PEM.
    pub chain_pem: String,
    /// UTC milliseconds.
    pub not_after_ms: u64,
}

/// A device's request for a certificate, whose signature has been checked: whoever sent it has the key.
#[derive(Clone, Debug)]
pub struct Request {
    key: SubjectPublicKeyInfo,
    spki: Vec<u8>,
}

impl Request {
    /// Reads a request (PKCS #10, DER).
    ///
    /// # Errors
    /// [`CaError::Request`] when it is malformed, its key is not P-256, or it is not signed by that key.
    pub fn parse(der: &[u8]) -> Result<Request, CaError> {
        let malformed = |_| CaError::Request("it is no PKCS #10 request");
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(malformed)?;
        if !rest.is_empty() {
            return Err(CaError::Request("bytes follow it"));
        }
        let unsigned = |_| CaError::Request("it is not signed by its own key");
        request.verify_signature().map_err(unsigned)?;
        let spki = request.certification_request_info.subject_pki.raw.to_vec();
        let key = SubjectPublicKeyInfo::from_der(&spki).ok();
        let key = key.filter(|key| key.algorithm() == &PKCS_ECDSA_P256_SHA256);
        let key = key.ok_or(CaError::Request("its key is not on the curve P-256"))?;
        Ok(Request { key, spki })
    }

    /// The key in hex (SubjectPublicKeyInfo, DER): what a device is known by.
    pub fn public_key_hex(&self) -> String {
        hex::encode(&self.spki)
    }

    /// The digest of the key: what a person compares, and what a factory's list has.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(&self.spki)
    }
}

/// The fleet's certificate authority.
pub struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    path: PathBuf,
}

impl Authority {
    /// Opens the authority in a folder, and makes it at the first start. A start that broke off is made good: the key comes
    /// first, and the certificate is made anew for it.
    ///
    /// # Errors
    /// [`CaError`], with the file.
    pub fn open(folder: &Path, now_ms: u64) -> Result<Authority, CaError> {
        let (key_path, path) = (folder.join("ca.key"), folder.join("ca.pem"));
        files::make_folder(folder)?;
        let known = files::read(&path)?;
        let key = match files::read(&key_path)? {
            Some(pem) => {
                let pem = Zeroizing::new(pem);
                KeyPair::from_pem(&pem).map_err(|_| CaError::Unusable {
                    path: key_path,
                    what: "a private key",
                })?
            }
            None if known.is_some() => return Err(CaError::KeyMissing { path: key_path }),
            None => {
                let key = new_key()?;
                let pem = Zeroizing::new(key.serialize_pem());
                files::write(&key_path, pem.as_bytes(), files::Readers::Owner)?;
                key
            }
        };
        let pem = match known {
            Some(pem) => pem,
            None => {
                let pem = self_signed(&key, now_ms)?;
                files::write(&path, pem.as_bytes(), files::Readers::Everybody)?;
                pem
            }
        };
        let unusable = |what| CaError::Unusable {
            path: path.clone(),
            what,
        };
        let certificate = tls::certificates(pem.as_bytes()).and_then(|mut all| all.pop());
        let certificate = certificate.ok_or_else(|| unusable("one certificate"))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|_| unusable("a certificate"))?;
        let same_key =
            certificate::public_key(&certificate).is_some_and(|spki| spki == issuer.key().subject_public_key_info());
        if !same_key {
            return Err(unusable("the certificate of the key beside it"));
        }
        Ok(Authority {
            certificate,
            pem,
            issuer,
            path,
        })
    }

    /// The authority's certificate in PEM: what browsers and brokers are told to trust.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Where its certificate is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The SHA-256 of its certificate: the pin in enrolment tokens.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.certificate)
    }

    /// The fleet's name in certificates: a part of the digest of the authority's key.
    pub fn fleet(&self) -> String {
        let mut hex = Digest::of(&self.issuer.key().subject_public_key_info()).to_hex();
        hex.truncate(16);
        hex
    }

    /// Issues a client certificate for a device. Only the key is taken from the request.
    ///
    /// # Errors
    /// [`CaError::Make`] or [`CaError::Random`].
    pub fn issue_device(
        &self,
        request: &Request,
        device: &DeviceId,
        life: Duration,
        now_ms: u64,
    ) -> Result<Issued, CaError> {
        let mut params = self.client_params(device.as_str(), &format!("device/{device}"), life, now_ms)?;
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Skerry device");
        let certificate = params.signed_by(&request.key, &self.issuer).map_err(CaError::Make)?;
        Ok(Issued {
            chain_pem: format!("{}{}", certificate.pem(), self.pem),
            not_after_ms: now_ms + life.as_millis() as u64,
        })
    }

    /// Issues the control plane's own client certificate for the broker.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn issue_control_plane(&self, now_ms: u64) -> Result<CertifiedKey, CaError> {
        let params = self.client_params(CONTROL_PLANE, "control-plane", OWN_LIFE, now_ms)?;
        self.certified(params)
    }

    /// Issues a certificate with which the control plane answers under these names.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn issue_server(&self, names: &ServerNames, now_ms: u64) -> Result<CertifiedKey, CaError> {
        self.certified(server_params("Skerry control plane", names, OWN_LIFE, now_ms)?)
    }

    /// Issues a certificate for a broker that runs elsewhere: the chain and the private key, in PEM.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn issue_broker(
        &self,
        names: &ServerNames,
        life: Duration,
        now_ms: u64,
    ) -> Result<(String, Zeroizing<String>), CaError> {
        let key = new_key()?;
        let params = server_params("Skerry broker", names, life, now_ms)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(CaError::Make)?;
        let chain = format!("{}{}", certificate.pem(), self.pem);
        Ok((chain, Zeroizing::new(key.serialize_pem())))
    }

    /// True when the control plane's own certificates of `issued_at_ms` have lived two thirds of their life.
    pub fn own_are_due(issued_at_ms: u64, now_ms: u64) -> bool {
        now_ms.saturating_sub(issued_at_ms) >= OWN_LIFE.as_millis() as u64 * 2 / 3
    }

    fn client_params(&self, name: &str, path: &str, life: Duration, now_ms: u64) -> Result<CertificateParams, CaError> {
        let mut params = params(name, life, now_ms)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let uri = format!("spiffe://{}/{path}", self.fleet());
        let uri = uri.try_into().map_err(CaError::Make)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        Ok(params)
    }

    fn certified(&self, params: CertificateParams) -> Result<CertifiedKey, CaError> {
        let key = new_key()?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(CaError::Make)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let key = PrivateKeyDer::from(key);
        CertifiedKey::from_der(chain, key, &crypto()).map_err(CaError::Tls)
    }
}

fn server_params(
    common_name: &str,
    names: &ServerNames,
    life: Duration,
    now_ms: u64,
) -> Result<CertificateParams, CaError> {
    let mut params = params(common_name, life, now_ms)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for name in names.iter() {
        let name = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.try_into().map_err(CaError::Make)?),
        };
        params.subject_alt_names.push(name);
    }
    Ok(params)
}

fn new_key() -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Make)
}

fn self_signed(key: &KeyPair, now_ms: u64) -> Result<String, CaError> {
    let mut params = params("Skerry fleet authority", AUTHORITY_LIFE, now_ms)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // Two fleets must not look alike to whoever has both in a browser.
    let fleet = Digest::of(&key.subject_public_key_info()).to_hex();
    params
        .distinguished_name
        .push(DnType::OrganizationName, format!("Skerry {}", &fleet[..16]));
    let certificate = params.self_signed(key).map_err(CaError::Make)?;
    Ok(certificate.pem())
}

/// What all certificates have: a name, a random serial number (RFC 5280 §4.1.2.2: positive, at most 20 bytes), a life.
fn params(common_name: &str, life: Duration, now_ms: u64) -> Result<CertificateParams, CaError> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|_| CaError::Random)?;
    serial[0] &= 0x7f;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let now = Duration::from_millis(now_ms);
    params.not_before = (UNIX_EPOCH + now.saturating_sub(BACKDATED)).into();
    params.not_after = (UNIX_EPOCH + now + life).into();
    Ok(params)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
