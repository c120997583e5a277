//! All TLS of the agent: whom it trusts, who it is, and at what time.
//!
//! The time is `clock`'s, not the system's: a board without a battery starts in 1970, when no certificate is valid yet.
//! Invariant: nothing is trusted but the fleet's own authority (or the one that it names for a foreign broker); the
//! certificates of the world are not known here.

use std::{
    fmt,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use anyhow::{Context, bail};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
    client::{
        ResolvesClientCert, Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    sign::CertifiedKey,
};
use skerry_shared::digest::Digest;
use skerry_tls::DEVICE_PROTOCOL;
use ureq::unversioned::{
    resolver::DefaultResolver,
    transport::{
        Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, TcpConnector, Transport, TransportAdapter,
    },
};

use crate::{
    clock::Clock,
    disk::{Access, Disk},
};

/// For each step of a connection to the control plane.
const TIMEOUT: Duration = Duration::from_secs(30);

const KEY: &str = "device.key";
const CERTIFICATE: &str = "device.pem";

pub(crate) fn crypto() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Judges a server's certificate at the device's time, which may not be trusted: then it is one that has certainly passed.
/// What is expired by it is refused. What is not yet valid is judged again at the time from which it is: an authority signs
/// nothing for the future, so its signature says that this time has passed, too. Without this a board without a battery
/// could never reach anybody who tells it the time.
#[derive(Debug)]
struct AtDeviceTime {
    chain: Arc<WebPkiServerVerifier>,
    clock: Clock,
}

/// Certificates of one chain that may each be newer than the time so far.
const LATER_TIMES_MAX: usize = 3;

impl ServerCertVerifier for AtDeviceTime {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let now = self.clock.now();
        let verify = |at| self.chain.verify_server_cert(end_entity, intermediates, name, ocsp, at);
        let mut verified = verify(UnixTime::since_unix_epoch(Duration::from_millis(now.ms)));
        for _ in 0..LATER_TIMES_MAX {
            let Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })) =
                verified
            else {
                break;
            };
            if now.trusted {
                break;
            }
            verified = verify(not_before);
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The certificates in PEM; at least one.
pub(crate) fn certificates(pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => bail!("there is no certificate in PEM"),
    }
}

/// The device's private key. It is made here and never leaves the device.
pub(crate) struct DeviceKey(KeyPair);

impl DeviceKey {
    /// Reads the key of a state folder; `None` before there is one.
    pub(crate) fn read(disk: &Disk, state_dir: &Path) -> anyhow::Result<Option<DeviceKey>> {
        let Some(pem) = disk.read(&state_dir.join(KEY))? else {
            return Ok(None);
        };
        let pem = zeroize::Zeroizing::new(pem);
        let key = std::str::from_utf8(&pem)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok());
        Ok(Some(DeviceKey(key.context(
            "device.key is damaged: enrol again with an empty state folder",
        )?)))
    }

    /// Makes the key of a state folder, unless it has one: the file is the device's identity.
    pub(crate) fn make(disk: &Disk, state_dir: &Path) -> anyhow::Result<DeviceKey> {
        let key = match DeviceKey::read(disk, state_dir)? {
            Some(key) => key,
            None => DeviceKey(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("cannot make a key")?),
        };
        // Also one that was there: an earlier try may have broken off before the folder was synced, and a key that has been
        // shown to anybody must outlive the next power cut.
        let pem = zeroize::Zeroizing::new(key.0.serialize_pem());
        disk.write(&state_dir.join(KEY), pem.as_bytes(), Access::OwnerOnly)?;
        Ok(key)
    }

    /// The SHA-256 of the public key (SubjectPublicKeyInfo): what a person compares.
    pub(crate) fn fingerprint(&self) -> Digest {
        use rcgen::PublicKeyData;
        Digest::of(&self.0.subject_public_key_info())
    }

    /// A request for a certificate (PKCS #10, PEM), signed by the key. It asks for no name: the control plane gives one.
    pub(crate) fn request(&self) -> anyhow::Result<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params
            .serialize_request(&self.0)
            .context("cannot make a certificate request")?;
        request.pem().context("cannot encode a certificate request")
    }

    fn certified(&self, chain: Vec<CertificateDer<'static>>) -> anyhow::Result<CertifiedKey> {
        let key = zeroize::Zeroizing::new(self.0.serialize_der());
        let key = PrivateKeyDer::try_from(&key[..])
            .map_err(anyhow::Error::msg)?
            .clone_key();
        CertifiedKey::from_der(chain, key, &crypto()).context("the certificate is not of this device's key")
    }
}

/// The device's certificate with its key, which is replaced while connections use it: the next handshake shows the new one.
pub(crate) struct DeviceCertificate(RwLock<Arc<CertifiedKey>>);

