//! Signing in with a password, and everything else that hashes one.

use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

use super::{
    AccessError, Actor, Grant, Role, User, UserName,
    attempts::{Attempts, Network},
    granted,
    limits::{Load, RequestLimits},
    password::{self, Hashing},
    store::{self, Holder},
    users::{USERS_MAX, require_user},
};
use crate::{
    audit::{self, By, Fact},
    db::{Db, DbError},
};

/// What checking credentials needs beside the database.
pub struct Access {
    hashing: Hashing,
    attempts: Attempts,
    /// What is asked of the API and the console.
    pub(crate) load: Load,
    /// Sign-ins that had to wait, since the newest entry of the audit log about one: an entry for each would let anybody fill
    /// the log.
    turned_away: AtomicU64,
}

/// How a sign-in ended that was let in to be looked at.
#[derive(Debug)]
pub enum SignIn {
    /// The password is right.
    Granted(Grant),
    /// It is not, or there is no such user.
    Wrong,
    /// Too many failures of this account or from this address: it was not looked at.
    Wait {
        /// How long, in milliseconds.
        ms: u64,
    },
}

impl Access {
    /// Makes one with these limits.
    pub fn new(limits: &RequestLimits) -> Access {
        Access {
            hashing: Hashing::default(),
            attempts: Attempts::default(),
            load: Load::new(limits),
            turned_away: AtomicU64::new(0),
        }
    }

    /// Writes down that somebody has signed in.
    ///
    /// # Errors
    /// The database's.
    pub async fn record_sign_in(&self, db: &Db, actor: &Actor, from: Network, now_ms: u64) -> Result<(), DbError> {
        let fact = Fact::new("sign-in", format!("user/{}", actor.person)).with("from", from);
        let (by, fact) = (actor.by(now_ms), self.with_turned_away(fact));
        db.write(move |conn| audit::append(conn, &by, fact)).await
    }

    /// Writes down that somebody was refused who wanted to be this account.
    ///
    /// # Errors
    /// The database's.
    pub(crate) async fn record_refused(
        &self,
        db: &Db,
        account: &str,
        from: Network,
        now_ms: u64,
    ) -> Result<(), DbError> {
        let fact = Fact::new("sign-in.refused", format!("user/{account}")).with("from", from);
        let fact = self.with_turned_away(fact);
        db.write(move |conn| audit::append(conn, &By::new("nobody", now_ms), fact))
            .await
    }

    /// Adds how many were turned away meanwhile, if any.
    fn with_turned_away(&self, fact: Fact) -> Fact {
        match self.turned_away.swap(0, Ordering::Relaxed) {
            0 => fact,
            count => fact.with("turned_away_before", count),
        }
    }

    /// Signs a user in. Failures make the account and the address wait longer and longer, and stand in the audit log.
    ///
    /// # Errors
    /// [`AccessError::Busy`], or the database's.
    pub async fn sign_in(
        &self,
        db: &Db,
        (name, password): (&str, Zeroizing<String>),
        from: Network,
        now_ms: u64,
    ) -> Result<SignIn, AccessError> {
        // A name that is none gets no memory of its own: anybody can send as many as they like.
        let account = name.parse::<UserName>().is_ok().then_some(name);
        if let Err(ms) = self.attempts.begin(account, from, now_ms) {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
            return Ok(SignIn::Wait { ms });
        }
        if let Some(grant) = self.password_grant(db, name, password, now_ms).await? {
            self.attempts.succeeded(name, from);
            return Ok(SignIn::Granted(grant));
        }
        self.record_refused(db, account.unwrap_or("?"), from, now_ms).await?;
        Ok(SignIn::Wrong)
    }

    /// Notes that somebody has signed in with a token that is none.
    ///
    /// # Errors
    /// How many milliseconds the address should wait. It is no reason to refuse a right token: none is found by trying.
    pub fn wrong_token(&self, from: Network, now_ms: u64) -> Result<(), u64> {
        let begun = self.attempts.begin(None, from, now_ms);
        if begun.is_err() {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
        }
        begun
    }

    /// What a name and a password give, if they belong together. It takes as long for a name that nobody has.
    pub(super) async fn password_grant(
        &self,
        db: &Db,
        name: &str,
        password: Zeroizing<String>,
        now_ms: u64,
    ) -> Result<Option<Grant>, AccessError> {
        let found = match name.parse::<UserName>() {
            Ok(name) => db.read(move |conn| store::user(conn, &name)).await?,
            Err(_) => None,
        };
        if password.len() > password::PASSWORD_MAX {
            return Ok(None);
        }
        let stored = found.as_ref().and_then(|found| found.password.clone());
        let right = self.hashing.verify(password, stored).await?;
        Ok(found
            .filter(|_| right)
            .and_then(|found| granted(Holder::User(found), now_ms)))
    }

    /// Makes a user; without a password it signs in by tokens only.
    ///
    /// # Errors
    /// [`AccessError`]; nothing has changed then.
    pub async fn create_user(
        &self,
        db: &Db,
        (name, role): (UserName, Role),
        password: Option<Zeroizing<String>>,
        by: By,
    ) -> Result<User, AccessError> {
        let password = match password {
            Some(password) => Some(self.checked_hash(&name, password).await?),
            None => None,
        };
        db.write(move |conn| {
            if store::user(conn, &name)?.is_some() {
                return Err(AccessError::Exists(name));
            }
            if store::count_users(conn)? >= USERS_MAX {
                return Err(AccessError::TooMany(USERS_MAX));
            }
            let user = User {
                name,
                role,
                has_password: password.is_some(),
                disabled: false,
                created_at_ms: by.at_ms,
            };
            store::insert_user(conn, &user, password.as_deref())?;
            let fact = Fact::new("user.create", format!("user/{}", user.name)).with("role", user.role);
            audit::append(conn, &by, fact)?;
            Ok(user)
        })
        .await
    }

    /// Sets a user's password and ends all its sessions.
    ///
    /// # Errors
    /// [`AccessError`]; nothing has changed then.
    pub async fn set_password(
        &self,
        db: &Db,
        name: UserName,
        password: Zeroizing<String>,
        by: By,
    ) -> Result<User, AccessError> {
        let hash = self.checked_hash(&name, password).await?;
        db.write(move |conn| {
            require_user(conn, &name)?;
            store::set_password(conn, &name, &hash)?;
            audit::append(conn, &by, Fact::new("user.password", format!("user/{name}")))?;
            require_user(conn, &name)
        })
        .await
    }

    async fn checked_hash(&self, name: &UserName, password: Zeroizing<String>) -> Result<String, AccessError> {
        match password::fault(name.as_str(), &password) {
            Some(fault) => Err(AccessError::Password(fault)),
            None => Ok(self.hashing.hash(password).await?),
        }
    }
}
