//! Where the local API listens and whom it lets in: addresses, the socket, TLS, the token. Read once, at start.
//!
//! Invariant: nobody from another machine gets in without a token.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, UnixListener};
use zeroize::Zeroizing;

use crate::{serving::admission::QUEUE, tls};

/// The flags of the local API.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Local API")]
pub(crate) struct Options {
    /// Where the inference API listens, HTTP and gRPC alike; port 0 is any free one, written to STATE_DIR/inference-address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// Also listen on this unix socket, for the agent's own user and group, who need no token.
    #[arg(long, value_name = "PATH")]
    listen_unix: Option<PathBuf>,
    /// A file with the token that clients send as `Authorization: Bearer …`; needed to listen for other machines.
    #[arg(long, value_name = "FILE", env = "SKERRY_API_TOKEN_FILE")]
    api_token_file: Option<PathBuf>,
    /// A certificate chain in PEM: other machines must speak TLS then. This machine may go on without.
    #[arg(long, value_name = "FILE", requires = "api_key")]
    api_certificate: Option<PathBuf>,
    /// The certificate's private key in PEM.
    #[arg(long, value_name = "FILE", requires = "api_certificate")]
    api_key: Option<PathBuf>,
    /// Requests that may wait for each model; the next one is told to come again (429, RESOURCE_EXHAUSTED).
    #[arg(long, value_name = "REQUESTS", default_value_t = QUEUE)]
    pub(crate) api_queue: usize,
}

/// Shorter ones can be guessed.
const TOKEN_MIN: usize = 16;
/// Longer ones do not fit a header field that is sent with each request.
const TOKEN_MAX: usize = 512;

/// The digest of a token: comparing digests tells nobody how much of a guess was right.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token([u8; 32]);

impl Token {
    fn of(text: &[u8]) -> Token {
        Token(Sha256::digest(text).into())
    }

    /// True if this is what `Authorization` must say.
    pub(crate) fn is(&self, bearer: &[u8]) -> bool {
        Token::of(bearer) == *self
    }
}

/// The open doors.
pub(crate) struct Door {
    pub(crate) tcp: TcpListener,
    pub(crate) unix: Option<UnixListener>,
    pub(crate) tls: Option<Arc<ServerConfig>>,
    pub(crate) token: Option<Token>,
}

impl Options {
    /// Opens the doors.
    ///
    /// # Errors
    /// When an address is taken, a file is unusable, or other machines would get in without a token.
    pub(crate) async fn open(&self) -> anyhow::Result<Door> {
        let token = self.api_token_file.as_deref().map(read_token).transpose()?;
        let ip = self.listen.ip();
        if !ip.is_loopback() && token.is_none() {
            bail!(
                "other machines reach {ip}, and the inference API would answer all of them: give it a token \
                 (--api-token-file FILE), or listen on 127.0.0.1"
            );
        }
        let tls = match (&self.api_certificate, &self.api_key) {
            (Some(certificate), Some(key)) => Some(tls_config(certificate, key)?),
            _ => None,
        };
        if !ip.is_loopback() && tls.is_none() {
            tracing::warn!(
                "the inference API's token travels in the clear: --api-certificate and --api-key would encrypt it"
            );
        }
        let tcp = TcpListener::bind(self.listen).await;
        let tcp = tcp.with_context(|| format!("cannot listen on {} for inference requests", self.listen))?;
        let unix = self.listen_unix.as_deref().map(listen_unix).transpose()?;
        Ok(Door { tcp, unix, tls, token })
    }
}

/// What `skerry-agent status` sends, too.
pub(crate) fn token_text(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let text = fs::read_to_string(path).map(Zeroizing::new);
    let text = text.with_context(|| format!("cannot read the API's token from {}", path.display()))?;
    let token = text.trim();
    if !(TOKEN_MIN..=TOKEN_MAX).contains(&token.len()) || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!(
            "{} holds no token: one line of {TOKEN_MIN} to {TOKEN_MAX} letters, digits and signs, for example from \
             `openssl rand -hex 32`",
            path.display()
        );
    }
    Ok(Zeroizing::new(token.to_owned()))
}

