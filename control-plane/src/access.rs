//! Who asks: the person or program behind a request, and what it may do.
//!
//! Invariant: a request reaches a handler that changes something only with an [`Actor`].

use serde::{Deserialize, Serialize};

/// What somebody may do. Each role may do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

/// Who a request comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The user, or the token's name; it stands in the audit log.
    pub name: String,
    /// What it may do.
    pub role: Role,
}
