//! Sessions of browsers. In memory: a restart signs everybody out.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use skerry_shared::digest::Digest;

use crate::{
    access::{Credential, Grant},
    app::random_hex,
    config::Config,
};

/// 12 hours: a working day.
pub(super) const SESSION_SECONDS: u64 = 12 * 3600;
/// More than people who operate one fleet. Above it the session that ends first is closed.
const SESSIONS_MAX: usize = 1024;

/// How the session's id travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cookie {
    /// Over TLS only, from and to this host only: `__Host-` makes the browser hold to it (RFC 6265bis §4.1.3.2).
    Secure,
    /// Over plain HTTP, where a browser drops the cookies that are marked as secure.
    Plain,
}

impl Cookie {
    /// The one for how this control plane is reached.
    pub(super) fn of(config: &Config) -> Cookie {
        if config.http_plain {
            Cookie::Plain
        } else {
            Cookie::Secure
        }
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Cookie::Secure => "__Host-skerry_session",
            Cookie::Plain => "skerry_session",
        }
    }

    /// The name of the one that holds a sign-in through a provider to the browser that began it.
    #[cfg(feature = "oidc")]
    pub(super) fn state_name(self) -> &'static str {
        match self {
            Cookie::Secure => "__Host-skerry_oidc",
            Cookie::Plain => "skerry_oidc",
        }
    }

    /// What it says beside what both say.
    pub(super) fn attribute(self) -> &'static str {
        match self {
            Cookie::Secure => "; Secure",
            Cookie::Plain => "",
        }
    }
}

/// A signed-in browser.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// What it signed in with.
    pub(super) credential: Credential,
    /// Must come back with every form.
    pub(super) csrf: String,
    /// UTC milliseconds.
    pub(super) expires_at_ms: u64,
}

/// A request of a signed-in browser.
#[derive(Clone, Debug)]
pub(super) struct Visit {
    /// Must come back with every form.
    pub(super) csrf: String,
    /// When the session ends, in UTC milliseconds.
    pub(super) expires_at_ms: u64,
    /// Who it is, at this moment.
    pub(super) grant: Grant,
}

/// The sessions, by the digest of their ids.
#[derive(Default)]
pub(super) struct Sessions(Mutex<HashMap<Digest, Session>>);

impl Sessions {
    /// Opens a session and returns its id, for the browser only.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(super) fn open(&self, credential: Credential, now_ms: u64) -> anyhow::Result<String> {
        let id = random_hex::<32>()?;
        let session = Session {
            credential,
            csrf: random_hex::<32>()?,
            expires_at_ms: now_ms + SESSION_SECONDS * 1000,
        };
        let mut sessions = self.lock();
        if sessions.len() >= SESSIONS_MAX {
            sessions.retain(|_, session| session.expires_at_ms > now_ms);
        }
        if sessions.len() >= SESSIONS_MAX {
            let oldest = sessions.iter().min_by_key(|(_, session)| session.expires_at_ms);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                sessions.remove(&oldest);
            }
        }
        sessions.insert(Digest::of(id.as_bytes()), session);
        Ok(id)
    }

    /// The session of an id, unless it has expired.
    pub(super) fn get(&self, id: &str, now_ms: u64) -> Option<Session> {
        let sessions = self.lock();
        let session = sessions.get(&Digest::of(id.as_bytes()))?;
        (session.expires_at_ms > now_ms).then(|| session.clone())
    }

    /// Ends a session.
    pub(super) fn close(&self, id: &str) {
        self.lock().remove(&Digest::of(id.as_bytes()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Session>> {
        // Each change is one call on the map: a panic elsewhere cannot leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn token() -> Credential {
        Credential::Token("0123456789abcdef".parse().unwrap())
    }

    #[test]
    fn a_session_ends_after_its_time_or_when_closed() {
        let sessions = Sessions::default();
        let id = sessions.open(token(), 1000).unwrap();
        assert_eq!(sessions.get(&id, 1000).unwrap().credential, token());
        assert!(sessions.get(&id, 1000 + SESSION_SECONDS * 1000).is_none());
        sessions.close(&id);
        assert!(sessions.get(&id, 1000).is_none());
        assert!(sessions.get("", 1000).is_none());
    }

    #[test]
    fn the_number_of_sessions_is_bounded_and_the_oldest_goes_first() {
        let sessions = Sessions::default();
        let first = sessions.open(token(), 0).unwrap();
        let second = sessions.open(token(), 1).unwrap();
        for now_ms in 2..=SESSIONS_MAX as u64 {
            sessions.open(token(), now_ms).unwrap();
        }
        assert_eq!(sessions.lock().len(), SESSIONS_MAX);
        assert!(sessions.get(&first, 2).is_none());
        assert!(sessions.get(&second, 2).is_some());
    }

    #[test]
    fn a_secure_cookie_holds_the_browser_to_this_host_and_to_tls() {
        assert!(Cookie::Secure.name().starts_with("__Host-"));
        assert!(Cookie::Secure.attribute().contains("Secure"));
        assert_eq!(Cookie::Plain.attribute(), "");
    }
}
