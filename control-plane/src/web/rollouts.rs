//! The pages of rollouts, and what a person can do to one.

use askama::Template;
use axum::{
    Extension,
    extract::{Path, State},
    response::{Html, Redirect},
};
use skerry_shared::id::RolloutId;

use super::{
    Console, PageError, page,
    pages::Frame,
    session::Visit,
    sign_in::Confirmed,
    view::rollout::{RolloutRow, RolloutView},
};
use crate::{
    api::CalledBy,
    app::{Change, now_ms},
    devices::{self, Selector},
    rollouts::{self, Rollout, RolloutError, approval},
};

#[derive(Template)]
#[template(path = "rollouts.html")]
struct RolloutsPage {
    frame: Frame,
    rollouts: Vec<RolloutRow>,
}

pub(super) async fn list(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
) -> Result<Html<String>, PageError> {
    let frame = Frame::new("rollouts", "rollout", visit);
    let rollouts = rollouts::list(&console.app.core).await?;
    let rollouts = rollouts
        .iter()
        .map(|rollout| RolloutRow::new(rollout, frame.now_ms))
        .collect();
    page(&RolloutsPage { frame, rollouts })
}

#[derive(Template)]
#[template(path = "rollout.html")]
struct RolloutPage {
    frame: Frame,
    rollout: RolloutView,
}

pub(super) async fn show(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
    Path(id): Path<String>,
) -> Result<Html<String>, PageError> {
    let rollout = rollouts::get(&console.app.core, parse(&id)?).await?;
    let devices = devices::list(&console.app.core, &Selector::default()).await?;
    let actor = visit.grant.actor.clone();
    let frame = Frame::new("rollouts", format!("rollout:{} device", rollout.id), visit);
    let rollout = RolloutView::new(&rollout, &devices, &actor, frame.now_ms);
    page(&RolloutPage { frame, rollout })
}

fn parse(id: &str) -> Result<RolloutId, PageError> {
    id.parse()
        .map_err(|_| PageError::NotFound("There is no such rollout.".to_owned()))
}

pub(super) async fn pause(
    State(console): State<Console>,
    CalledBy(by): CalledBy,
    Path(id): Path<String>,
    Confirmed(_): Confirmed,
) -> Result<Redirect, PageError> {
    changed(&console, rollouts::pause(&console.app.core, parse(&id)?, by).await)
}

pub(super) async fn resume(
    State(console): State<Console>,
    CalledBy(by): CalledBy,
    Path(id): Path<String>,
    Confirmed(_): Confirmed,
) -> Result<Redirect, PageError> {
    changed(
        &console,
        rollouts::resume(&console.app.core, &console.app.config.rollouts, parse(&id)?, by).await,
    )
}

pub(super) async fn abort(
    State(console): State<Console>,
    CalledBy(by): CalledBy,
    Path(id): Path<String>,
    Confirmed(_): Confirmed,
) -> Result<Redirect, PageError> {
    changed(&console, rollouts::abort(&console.app.core, parse(&id)?, by).await)
}

pub(super) async fn approve(
    State(console): State<Console>,
    Path(id): Path<String>,
    Confirmed(visit): Confirmed,
) -> Result<Redirect, PageError> {
    let (app, approver) = (&console.app, &visit.grant.actor);
    let policy = &app.config.rollouts;
    let approved = approval::approve(&app.core, policy, parse(&id)?, approver, now_ms()).await;
    changed(&console, approved)
}

fn changed(console: &Console, rollout: Result<Rollout, RolloutError>) -> Result<Redirect, PageError> {
    let id = rollout?.id;
    console.app.changes.send(Change::Rollout(id));
    Ok(Redirect::to(&format!("/rollouts/{id}")))
}
