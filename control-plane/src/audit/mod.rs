//! The audit log: who changed what, in a chain of hashes that only grows, with signed checkpoints.
//!
//! Every domain calls [`append`] in the transaction of the change itself, so a change without its entry cannot be. It is not
//! the program's log: nothing is written here that changed nothing, but refused sign-ins. Invariant: an entry, once committed,
//! never changes, and [`chain`] finds it if somebody changes it all the same.

pub mod chain;
pub mod checkpoint;
pub mod export;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use rusqlite::Connection;
use skerry_shared::id::DeviceId;

use crate::db::{Db, DbError};
use chain::Entry;

/// The actor of what the control plane decides by itself. No user can have this name: it has a space.
pub const CONTROL_PLANE: &str = "control plane";

/// The longest actor, action and object, in characters. Names come from outside, a failed sign-in's from anybody.
const TEXT_MAX: usize = 256;
/// The longest detail, in characters: a list of labels, a reason.
const DETAIL_MAX: usize = 4096;
/// The most details of an entry.
const DETAILS_MAX: usize = 32;

/// Who changes something, and when. Whatever changes something asks for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct By {
    /// A user, a token, `device NAME`, or [`CONTROL_PLANE`].
    pub actor: String,
    /// UTC milliseconds.
    pub at_ms: u64,
}

impl By {
    /// A person or program with this name.
    pub fn new(actor: impl Into<String>, at_ms: u64) -> By {
        By {
            actor: actor.into(),
            at_ms,
        }
    }

    /// The control plane itself.
    pub fn control_plane(at_ms: u64) -> By {
        By::new(CONTROL_PLANE, at_ms)
    }

    /// A device.
    pub fn device(device: &DeviceId, at_ms: u64) -> By {
        By::new(format!("device {device}"), at_ms)
    }
}

/// What was done to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    action: &'static str,
    object: String,
    details: BTreeMap<String, String>,
}

impl Fact {
    /// A fact: an action in words with dots, for example `device.labels`, and an object, for example `device/kitchen-1`.
    /// No secret may be in it.
    pub fn new(action: &'static str, object: impl Into<String>) -> Fact {
        Fact {
            action,
            object: object.into(),
            details: BTreeMap::new(),
        }
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl std::fmt::Display) -> Fact {
        if self.details.len() < DETAILS_MAX {
            self.details.insert(key.to_owned(), cut(&value.to_string(), DETAIL_MAX));
        }
        self
    }
}

/// Appends an entry. For use inside the write that makes the change: both are stored, or neither.
///
/// # Errors
/// The database's.
pub fn append(conn: &Connection, by: &By, fact: Fact) -> Result<(), DbError> {
    let (last, prev_hash) = store::head(conn)?;
    let mut entry = Entry {
        seq: last + 1,
        at_ms: by.at_ms,
        actor: cut(&by.actor, TEXT_MAX),
        action: fact.action.to_owned(),
        object: cut(&fact.object, TEXT_MAX),
        details: fact.details,
        prev_hash,
        hash: prev_hash,
    };
    entry.hash = entry.computed_hash();
    store::insert(conn, &entry)
}

/// Cuts a text; control characters become spaces, so that no entry looks like two on a terminal.
fn cut(text: &str, max: usize) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(max).map(clean).collect()
}

/// Which entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only entries before this one.
    pub before: Option<u64>,
    /// Only of this actor.
    pub actor: Option<String>,
    /// Only actions that begin like this.
    pub action: Option<String>,
    /// Only of this object, and of what is below it: `model/m` also has `model/m/2`.
    pub object: Option<String>,
    /// At most so many.
    pub limit: u32,
}

/// The entries that match, the newest first.
///
/// # Errors
/// The database's.
pub async fn list(db: &Db, filter: Filter) -> Result<Vec<Entry>, DbError> {
    db.read(move |conn| store::newest(conn, &filter)).await
}

/// One entry, if it is there.
///
/// # Errors
/// The database's.
pub async fn get(db: &Db, seq: u64) -> Result<Option<Entry>, DbError> {
    db.read(move |conn| store::get(conn, seq)).await
}
