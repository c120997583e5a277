//! TLS: who gets as far as CONNECT, and what the hook sees of it.

use crate::{client, client::Client, config, soon};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rumqttc::{ConnectReturnCode, ConnectionError, TlsConfiguration, Transport};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use skerry_broker::{Access, Authentication, Broker, BrokerConfig, Connect, Hooks, Identity, Limits, Refusal};
use std::{future::ready, sync::Arc, time::Duration};
use tokio::{io::AsyncReadExt, net::TcpStream};

/// An authority, and what it has signed.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.der().clone(), PrivateKeyDer::from(key))
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }

    fn server(&self) -> Arc<ServerConfig> {
        let (certificate, key) = self.issue("127.0.0.1");
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots().into(), provider.clone());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Arc::new(config)
    }

    /// How a client connects that trusts this authority; with a certificate of `own`, or without one.
    fn client(&self, own: Option<&Authority>) -> (Transport, Option<CertificateDer<'static>>) {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots());
        let (config, shown) = match own.map(|own| own.issue("client")) {
            Some((certificate, key)) => {
                let shown = certificate.clone();
                (
                    config.with_client_auth_cert(vec![certificate], key).unwrap(),
                    Some(shown),
                )
            }
            None => (config.with_no_client_auth(), None),
        };
        (Transport::Tls(TlsConfiguration::Rustls(Arc::new(config))), shown)
    }
}

/// Lets in whoever shows this certificate.
struct Only(CertificateDer<'static>);

impl Hooks for Only {
    fn authenticate<'a>(&'a self, connect: Connect<'a>) -> Authentication<'a> {
        Box::pin(ready(match connect.certificate {
            Some(shown) if shown == self.0.as_ref() => Ok(Identity::new(connect.client_id).into()),
            _ => Err(Refusal::NotAuthorized),
        }))
    }

    fn authorize(&self, _: &Identity, _: Access, _: &str) -> bool {
        true
    }
}

async fn start(authority: &Authority, admitted: CertificateDer<'static>, limits: Limits) -> Broker {
    let config = BrokerConfig {
        tls: Some(authority.server()),
        ..config(limits)
    };
    Broker::start(config, Arc::new(Only(admitted))).await.unwrap()
}

async fn try_connect(broker: &Broker, transport: Transport) -> Result<Client, ConnectionError> {
    let mut options = client::options(broker, "a");
    options.set_transport(transport);
    Client::connect(options).await
}

#[tokio::test]
async fn the_hook_sees_the_certificate_that_was_verified() {
    let authority = Authority::new();
    let (first, shown) = authority.client(Some(&authority));
    let (second, _) = authority.client(Some(&authority));
    let broker = start(&authority, shown.unwrap(), Limits::default()).await;
    let mut client = try_connect(&broker, first).await.unwrap();
    assert!(client.subscribe("d/a/desired").await);
    match try_connect(&broker, second).await.err() {
        Some(ConnectionError::ConnectionRefused(code)) => assert_eq!(code, ConnectReturnCode::NotAuthorized),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nobody_without_a_certificate_of_the_authority_gets_as_far_as_connect() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (own, shown) = authority.client(Some(&authority));
    let broker = start(&authority, shown.unwrap(), Limits::default()).await;
    let refused = |outcome: Result<Client, ConnectionError>| match outcome {
        Ok(_) => panic!("the client was let in"),
        Err(ConnectionError::ConnectionRefused(code)) => panic!("CONNECT was read, and answered by {code:?}"),
        Err(_) => {}
    };
    refused(try_connect(&broker, authority.client(None).0).await);
    refused(try_connect(&broker, authority.client(Some(&other)).0).await);
    refused(try_connect(&broker, Transport::Tcp).await);
    assert!(try_connect(&broker, own).await.is_ok());
}

#[tokio::test]
async fn who_does_not_shake_hands_is_closed_by_time_or_by_shutdown() {
    let authority = Authority::new();
    let nobody = authority.issue("nobody").0;
    let limits = |handshake_timeout| Limits {
        handshake_timeout,
        shutdown_deadline: Duration::from_secs(3600),
        ..Limits::default()
    };
    let broker = start(&authority, nobody.clone(), limits(Duration::from_millis(100))).await;
    let mut silent = TcpStream::connect(broker.local_addr()).await.unwrap();
    assert_eq!(soon(silent.read(&mut [0; 1])).await.unwrap_or(0), 0);

    let broker = start(&authority, nobody, limits(Duration::from_secs(3600))).await;
    let mut silent = TcpStream::connect(broker.local_addr()).await.unwrap();
    // Both limits are hours: this ends only if the handshake is given up.
    soon(broker.shutdown()).await;
    assert_eq!(soon(silent.read(&mut [0; 1])).await.unwrap_or(0), 0);
}
