//! The authority by its own files, and against rustls: what is verified is what would be verified on a connection.

use std::{fs, os::unix::fs::PermissionsExt};

use proptest::prelude::*;
use rustls::{pki_types::UnixTime, server::danger::ClientCertVerifier};

use super::{
    certificate::{ClientCertificate, ClientIdentity},
    *,
};

const NOW: u64 = 1_790_000_000_000;
const DAY_MS: u64 = 86_400_000;
const DEVICE_LIFE: Duration = Duration::from_secs(30 * 86_400);

fn authority(folder: &Path) -> Authority {
    Authority::open(folder, NOW).unwrap()
}

fn request(key: &KeyPair) -> Vec<u8> {
    let request = CertificateParams::default().serialize_request(key).unwrap();
    request.der().to_vec()
}

/// A device's certificate, as DER.
fn device(authority: &Authority, id: &str) -> CertificateDer<'static> {
    let request = Request::parse(&request(&new_key().unwrap())).unwrap();
    let issued = authority.issue_device(&request, &id.parse().unwrap(), DEVICE_LIFE, NOW);
    tls::certificates(issued.unwrap().chain_pem.as_bytes())
        .unwrap()
        .remove(0)
}

fn at(ms: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(ms))
}

#[test]
fn an_authority_is_the_same_after_a_restart_and_its_key_is_the_owners() {
    let folder = tempfile::tempdir().unwrap();
    let digest = authority(folder.path()).digest();
    assert_eq!(authority(folder.path()).digest(), digest);
    let mode = fs::metadata(folder.path().join("ca.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_first_start_that_broke_off_is_made_good_and_a_lost_key_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let fleet = authority(folder.path()).fleet();
    fs::remove_file(folder.path().join("ca.pem")).unwrap();
    assert_eq!(authority(folder.path()).fleet(), fleet);
    fs::remove_file(folder.path().join("ca.key")).unwrap();
    let lost = Authority::open(folder.path(), NOW).err().unwrap();
    assert!(matches!(lost, CaError::KeyMissing { .. }), "{lost}");
}

#[test]
fn a_certificate_beside_another_key_is_refused() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&folder, &other] {
        authority(folder.path());
    }
    fs::copy(other.path().join("ca.pem"), folder.path().join("ca.pem")).unwrap();
    assert!(matches!(
        Authority::open(folder.path(), NOW),
        Err(CaError::Unusable { .. })
    ));
}

#[test]
fn a_device_gets_its_name_and_its_key_and_nothing_that_it_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority(folder.path());
    let key = new_key().unwrap();
    let mut wishes = CertificateParams::new(vec!["skerry.example".to_owned()]).unwrap();
    wishes.distinguished_name.push(DnType::CommonName, CONTROL_PLANE);
    wishes.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let request = Request::parse(wishes.serialize_request(&key).unwrap().der()).unwrap();
    let issued = authority.issue_device(&request, &"dev-1".parse().unwrap(), DEVICE_LIFE, NOW);
    let issued = issued.unwrap();
    assert_eq!(issued.not_after_ms, NOW + 30 * DAY_MS);
    let chain = tls::certificates(issued.chain_pem.as_bytes()).unwrap();
    assert_eq!(chain[1], *authority.certificate());
    let certificate = ClientCertificate::read(&chain[0]).unwrap();
    assert_eq!(certificate.identity, ClientIdentity::Device("dev-1".parse().unwrap()));
    assert_eq!(certificate.public_key, hex::encode(key.subject_public_key_info()));
    assert_eq!(certificate.not_after_ms, issued.not_after_ms);
    let (_, parsed) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !parsed.is_ca());
    assert!(parsed.validity().not_before.timestamp() as u64 * 1000 <= NOW - 3_600_000);
}

#[test]
fn a_request_with_another_ones_key_is_refused() {
    let whole = request(&new_key().unwrap());
    assert!(Request::parse(&whole).is_ok());
    // The signature is the last thing in it.
    let mut forged = whole.clone();
    *forged.last_mut().unwrap() ^= 1;
    for bad in [&forged[..], &whole[..whole.len() - 1], b"", b"\x30\x80"] {
        assert!(matches!(Request::parse(bad), Err(CaError::Request(_))));
    }
    let other_curve = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let refused = Request::parse(&request(&other_curve)).unwrap_err().to_string();
    assert!(refused.contains("P-256"), "{refused}");
}

#[test]
fn the_brokers_rules_take_a_living_certificate_and_those_of_renewal_one_that_died_lately() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority(folder.path());
    let certificate = device(&authority, "dev-1");
    let broker = tls::verifier(&authority).unwrap();
    let renewal = tls::RenewalVerifier(Arc::clone(&broker));
    let check =
        |verifier: &dyn ClientCertVerifier, ms: u64| verifier.verify_client_cert(&certificate, &[], at(ms)).is_ok();
    let end = NOW + 30 * DAY_MS;
    for (ms, by_broker, by_renewal) in [
        (NOW, true, true),
        (NOW - DAY_MS / 2, true, true),
        (NOW - 2 * DAY_MS, false, false),
        (end - 1000, true, true),
        (end + 1000, false, true),
        (end + 90 * DAY_MS, false, true),
        (end + 90 * DAY_MS + 1000, false, false),
    ] {
        assert_eq!(
            (check(&*broker, ms), check(&renewal, ms)),
            (by_broker, by_renewal),
            "{ms}"
        );
    }
}

#[test]
fn a_certificate_of_another_fleet_is_refused_expired_or_not() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let certificate = device(&authority(other.path()), "dev-1");
    let renewal = tls::RenewalVerifier(tls::verifier(&authority(folder.path())).unwrap());
    for ms in [NOW, NOW + 31 * DAY_MS] {
        assert!(renewal.verify_client_cert(&certificate, &[], at(ms)).is_err());
    }
}

#[test]
fn a_server_certificate_is_no_client_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let authority = authority(folder.path());
    let server = authority.issue_server(&ServerNames::of_this_machine([]), NOW).unwrap();
    let verifier = tls::verifier(&authority).unwrap();
    assert!(verifier.verify_client_cert(&server.cert[0], &[], at(NOW)).is_err());
    assert_eq!(ClientCertificate::read(&server.cert[0]), None);
    let own = authority.issue_control_plane(NOW).unwrap();
    assert!(verifier.verify_client_cert(&own.cert[0], &[], at(NOW)).is_ok());
    let own = ClientCertificate::read(&own.cert[0]).unwrap();
    assert_eq!(own.identity, ClientIdentity::ControlPlane);
}

proptest! {
    #[test]
    fn what_is_no_request_or_certificate_is_refused_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        prop_assert!(Request::parse(&bytes).is_err());
        prop_assert!(ClientCertificate::read(&bytes).is_none());
    }

    #[test]
    fn no_changed_byte_of_a_request_brings_in_another_key(position in any::<prop::sample::Index>(), flip in 1_u8..) {
        let whole = request(&new_key().unwrap());
        let key = Request::parse(&whole).unwrap().public_key_hex();
        let mut changed = whole;
        *position.get_mut(&mut changed[..]) ^= flip;
        if let Ok(request) = Request::parse(&changed) {
            prop_assert_eq!(request.public_key_hex(), key);
        }
    }
}
