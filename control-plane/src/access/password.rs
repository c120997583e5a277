//! Passwords: what is accepted, and how they are kept: argon2id with OWASP's least parameters.
//!
//! Hashing takes 19 MiB and some 30 ms of a core on purpose, so few are hashed at once. Invariant: no password is stored,
//! logged or compared as text, and it is wiped from memory when it has been used.

use std::{sync::Arc, time::Duration};

use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// Memory in KiB, passes, lanes (OWASP password storage, ASVS 5.0 §11.4.2).
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);
/// 16 bytes, as the specification of argon2 recommends.
const SALT_BYTES: usize = 16;
/// ASVS 5.0 §6.2.1 asks for 8 and recommends 15; there is no second factor here.
pub(super) const PASSWORD_MIN: usize = 12;
/// Long sentences fit; whoever sends more wants to keep the hash busy.
pub(super) const PASSWORD_MAX: usize = 256;
/// Two cores and 38 MiB for all that sign in at once.
const AT_ONCE: usize = 2;
/// Whoever waits longer than this is told to come again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a password could not be hashed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HashError {
    #[error("too many passwords are being checked")]
    Busy,
    #[error("no randomness from the system")]
    Random(#[source] getrandom::Error),
    #[error("cannot hash a password")]
    Hash(#[source] argon2::password_hash::Error),
}

/// Hashes passwords, a few at once.
pub(super) struct Hashing(Arc<Semaphore>);

impl Default for Hashing {
    fn default() -> Hashing {
        Hashing(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Hashing {
    /// The PHC string to store.
    pub(super) async fn hash(&self, password: Zeroizing<String>) -> Result<String, HashError> {
        self.run(move || {
            let mut salt = [0; SALT_BYTES];
            getrandom::fill(&mut salt).map_err(HashError::Random)?;
            let hash = hasher().hash_password_with_salt(password.as_bytes(), &salt);
            Ok(hash.map_err(HashError::Hash)?.to_string())
        })
        .await
    }

    /// True if it is the password of `stored`. Without one, as for a name that nobody has, it takes as long and is false.
    pub(super) async fn verify(&self, password: Zeroizing<String>, stored: Option<String>) -> Result<bool, HashError> {
        self.run(move || match stored {
            Some(stored) => Ok(hasher().verify_password(password.as_bytes(), stored.as_str()).is_ok()),
            None => {
                let hash = hasher().hash_password_with_salt(password.as_bytes(), &[0; SALT_BYTES]);
                hash.map_err(HashError::Hash)?;
                Ok(false)
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, HashError> + Send + 'static,
    ) -> Result<T, HashError> {
        let permit = tokio::time::timeout(PATIENCE, Arc::clone(&self.0).acquire_owned()).await;
        let permit = permit.map_err(|_| HashError::Busy)?.map_err(|_| HashError::Busy)?;
        let done = tokio::task::spawn_blocking(move || {
            // The permit stays with the work: whoever asked may have gone, and the memory is still in use.
            let _permit = permit;
            work()
        });
        done.await.unwrap_or(Err(HashError::Busy))
    }
}

fn hasher() -> Argon2<'static> {
    let (memory, passes, lanes) = COST;
    let params = Params::new(memory, passes, lanes, None).expect("the cost is within argon2's limits");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// What is wrong with a new password, if anything.
pub(super) fn fault(user: &str, password: &str) -> Option<&'static str> {
    if password.chars().count() < PASSWORD_MIN {
        Some("a password needs at least 12 characters")
    } else if password.len() > PASSWORD_MAX {
        Some("a password has at most 256 bytes")
    } else if password.to_lowercase().contains(user) && password.len() < user.len() + PASSWORD_MIN {
        Some("a password must be more than the user's name")
    } else if password.chars().all(|c| password.starts_with(c)) {
        Some("a password must not be one character again and again")
    } else {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.to_owned())
    }

    #[tokio::test]
    async fn a_password_is_kept_as_argon2id_with_a_salt_of_its_own() {
        let hashing = Hashing::default();
        let first = hashing.hash(secret("correct horse battery")).await.unwrap();
        let second = hashing.hash(secret("correct horse battery")).await.unwrap();
        assert!(first.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{first}");
        assert_ne!(first, second);
        let verify = async |password: &str, stored| hashing.verify(secret(password), stored).await.unwrap();
        assert!(verify("correct horse battery", Some(first.clone())).await);
        assert!(!verify("correct horse batterz", Some(first)).await);
        assert!(!verify("correct horse battery", Some("not a hash".to_owned())).await);
        assert!(!verify("correct horse battery", None).await);
    }

    #[test]
    fn short_long_and_obvious_passwords_are_refused() {
        for bad in [
            "short",
            "alice-alice",
            "alice-secret1",
            "aaaaaaaaaaaaaaaa",
            &"x".repeat(300),
        ] {
            assert!(fault("alice", bad).is_some(), "{bad}");
        }
        for good in ["correct horse battery", "zwölf Zeichen"] {
            assert_eq!(fault("alice", good), None, "{good}");
        }
    }
}
