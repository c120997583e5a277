//! The two questions that the broker asks its owner, and the words they use.
//!
//! Not an ACL language: the answer is code.

use std::{fmt, future::Future, net::SocketAddr, pin::Pin, time::SystemTime};

/// The owner's answers: who is it, and may it use this topic?
pub trait Hooks: Send + Sync + 'static {
    /// Names the client that sent this CONNECT, or refuses it.
    ///
    /// The client id is as unproven as the rest: unless two clients may share one, accept only an id that belongs to
    /// the credentials, since a client takes over the connection and the session of its client id. The broker gives
    /// up after 10 s. An answer that needs no waiting is `Box::pin(std::future::ready(…))`.
    fn authenticate<'a>(&'a self, connect: Connect<'a>) -> Authentication<'a>;

    /// Says whether `identity` may publish to, or subscribe, `topic`. Asked for every message, so it must not block.
    ///
    /// For [`Access::Subscribe`] `topic` is the filter as the client wrote it: it may hold `+` and `#`, and a prefix
    /// test alone would let `own/#` or worse through. A shared subscription `$share/group/filter` needs a yes for
    /// `filter` and for the whole, so whoever lists exact topics refuses it without knowing of it. Last wills are
    /// asked as [`Access::Publish`], when the client connects and when the will is sent; the filters of a stored
    /// session are asked again when its client returns.
    fn authorize(&self, identity: &Identity, access: Access, topic: &str) -> bool;
}

/// The answer of [`Hooks::authenticate`], perhaps later.
pub type Authentication<'a> = Pin<Box<dyn Future<Output = Result<Admission, Refusal>> + Send + 'a>>;

/// A client that is let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    /// Who it is.
    pub identity: Identity,
    /// When what it has shown ends, and its connection with it; `None` is never.
    pub until: Option<SystemTime>,
}

impl From<Identity> for Admission {
    fn from(identity: Identity) -> Self {
        Self { identity, until: None }
    }
}

/// What a client says about itself in CONNECT. Nothing of it is verified but the certificate.
#[derive(Clone, Copy)]
pub struct Connect<'a> {
    /// The client id; never empty (the broker assigns one) and never with `/` or `\`.
    pub client_id: &'a str,
    /// The user name, if one was sent.
    pub user_name: Option<&'a str>,
    /// The password, if one was sent. MQTT allows any bytes.
    pub password: Option<&'a [u8]>,
    /// The client's certificate (X.509, DER), which TLS has verified; always there with TLS, never without.
    pub certificate: Option<&'a [u8]>,
    /// Where the connection comes from.
    pub peer: SocketAddr,
}

impl fmt::Debug for Connect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("client_id", &self.client_id)
            .field("user_name", &self.user_name)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Who a connection is, in the owner's words. Not a secret: MQTT 5 subscribers are told who published.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity(String);

impl Identity {
    /// Makes an identity from the owner's name for it.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a CONNECT is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The client is unknown, has the wrong password or may not use this client id; it is not told which.
    NotAuthorized,
    /// The question could not be answered now; the client may try again.
    Unavailable,
}

/// What a client wants to do with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Send a message to a topic, now or as a last will.
    Publish,
    /// Receive the messages of a topic filter.
    Subscribe,
}
