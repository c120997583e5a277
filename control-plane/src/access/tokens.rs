//! API tokens as the database has them: made, listed, revoked. Their text is another matter: see [`super::token`].

use serde::{Serialize, Serializer};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::{
    AccessError, Actor, Credential, FIRST_PERSON, Grant, Role, UserName, granted, name, require_admin,
    store::{self, Holder},
    token::{Fresh, Presented, TokenId},
    users::require_user,
};
use crate::{
    audit::{self, By, Fact},
    db::{Db, DbError},
};

/// Some for each user, and one for each program.
const TOKENS_MAX: u64 = 5000;
/// How exactly the last use of a token is known: a write for each request would be one too many.
const LAST_USE_EVERY_MS: u64 = 60_000;
/// A year and a day: longer tokens are forgotten, and found by somebody else.
const TOKEN_TTL_MAX_MS: u64 = 366 * 86_400_000;

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
