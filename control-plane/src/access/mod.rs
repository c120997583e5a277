//! Who may do what: users, API tokens, and the role behind each request.
//!
//! Not the edges: `api` and `web` ask for a [`Grant`] and hold routes to [`roles`]. Invariants: a request reaches a handler that
//! changes something only with an [`Actor`]; a grant is looked up for every request, so it ends with its token, its user or its
//! role; there is always a way in for an admin.

mod attempts;
pub mod limits;
mod name;
#[cfg(feature = "oidc")]
pub mod oidc;
mod password;
pub mod roles;
mod sign_in;
mod store;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod token;
mod tokens;
mod users;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    audit::By,
    db::{Db, DbError},
};
pub use attempts::Network;
pub use name::{InvalidName, UserName};
use password::HashError;
pub use sign_in::{Access, SignIn};
use store::{Holder, StoredToken, StoredUser};
pub use token::{InvalidTokenId, TokenId};
pub use tokens::{
    MadeToken, NewToken, Owner, Token, create_token, ensure_first_token, revoke_token, token_grant, tokens,
};
pub use users::{User, UserChange, change_user, user, users};

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

fn require_admin(conn: &rusqlite::Connection, now_ms: u64) -> Result<(), AccessError> {
    if store::ways_in_for_admins(conn, now_ms)? == 0 {
        return Err(AccessError::LastAdmin);
    }
    Ok(())
}