impl DeviceCertificate {
    /// Reads what enrolment has left.
    pub(crate) fn read(disk: &Disk, state_dir: &Path, key: &DeviceKey) -> anyhow::Result<DeviceCertificate> {
        let pem = disk.read(&state_dir.join(CERTIFICATE))?;
        let pem = pem.context("device.pem is missing: enrol again with an empty state folder")?;
        let certified = key.certified(certificates(&pem).context("device.pem is damaged")?)?;
        Ok(DeviceCertificate(RwLock::new(Arc::new(certified))))
    }

    /// Puts a new chain on the disk, then into use. One of another key is refused, and the old one stays.
    pub(crate) fn replace(&self, disk: &Disk, state_dir: &Path, key: &DeviceKey, pem: &str) -> anyhow::Result<()> {
        let certified = key.certified(certificates(pem.as_bytes())?)?;
        disk.write(&state_dir.join(CERTIFICATE), pem.as_bytes(), Access::Everybody)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
        Ok(())
    }
}

/// Reads the key and the certificate that enrolment has left, for the start of the agent.
pub(crate) fn read_own(disk: &Disk, state_dir: &Path) -> anyhow::Result<(DeviceKey, Arc<DeviceCertificate>)> {
    let key = DeviceKey::read(disk, state_dir)?;
    let key = key.context("device.key is missing: enrol again with an empty state folder")?;
    let certificate = DeviceCertificate::read(disk, state_dir, &key)?;
    Ok((key, Arc::new(certificate)))
}

/// Puts the first chain on the disk.
pub(crate) fn write_first(disk: &Disk, state_dir: &Path, key: &DeviceKey, pem: &str) -> anyhow::Result<()> {
    key.certified(certificates(pem.as_bytes())?)?;
    Ok(disk.write(&state_dir.join(CERTIFICATE), pem.as_bytes(), Access::Everybody)?)
}

impl fmt::Debug for DeviceCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceCertificate").finish_non_exhaustive()
    }
}

impl ResolvesClientCert for DeviceCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A configuration that trusts `authority` alone and shows `own`.
fn config(
    authority: &[CertificateDer<'static>],
    own: Option<Arc<DeviceCertificate>>,
    clock: &Clock,
) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in authority {
        roots
            .add(certificate.clone())
            .context("the authority's certificate is damaged")?;
    }
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crypto()).build();
    let verifier = AtDeviceTime {
        chain: chain.context("the authority's certificate is damaged")?,
        clock: clock.clone(),
    };
    let config = ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match own {
        Some(own) => config.with_client_cert_resolver(own),
        None => config.with_no_client_auth(),
    };
    // A resumed session would go on with the certificate of before.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// For the connection to the broker.
pub(crate) fn for_broker(
    authority: &[CertificateDer<'static>],
    own: Arc<DeviceCertificate>,
    clock: &Clock,
) -> anyhow::Result<Arc<ClientConfig>> {
    Ok(Arc::new(config(authority, Some(own), clock)?))
}

/// An HTTP client for the control plane.
pub(crate) fn http(
    authority: &[CertificateDer<'static>],
    own: Option<Arc<DeviceCertificate>>,
    clock: &Clock,
) -> anyhow::Result<ureq::Agent> {
    let mut tls = config(authority, own, clock)?;
    tls.alpn_protocols = vec![DEVICE_PROTOCOL.to_vec()];
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .https_only(true)
        .max_redirects(0)
        .timeout_global(Some(TIMEOUT))
        .build();
    let connector = ().chain(TcpConnector::default()).chain(TlsConnector(Arc::new(tls)));
    Ok(ureq::Agent::with_parts(config, connector, DefaultResolver::default()))
}

/// TLS over what connects before it: ureq's own knows neither our time nor a certificate that changes.
#[derive(Debug)]
struct TlsConnector(Arc<ClientConfig>);

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = TlsTransport;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<TlsTransport>, ureq::Error> {
        let Some(transport) = chained else { return Ok(None) };
        let host = details.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| ureq::Error::Tls("the host is no name"))?;
        let mut connection = ClientConnection::new(Arc::clone(&self.0), name)?;
        let mut socket = TransportAdapter::new(transport.boxed(), Arc::clone(&details.current_time));
        socket.set_timeout(details.timeout);
        connection.complete_io(&mut socket)?;
        Ok(Some(TlsTransport {
            buffers: LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size()),
            stream: StreamOwned::new(connection, socket),
        }))
    }
}

