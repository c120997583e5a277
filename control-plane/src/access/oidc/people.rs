//! The users behind the people of a provider. Invariant: a person of the provider never becomes a user that was made here,
//! whatever its name; it is known by issuer and subject alone.

use rusqlite::Connection;

use super::OidcError;
use crate::{
    access::{
        AccessError, Role, User, UserName, require_admin,
        store::{self, StoredUser},
        users::USERS_MAX,
    },
    audit::{self, By, Fact},
};

/// Who the provider says that somebody is.
pub(super) struct Identity {
    /// Issuer and subject.
    pub(super) subject: String,
    /// The name at the provider; it counts at the first sign-in only.
    pub(super) name: UserName,
    pub(super) role: Role,
}

/// Makes the user at its first sign-in; brings its role up to date at the later ones.
pub(super) fn take_in(conn: &Connection, identity: &Identity, now_ms: u64) -> Result<StoredUser, OidcError> {
    match store::user_of_subject(conn, &identity.subject)? {
        // It is refused afterwards, and its role is of no interest until then.
        Some(known) if known.user.disabled => {}
        Some(known) if known.user.role != identity.role => {
            let name = known.user.name;
            store::set_role(conn, &name, identity.role)?;
            require_admin(conn, now_ms)?;
            let fact = Fact::new("user.change", format!("user/{name}"))
                .with("role", identity.role)
                .with("role_before", known.user.role);
            audit::append(conn, &By::new(name.as_str(), now_ms), fact)?;
        }
        Some(_) => {}
        None => make(conn, identity, now_ms)?,
    }
    let user = store::user_of_subject(conn, &identity.subject)?;
    user.ok_or_else(|| AccessError::NoUser(identity.name.clone()).into())
}

fn make(conn: &Connection, identity: &Identity, now_ms: u64) -> Result<(), OidcError> {
    if store::user(conn, &identity.name)?.is_some() {
        return Err(OidcError::Taken(identity.name.clone()));
    }
    if store::count_users(conn)? >= USERS_MAX {
        return Err(AccessError::TooMany(USERS_MAX).into());
    }
    let user = User {
        name: identity.name.clone(),
        role: identity.role,
        has_password: false,
        disabled: false,
        created_at_ms: now_ms,
    };
    store::insert_user(conn, &user, None)?;
    store::set_subject(conn, &user.name, &identity.subject)?;
    let fact = Fact::new("user.create", format!("user/{}", user.name))
        .with("role", user.role)
        .with("subject", &identity.subject);
    audit::append(conn, &By::new(user.name.as_str(), now_ms), fact)?;
    Ok(())
}
