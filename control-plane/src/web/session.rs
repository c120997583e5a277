//! Sessions of browsers, and the limit on wrong tokens. In memory: a restart signs everybody out.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use skerry_shared::digest::Digest;

use crate::{access::Credential, app::random_hex};

/// 12 hours: a working day.
pub(super) const SESSION_SECONDS: u64 = 12 * 3600;
/// More than people who operate one fleet. Above it the session that ends first is closed.
const SESSIONS_MAX: usize = 1024;
/// A person mistypes less often; whoever tries tokens by machine is told to stop.
const FAILURES_PER_MINUTE: u32 = 10;

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

/// Counts wrong tokens, of all browsers together.
#[derive(Default)]
pub(super) struct Attempts(Mutex<Window>);

#[derive(Default)]
struct Window {
    minute: u64,
    failures: u32,
}

impl Attempts {
    /// True while a wrong token is answered like a person's mistake.
    pub(super) fn may_try(&self, now_ms: u64) -> bool {
        let window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        window.minute != now_ms / 60_000 || window.failures < FAILURES_PER_MINUTE
    }

    /// Notes a wrong token.
    pub(super) fn failed(&self, now_ms: u64) {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let minute = now_ms / 60_000;
        if window.minute != minute {
            *window = Window { minute, failures: 0 };
        }
        window.failures = window.failures.saturating_add(1);
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
    fn who_sends_many_wrong_tokens_is_told_to_stop_for_the_rest_of_the_minute() {
        let attempts = Attempts::default();
        for _ in 0..FAILURES_PER_MINUTE {
            assert!(attempts.may_try(60_000));
            attempts.failed(60_000);
        }
        assert!(!attempts.may_try(119_999));
        assert!(attempts.may_try(120_000));
    }
}