struct TlsTransport {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsTransport").finish_non_exhaustive()
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        use std::io::Write;
        self.stream.get_mut().set_timeout(timeout);
        Ok(self.stream.write_all(&self.buffers.output()[..amount])?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        use std::io::Read;
        self.stream.get_mut().set_timeout(timeout);
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// Asks a control plane for the certificate of its authority. It counts only if its digest is the pinned one, and nothing is
/// said to the server here: the handshake is broken off.
pub(crate) fn fetch_authority(host: &str, port: u16, pinned: Digest) -> anyhow::Result<CertificateDer<'static>> {
    let chain = skerry_tls::shown_chain(host, port, TIMEOUT)?;
    let last = chain.into_iter().next_back();
    last.filter(|last| Digest::of(last) == pinned)
        .context("its certificate is not of the authority that the token names: do not trust this server")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    /// A device whose certificate it has signed itself: as good as any for what does not connect.
    pub(crate) fn of_a_device(state_dir: &Path) -> Arc<ClientConfig> {
        let key = DeviceKey::make(&Disk::real(), state_dir).unwrap();
        let certificate = CertificateParams::default().self_signed(&key.0).unwrap();
        write_first(&Disk::real(), state_dir, &key, &certificate.pem()).unwrap();
        let own = DeviceCertificate::read(&Disk::real(), state_dir, &key).unwrap();
        for_broker(&[certificate.der().clone()], Arc::new(own), &Clock::of_this_machine(0)).unwrap()
    }

    /// An authority that gives devices their certificates.
    pub(crate) struct Authority {
        issuer: rcgen::Issuer<'static, KeyPair>,
        pub(crate) certificate: CertificateDer<'static>,
    }

    impl Authority {
        pub(crate) fn new() -> Authority {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap().der().clone();
            Authority {
                issuer: rcgen::Issuer::new(params, key),
                certificate,
            }
        }

        /// A certificate for this key, in PEM.
        pub(crate) fn issue(&self, key: &DeviceKey) -> String {
            let certificate = CertificateParams::default().signed_by(&key.0, &self.issuer);
            certificate.unwrap().pem()
        }
    }

    #[test]
    fn the_key_is_made_once_and_only_its_owner_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let first = DeviceKey::make(&Disk::real(), folder.path()).unwrap();
        let again = DeviceKey::make(&Disk::real(), folder.path()).unwrap();
        assert_eq!(first.0.serialized_der(), again.0.serialized_der());
        let mode = std::fs::metadata(folder.path().join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_public_file_that_broke_off_lends_its_mode_to_no_key() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        // As a cut leaves it: begun, and never committed.
        let begun = Disk::real().begin(&folder.path().join(CERTIFICATE), Access::Everybody);
        std::mem::forget(begun.unwrap());
        DeviceKey::make(&Disk::real(), folder.path()).unwrap();
        let mode = std::fs::metadata(folder.path().join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// The verdict on a server's certificate from 2026-01-01 to 2026-03-01, by a clock in `system_ms` above this floor.
    fn verdict(system_ms: u64, floor_ms: u64) -> Result<(), rustls::Error> {
        let mut params = CertificateParams::new(["plane".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 3, 1);
        let authority = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut own = CertificateParams::default();
        own.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = own.self_signed(&authority).unwrap();
        let issuer = rcgen::Issuer::new(own, authority);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let leaf = params.signed_by(&key, &issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(root.der().clone()).unwrap();
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crypto()).build();
        let reading = crate::clock::Reading {
            system_ms,
            monotonic_ms: 0,
        };
        let verifier = AtDeviceTime {
            chain: chain.unwrap(),
            clock: Clock::new(Arc::new(move || reading), floor_ms),
        };
        let name = ServerName::try_from("plane").unwrap();
        verifier
            .verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now())
            .map(|_| ())
    }

    #[test]
    fn a_clock_in_1970_or_2100_keeps_nobody_from_a_valid_certificate() {
        let november_2025_ms = 1_762_000_000_000;
        for system_ms in [0, 4_102_444_800_000] {
            verdict(system_ms, november_2025_ms).unwrap();
        }
    }

    #[test]
    fn a_certificate_that_a_signed_time_has_outlived_is_refused_in_1970_too() {
        let april_2026_ms = 1_775_500_000_000;
        let expired = verdict(0, april_2026_ms).unwrap_err();
        assert!(matches!(
            expired,
            rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { .. })
        ));
    }

    #[test]
    fn a_trusted_clock_refuses_what_is_not_yet_valid() {
        let november_2025_ms = 1_762_000_000_000;
        let early = verdict(november_2025_ms + 1000, november_2025_ms).unwrap_err();
        assert!(matches!(
            early,
            rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { .. })
        ));
    }

    #[test]
    fn a_certificate_of_another_key_never_replaces_the_devices_own() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        of_a_device(folder.path());
        of_a_device(other.path());
        let key = DeviceKey::make(&Disk::real(), folder.path()).unwrap();
        let own = DeviceCertificate::read(&Disk::real(), folder.path(), &key).unwrap();
        let before = std::fs::read(folder.path().join(CERTIFICATE)).unwrap();
        let foreign = std::fs::read_to_string(other.path().join(CERTIFICATE)).unwrap();
        for bad in [foreign.as_str(), "", "-----BEGIN CERTIFICATE-----\n"] {
            assert!(own.replace(&Disk::real(), folder.path(), &key, bad).is_err());
        }
        assert_eq!(std::fs::read(folder.path().join(CERTIFICATE)).unwrap(), before);
    }
}
