//! Who may do what: users, API tokens, and the role behind each request.
//!
//! Not the edges: `api` and `web` ask for a [`Grant`] and hold routes to [`roles`]. Invariants: a request reaches a handler that
//! changes something only with an [`Actor`]; a grant is looked up for every request, so it ends with its token, its user or its
//! role; there is always a way in for an admin.

mod attempts;
pub mod limits;
mod name;
mod password;
pub mod roles;
mod store;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod token;

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::{
    audit::{self, By, Fact},
    db::{Db, DbError},
};
use attempts::Attempts;
pub use attempts::Network;
use limits::{Load, RequestLimits};
pub use name::{InvalidName, UserName};
use password::{HashError, Hashing};
use store::{Holder, StoredToken, StoredUser};
use token::{Fresh, Presented};
pub use token::{InvalidTokenId, TokenId};

/// More people than operate one fleet; it bounds the lists.
const USERS_MAX: u64 = 1000;
/// Some for each user, and one for each program.
const TOKENS_MAX: u64 = 5000;
/// How exactly the last use of a token is known: a write for each request would be one too many.
const LAST_USE_EVERY_MS: u64 = 60_000;
/// A year and a day: longer tokens are forgotten, and found by somebody else.
const TOKEN_TTL_MAX_MS: u64 = 366 * 86_400_000;

/// What somebody may do. Each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks.
    Viewer,
    /// Runs the fleet: devices, rollouts, pause and abort.
    Operator,
    /// Registers, uploads and publishes.
    Publisher,
    /// Manages users and tokens.
    Admin,
}

impl Role {
    /// All roles, from the least to the most.
    pub const ALL: [Role; 4] = [Role::Viewer, Role::Operator, Role::Publisher, Role::Admin];

    /// Its name as the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Publisher => "publisher",
            Role::Admin => "admin",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no role has this name: viewer, operator, publisher or admin")]
pub struct InvalidRole;

impl std::str::FromStr for Role {
    type Err = InvalidRole;
    fn from_str(text: &str) -> Result<Self, InvalidRole> {
        Role::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or(InvalidRole)
    }
}

/// Who a request comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// How it stands in the audit log: `alice`, `alice/ci` for her token `ci`, `alice:ci` for one that stands alone and that
    /// she has made, `token:ci` for one that comes from the first token. [`person_of`] reads it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The user that it acts for; none for a token that stands alone.
    pub user: Option<UserName>,
    /// Who answers for it, the same for all that one person signs in with: the user, or whoever made a token that stands
    /// alone. Four eyes are two of these.
    pub person: String,
}

impl Actor {
    /// Whoever changes something now, for the audit log.
    pub fn by(&self, at_ms: u64) -> By {
        By::new(self.name.clone(), at_ms)
    }
}

/// The person behind an actor's name as the audit log, a rollout or a model version keeps it.
pub fn person_of(actor: &str) -> &str {
    actor.split(['/', ':']).next().unwrap_or_default()
}

/// The person behind the first token, and all that stand alone and were made with it. No user can have this name.
const FIRST_PERSON: &str = "token";

/// What a browser or program has signed in with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Credential {
    /// An API token.
    Token(TokenId),
    /// A password, or the word of an identity provider.
    SignIn {
        /// The user.
        user: UserName,
        /// The user's epoch at the sign-in: when it has grown, the sign-in is over.
        epoch: u64,
    },
}

/// What a credential gives at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who.
    pub actor: Actor,
    /// By what.
    pub credential: Credential,
    /// When it ends by itself, in UTC milliseconds.
    pub ends_at_ms: Option<u64>,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct User {
    /// Its name.
    #[schema(value_type = String)]
    pub name: UserName,
    /// What it may do.
    pub role: Role,
    /// True if it can sign in with a password.
    pub has_password: bool,
    /// True while it is shut out, with all its tokens.
    pub disabled: bool,
    /// UTC milliseconds.
    pub created_at_ms: u64,
}

