//! The look at a control plane's certificates before anything is trusted: how a device that enrols and a command line that knows a
//! digest find the authority.
//!
//! Beside it stand the few bytes that the ports of both sides say or look for before TLS has begun.
//!
//! It judges nothing: whoever asks compares digests. Blocking, for both sides. Invariant: nothing is said to the server but the
//! greeting; the handshake is broken off.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// What a device says in its TLS greeting (ALPN), so that the control plane answers with the certificate of the fleet's authority
/// and asks for the device's.
pub const DEVICE_PROTOCOL: &[u8] = b"skerry-device/1";

/// The first byte of a TLS greeting.
pub const TLS_HANDSHAKE: u8 = 0x16;
/// What a port for TLS answers whoever begins otherwise.
pub const NOT_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 66\r\n\r\n\
    This port speaks HTTPS: use https:// in the address, not http://.\n";

/// Why a server showed no certificates.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The host is neither a name nor an address.
    #[error("`{0}` is no host")]
    Host(String),
    /// There is no connection.
    #[error("cannot connect to {host}:{port}")]
    Connect {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The other side speaks something else, or nothing.
    #[error("it does not speak TLS")]
    Speak(#[source] io::Error),
    /// The handshake ended without certificates.
    #[error("it shows no certificate")]
    Nothing,
    /// TLS cannot be set up on this side.
    #[error("cannot set up TLS")]
    SetUp(#[from] rustls::Error),
}

/// The certificates that a server shows to a device, its own first. Each step may take `timeout`.
///
/// # Errors
/// [`LookError`].
pub fn shown_chain(host: &str, port: u16, timeout: Duration) -> Result<Vec<CertificateDer<'static>>, LookError> {
    let seen = Arc::new(Look::default());
    let mut config = ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![DEVICE_PROTOCOL.to_vec()];
    let name = ServerName::try_from(host.to_owned()).map_err(|_| LookError::Host(host.to_owned()))?;
    let mut connection = ClientConnection::new(Arc::new(config), name)?;
    let mut stream = reach(host, port, timeout).map_err(|source| LookError::Connect {
        host: host.to_owned(),
        port,
        source,
    })?;
    // It always fails: the certificates are refused once they have been seen.
    let broken_off = connection.complete_io(&mut stream);
    let chain = seen.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (chain, broken_off) {
        (Some(chain), _) => Ok(chain),
        (None, Err(error)) => Err(LookError::Speak(error)),
        (None, Ok(_)) => Err(LookError::Nothing),
    }
}

/// A connection to the first address of a host that answers in time.
fn reach(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))?;
                return Ok(stream);
            }
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn crypto() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        io::Write,
        net::{SocketAddr, TcpListener},
        thread::JoinHandle,
    };

    use rustls::{ServerConfig, ServerConnection, pki_types::PrivateKeyDer};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A server for one connection, and what it was asked for.
    fn server<T: Send + 'static>(serve: impl FnOnce(TcpStream) -> T + Send + 'static) -> (SocketAddr, JoinHandle<T>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (address, std::thread::spawn(move || serve(listener.accept().unwrap().0)))
    }

    #[test]
    fn the_whole_chain_is_seen_by_whoever_greets_as_a_device() {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["plane".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let other = rcgen::CertificateParams::default()
            .self_signed(&key)
            .unwrap()
            .der()
            .clone();
        let chain = vec![certificate, other];
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.clone(), PrivateKeyDer::from(key))
            .unwrap();
        config.alpn_protocols = vec![DEVICE_PROTOCOL.to_vec()];
        let (address, asked) = server(move |mut stream| {
            let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
            // The client breaks it off.
            assert!(connection.complete_io(&mut stream).is_err());
            connection.alpn_protocol().map(<[u8]>::to_vec)
        });
        let seen = shown_chain("127.0.0.1", address.port(), LIMIT).unwrap();
        assert_eq!(seen, chain);
        assert_eq!(asked.join().unwrap().as_deref(), Some(DEVICE_PROTOCOL));
    }

    #[test]
    fn what_does_not_speak_tls_and_what_is_not_there_are_told_apart() {
        let (address, _) = server(|mut stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap());
        let error = shown_chain("127.0.0.1", address.port(), LIMIT).unwrap_err();
        assert!(matches!(error, LookError::Speak(_)), "{error}");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = shown_chain("127.0.0.1", port, LIMIT).unwrap_err();
        assert!(matches!(error, LookError::Connect { .. }), "{error}");
        let error = shown_chain("a b", 1, LIMIT).unwrap_err();
        assert!(matches!(error, LookError::Host(_)), "{error}");
    }
}