pub(crate) fn read_token(path: &Path) -> anyhow::Result<Token> {
    token_text(path).map(|token| Token::of(token.as_bytes()))
}

fn tls_config(certificate: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.with_context(|| format!("cannot read the API's certificate {}", certificate.display()))?;
    if chain.is_empty() {
        bail!("there is no certificate in {}", certificate.display());
    }
    let secret = PrivateKeyDer::from_pem_file(key);
    let secret = secret.with_context(|| format!("cannot read the API's key {}", key.display()))?;
    let config = ServerConfig::builder_with_provider(tls::crypto())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, secret);
    let mut config = config.context("the API's certificate and key do not fit together")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Listens on a socket that its owner and group may use. One that nobody listens on any more is replaced.
fn listen_unix(path: &Path) -> anyhow::Result<UnixListener> {
    let context = || format!("cannot listen on {} for inference requests", path.display());
    let is_socket = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let is_dead = || UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_socket && is_dead() {
        fs::remove_file(path).with_context(context)?;
    }
    let listener = UnixListener::bind(path).with_context(context)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).with_context(context)?;
    Ok(listener)
}

/// True if the other end of a connection is this machine: it came to the address that it comes from.
pub(crate) fn is_here(peer: IpAddr, local: Option<IpAddr>) -> bool {
    peer.to_canonical().is_loopback() || Some(peer) == local
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    async fn open(arguments: &[&str]) -> Result<Door, String> {
        let line = Line::try_parse_from([&["run"], arguments].concat()).map_err(|error| error.to_string())?;
        line.options.open().await.map_err(|error| format!("{error:#}"))
    }

    fn token_file(content: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        file
    }

    #[track_caller]
    fn refused(opened: Result<Door, String>, word: &str) {
        let error = opened.err().expect("refused");
        assert!(error.contains(word), "`{word}` is missing in: {error}");
    }

    #[tokio::test]
    async fn other_machines_are_let_in_with_a_token_only() {
        refused(open(&["--listen", "0.0.0.0:0"]).await, "--api-token-file");
        refused(open(&["--listen", "[::]:0"]).await, "--api-token-file");
        open(&["--listen", "127.0.0.1:0"]).await.unwrap();
        let file = token_file("0123456789abcdef\n");
        let path = file.path().to_str().unwrap();
        let door = open(&["--listen", "0.0.0.0:0", "--api-token-file", path])
            .await
            .unwrap();
        let token = door.token.unwrap();
        assert!(token.is(b"0123456789abcdef") && !token.is(b"0123456789abcdeF") && !token.is(b""));
    }

    #[tokio::test]
    async fn a_weak_token_and_half_a_certificate_are_mistakes() {
        let file = token_file("short\n");
        let path = file.path().to_str().unwrap();
        refused(
            open(&["--listen", "127.0.0.1:0", "--api-token-file", path]).await,
            "16 to 512",
        );
        refused(open(&["--api-certificate", path]).await, "--api-key");
        refused(
            open(&["--listen", "127.0.0.1:0", "--api-certificate", path, "--api-key", path]).await,
            "certificate",
        );
    }

    #[tokio::test]
    async fn a_socket_is_taken_over_from_the_dead_and_from_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let first = listen_unix(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(listen_unix(&path).is_err(), "somebody listens there");
        drop(first);
        listen_unix(&path).unwrap();
        fs::write(folder.path().join("file"), "mine").unwrap();
        assert!(listen_unix(&folder.path().join("file")).is_err());
        assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"mine");
    }

    #[test]
    fn this_machine_is_known_by_its_own_addresses() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(is_here(ip("127.0.0.1"), Some(ip("192.0.2.1"))));
        assert!(is_here(ip("::ffff:127.0.0.1"), None));
        assert!(is_here(ip("192.0.2.1"), Some(ip("192.0.2.1"))));
        assert!(!is_here(ip("192.0.2.2"), Some(ip("192.0.2.1"))));
    }
}
