//! What the page of the audit log shows.

use super::Moment;
use crate::{
    audit::{Filter, chain::Entry},
    cli::client::encode,
};

/// An entry.
pub(in crate::web) struct EntryRow {
    pub(in crate::web) seq: u64,
    pub(in crate::web) at: Moment,
    pub(in crate::web) actor: String,
    pub(in crate::web) action: String,
    pub(in crate::web) object: String,
    pub(in crate::web) details: Vec<(String, String)>,
    /// The beginning of its hash: enough to find it in an export.
    pub(in crate::web) hash: String,
}

impl EntryRow {
    /// A row as it looks at `now_ms`.
    pub(in crate::web) fn new(entry: Entry, now_ms: u64) -> EntryRow {
        EntryRow {
            seq: entry.seq,
            at: Moment::new(entry.at_ms, now_ms),
            actor: entry.actor,
            action: entry.action,
            object: entry.object,
            details: entry.details.into_iter().collect(),
            hash: entry.hash.to_hex()[..12].to_owned(),
        }
    }
}

/// The address of the entries before these.
pub(in crate::web) struct Next(pub(in crate::web) String);

impl Next {
    /// The page after one that ends with `last`.
    pub(in crate::web) fn after(filter: &Filter, last: Option<&Entry>) -> Option<Next> {
        let mut address = format!("/audit?before={}", last?.seq);
        let texts = [
            ("actor", &filter.actor),
            ("action", &filter.action),
            ("object", &filter.object),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                address.push_str(&format!("&{key}={}", encode(text)));
            }
        }
        Some(Next(address))
    }
}
