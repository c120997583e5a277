//! What the pages of users and API tokens show.

use super::Moment;
use crate::access::{Token, User};

/// A user as the list shows it.
pub(in crate::web) struct UserRow {
    pub(in crate::web) name: String,
    pub(in crate::web) role: &'static str,
    pub(in crate::web) has_password: bool,
    pub(in crate::web) disabled: bool,
    pub(in crate::web) made: Moment,
}

impl UserRow {
    /// The row of a user.
    pub(in crate::web) fn new(user: &User, now_ms: u64) -> UserRow {
        UserRow {
            name: user.name.to_string(),
            role: user.role.as_str(),
            has_password: user.has_password,
            disabled: user.disabled,
            made: Moment::new(user.created_at_ms, now_ms),
        }
    }
}

/// An API token as the list shows it.
pub(in crate::web) struct TokenRow {
    pub(in crate::web) id: String,
    pub(in crate::web) name: String,
    pub(in crate::web) owner: Option<String>,
    pub(in crate::web) role: &'static str,
    pub(in crate::web) last_used: Option<Moment>,
    pub(in crate::web) expires: Option<String>,
}

impl TokenRow {
    /// The row of a token.
    pub(in crate::web) fn new(token: &Token, now_ms: u64) -> TokenRow {
        TokenRow {
            id: token.id.to_string(),
            name: token.name.clone(),
            owner: token.owner.as_ref().map(ToString::to_string),
            role: token.role.as_str(),
            last_used: token.last_used_at_ms.map(|at| Moment::new(at, now_ms)),
            expires: token.expires_at_ms.map(|at| Moment::new(at, now_ms).iso),
        }
    }
}
