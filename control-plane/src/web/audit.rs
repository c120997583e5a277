//! The page of the audit log.

use askama::Template;
use axum::{
    Extension,
    extract::{Query, State, rejection::QueryRejection},
    response::Html,
};
use serde::Deserialize;

use super::{
    Console, PageError, page,
    pages::Frame,
    session::Visit,
    view::audit::{EntryRow, Next},
};
use crate::audit::{self, Filter};

/// Entries on one page.
const PAGE: u32 = 100;

#[derive(Deserialize)]
pub(super) struct AuditQuery {
    #[serde(default)]
    actor: String,
    #[serde(default)]
    action: String,
    #[serde(default)]
    object: String,
    before: Option<u64>,
}

#[derive(Template)]
#[template(path = "audit.html")]
struct AuditPage {
    frame: Frame,
    actor: String,
    action: String,
    object: String,
    /// True when not everything is shown.
    filtered: bool,
    entries: Vec<EntryRow>,
    next: Option<Next>,
}

pub(super) async fn list(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<Html<String>, PageError> {
    let Query(query) = query.map_err(|_| PageError::Malformed)?;
    let given = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let (actor, action, object) = (given(&query.actor), given(&query.action), given(&query.object));
    let filtered = actor.is_some() || action.is_some() || object.is_some() || query.before.is_some();
    let filter = Filter {
        before: query.before,
        actor,
        action,
        object,
        limit: PAGE,
    };
    let entries = audit::list(&console.app.core, filter.clone()).await?;
    // An old page stays as it is: nothing is ever added before an entry.
    let watch = match query.before {
        None => "device model bundle run rollout access",
        Some(_) => "",
    };
    let frame = Frame::new("audit", watch, visit);
    let next = (entries.len() == PAGE as usize).then(|| Next::after(&filter, entries.last()));
    let entries = entries
        .into_iter()
        .map(|entry| EntryRow::new(entry, frame.now_ms))
        .collect();
    page(&AuditPage {
        frame,
        actor: query.actor,
        action: query.action,
        object: query.object,
        filtered,
        entries,
        next: next.flatten(),
    })
}