/// An API token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Token {
    /// Its public part.
    #[serde(serialize_with = "as_text")]
    #[schema(value_type = String)]
    pub id: TokenId,
    /// What it is for.
    pub name: String,
    /// The user that it acts for; without one it stands alone.
    #[schema(value_type = Option<String>)]
    pub owner: Option<UserName>,
    /// Who answers for it: the owner, or whoever made it.
    pub person: String,
    /// What it may do; never more than its owner at this moment.
    pub role: Role,
    /// UTC milliseconds.
    pub created_at_ms: u64,
    /// UTC milliseconds; without one it ends when it is revoked.
    pub expires_at_ms: Option<u64>,
    /// UTC milliseconds, to the minute.
    pub last_used_at_ms: Option<u64>,
}

fn as_text<S: Serializer>(id: &TokenId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(id.as_str())
}

/// A token to make.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// What it is for.
    pub name: String,
    /// Its role; without one that of whoever it acts for.
    pub role: Option<Role>,
    /// Whom it acts for.
    pub owner: Owner,
    /// How long it can be used, in milliseconds.
    pub ttl_ms: Option<u64>,
}

/// Whom a new token acts for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Whoever makes it: for a token that stands alone the new one does too.
    Maker,
    /// This user.
    User(UserName),
    /// Nobody: it stands alone.
    Nobody,
}

/// A token with its secret.
pub struct MadeToken {
    /// The token.
    pub token: Token,
    /// The secret, to be shown once.
    pub text: Zeroizing<String>,
}

/// Why a call about users and tokens failed.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// There is no such user.
    #[error("there is no user `{0}`")]
    NoUser(UserName),
    /// There is no such token.
    #[error("there is no token {0}")]
    NoToken(TokenId),
    /// The name is taken.
    #[error("there is a user `{0}` already")]
    Exists(UserName),
    /// A name that is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A password that is refused.
    #[error("{0}")]
    Password(&'static str),
    /// More than the owner, or whoever asks, may do.
    #[error("a token of role {asked} is more than {allowed}, the role behind it")]
    RoleTooHigh {
        /// What was asked for.
        asked: Role,
        /// What is possible.
        allowed: Role,
    },
    /// Only an admin may do this for others.
    #[error("only an admin may change what belongs to others")]
    NotYours,
    /// Nobody could manage users and tokens afterwards.
    #[error("this is the last way in for an admin; make another admin or token first")]
    LastAdmin,
    /// A token's life outside its limits.
    #[error("a token lives for 1 second to 366 days")]
    Life,
    /// There are too many.
    #[error("there are {0} already, and no more are kept")]
    TooMany(u64),
    /// Too many passwords are being hashed.
    #[error("too many passwords are being checked; try again in a moment")]
    Busy,
    /// A password cannot be hashed or a secret made.
    #[error("cannot make a secret")]
    Secret(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<HashError> for AccessError {
    fn from(error: HashError) -> AccessError {
        match error {
            HashError::Busy => AccessError::Busy,
            other => AccessError::Secret(Box::new(other)),
        }
    }
}

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

/// Makes the first token if there is neither a token nor a user.
///
/// # Errors
/// [`AccessError`]; nothing is stored then.
pub async fn ensure_first_token(db: &Db, now_ms: u64) -> Result<Option<Zeroizing<String>>, AccessError> {
    let fresh = Fresh::make().map_err(|error| AccessError::Secret(Box::new(error)))?;
    db.write(move |conn| {
        if store::count_tokens(conn)? > 0 || store::count_users(conn)? > 0 {
            return Ok(None);
        }
        let token = Token {
            id: fresh.id,
            person: FIRST_PERSON.to_owned(),
            name: "first".to_owned(),
            owner: None,
            role: Role::Admin,
            created_at_ms: now_ms,
            expires_at_ms: None,
            last_used_at_ms: None,
        };
        store::insert_token(conn, &token, fresh.hash.as_bytes())?;
        audit::append(conn, &By::control_plane(now_ms), token_fact("token.create", &token))?;
        Ok(Some(fresh.text))
    })
    .await
}

fn token_fact(action: &'static str, token: &Token) -> Fact {
    let fact = Fact::new(action, format!("token/{}", token.id))
        .with("name", &token.name)
        .with("role", token.role)
        .with("person", &token.person);
    match &token.owner {
        Some(owner) => fact.with("owner", owner),
        None => fact,
    }
}

/// What an API token gives, if it is one. Notes its use, to the minute.
///
/// # Errors
/// The database's.
pub async fn token_grant(db: &Db, text: &str, now_ms: u64) -> Result<Option<Grant>, DbError> {
    let Some(presented) = Presented::parse(text) else {
        return Ok(None);
    };
    let found = db
        .read(move |conn| {
            let stored = store::token(conn, &presented.id)?;
            Ok::<_, DbError>(stored.filter(|stored| presented.is(&stored.hash)))
        })
        .await?;
    let Some(stored) = found else { return Ok(None) };
    let used = stored.token.last_used_at_ms;
    let grant = granted(Holder::Token(stored), now_ms);
    if let Some(grant) = &grant
        && let Credential::Token(id) = &grant.credential
        && used.is_none_or(|at| now_ms.saturating_sub(at) >= LAST_USE_EVERY_MS)
    {
        let id = id.clone();
        db.write(move |conn| store::set_last_used(conn, &id, now_ms)).await?;
    }
    Ok(grant)
}

/// What a credential gives now; `None` when it is over.
///
/// # Errors
/// The database's.
pub async fn grant(db: &Db, credential: &Credential, now_ms: u64) -> Result<Option<Grant>, DbError> {
    let credential = credential.clone();
    let holder = db.read(move |conn| store::holder(conn, &credential)).await?;
    Ok(holder.and_then(|holder| granted(holder, now_ms)))
}

/// What whoever holds a credential may do. Pure.
fn granted(holder: Holder, now_ms: u64) -> Option<Grant> {
    match holder {
        Holder::User(StoredUser { user, epoch, .. }) => (!user.disabled).then(|| Grant {
            actor: Actor {
                name: user.name.to_string(),
                role: user.role,
                person: user.name.to_string(),
                user: Some(user.name.clone()),
            },
            credential: Credential::SignIn { user: user.name, epoch },
            ends_at_ms: None,
        }),
        Holder::Token(StoredToken { token, owner, .. }) => {
            let over = token.expires_at_ms.is_some_and(|at| at <= now_ms);
            let shut_out = owner.is_some_and(|(_, disabled)| disabled);
            let role = owner.map_or(token.role, |(role, _)| role.min(token.role));
            (!over && !shut_out).then(|| Grant {
                actor: Actor {
                    name: match &token.owner {
                        Some(owner) => format!("{owner}/{}", token.name),
                        None => format!("{}:{}", token.person, token.name),
                    },
                    role,
                    user: token.owner,
                    person: token.person,
                },
                credential: Credential::Token(token.id),
                ends_at_ms: token.expires_at_ms,
            })
        }
    }
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
        let fact = Fact::new("sign-in.refused", format!("user/{}", account.unwrap_or("?"))).with("from", from);
        let fact = self.with_turned_away(fact);
        db.write(move |conn| audit::append(conn, &By::new("nobody", now_ms), fact))
            .await?;
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
    async fn password_grant(
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

/// What to change of a user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserChange {
    /// A new role; it counts from the next request on.
    pub role: Option<Role>,
    /// True shuts the user out, with its sessions and tokens; false lets it in again, without the sessions.
    pub disabled: Option<bool>,
}

/// Changes a user.
///
/// # Errors
/// [`AccessError::NoUser`], [`AccessError::LastAdmin`], or the database's; nothing has changed then.
pub async fn change_user(db: &Db, name: UserName, change: UserChange, by: By) -> Result<User, AccessError> {
    db.write(move |conn| {
        let before = require_user(conn, &name)?;
        if let Some(role) = change.role {
            store::set_role(conn, &name, role)?;
        }
        if let Some(disabled) = change.disabled
            && disabled != before.disabled
        {
            store::set_disabled(conn, &name, disabled)?;
        }
        require_admin(conn, by.at_ms)?;
        let after = require_user(conn, &name)?;
        let fact = Fact::new("user.change", format!("user/{name}"))
            .with("role", after.role)
            .with("role_before", before.role)
            .with("disabled", after.disabled)
            .with("disabled_before", before.disabled);
        audit::append(conn, &by, fact)?;
        Ok(after)
    })
    .await
}

/// All users.
///
/// # Errors
/// The database's.
pub async fn users(db: &Db) -> Result<Vec<User>, DbError> {
    let stored = db.read(store::users).await?;
    Ok(stored.into_iter().map(|stored| stored.user).collect())
}

/// One user.
///
/// # Errors
/// [`AccessError::NoUser`], or the database's.
pub async fn user(db: &Db, name: UserName) -> Result<User, AccessError> {
    db.read(move |conn| require_user(conn, &name)).await
}

fn require_user(conn: &rusqlite::Connection, name: &UserName) -> Result<User, AccessError> {
    let stored = store::user(conn, name)?;
    Ok(stored.ok_or_else(|| AccessError::NoUser(name.clone()))?.user)
}

fn require_admin(conn: &rusqlite::Connection, now_ms: u64) -> Result<(), AccessError> {
    if store::ways_in_for_admins(conn, now_ms)? == 0 {
        return Err(AccessError::LastAdmin);
    }
    Ok(())
}

/// Makes a token. Whoever is no admin makes its own only, and no token outlives the one that it was made with: a stolen one
/// cannot renew itself.
///
/// # Errors
/// [`AccessError`]; nothing is stored then.
pub async fn create_token(db: &Db, by: &Grant, new: NewToken, now_ms: u64) -> Result<MadeToken, AccessError> {
    let maker = by.actor.clone();
    name::check_token_name(&new.name)?;
    if new.ttl_ms.is_some_and(|ttl| !(1000..=TOKEN_TTL_MAX_MS).contains(&ttl)) {
        return Err(AccessError::Life);
    }
    let owner = match new.owner {
        Owner::Maker => maker.user.clone(),
        Owner::User(user) => Some(user),
        Owner::Nobody => None,
    };
    if owner != maker.user && maker.role < Role::Admin {
        return Err(AccessError::NotYours);
    }
    let log = maker.by(now_ms);
    let asked_end_at_ms = new.ttl_ms.map(|ttl| now_ms + ttl);
    let expires_at_ms = asked_end_at_ms.into_iter().chain(by.ends_at_ms).min();
    let fresh = Fresh::make().map_err(|error| AccessError::Secret(Box::new(error)))?;
    db.write(move |conn| {
        let allowed = match &owner {
            Some(owner) => require_user(conn, owner)?.role.min(maker.role),
            None => maker.role,
        };
        let role = new.role.unwrap_or(allowed);
        if role > allowed {
            return Err(AccessError::RoleTooHigh { asked: role, allowed });
        }
        store::delete_expired(conn, now_ms)?;
        if store::count_tokens(conn)? >= TOKENS_MAX {
            return Err(AccessError::TooMany(TOKENS_MAX));
        }
        let token = Token {
            id: fresh.id,
            name: new.name,
            person: owner.as_ref().map_or(maker.person, UserName::to_string),
            owner,
            role,
            created_at_ms: now_ms,
            expires_at_ms,
            last_used_at_ms: None,
        };
        store::insert_token(conn, &token, fresh.hash.as_bytes())?;
        audit::append(conn, &log, token_fact("token.create", &token))?;
        Ok(MadeToken {
            token,
            text: fresh.text,
        })
    })
    .await
}

/// The tokens: all for an admin, for others their own.
///
/// # Errors
/// The database's.
pub async fn tokens(db: &Db, reader: &Actor) -> Result<Vec<Token>, DbError> {
    let stored = db.read(store::tokens).await?;
    let tokens = stored.into_iter().map(|stored| stored.token);
    Ok(tokens.filter(|token| may_handle(reader, token)).collect())
}

fn may_handle(actor: &Actor, token: &Token) -> bool {
    actor.role == Role::Admin || token.person == actor.person
}

/// A token with a smaller role than another one of its person may see it, but not end it.
fn may_revoke(actor: &Actor, token: &Token) -> bool {
    may_handle(actor, token) && actor.role >= token.role
}

/// Ends a token: whatever has signed in with it is signed out.
///
/// # Errors
/// [`AccessError::NoToken`], [`AccessError::LastAdmin`], or the database's; nothing has changed then.
pub async fn revoke_token(db: &Db, revoker: &Actor, id: TokenId, now_ms: u64) -> Result<(), AccessError> {
    let revoker = revoker.clone();
    db.write(move |conn| {
        let stored = store::token(conn, &id)?;
        // Others need not learn which ids there are.
        let Some(stored) = stored.filter(|stored| may_revoke(&revoker, &stored.token)) else {
            return Err(AccessError::NoToken(id));
        };
        store::delete_token(conn, &id)?;
        require_admin(conn, now_ms)?;
        Ok(audit::append(
            conn,
            &revoker.by(now_ms),
            token_fact("token.revoke", &stored.token),
        )?)
    })
    .await
}
