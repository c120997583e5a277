//! The pages of devices and models.

use std::str::FromStr;

use askama::Template;
use axum::{
    Extension,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, Method, header},
    response::Html,
};
use serde::Deserialize;

use super::{
    Console, PageError, page,
    session::Visit,
    view::{
        device::{DeviceView, FleetView, Wanted},
        model::{ModelView, model_views},
    },
};
use crate::{
    access::{Role, roles},
    app::now_ms,
    devices::{
        self, Selector,
        keys::{self, DeviceKey, KeyState},
    },
    publish, registry,
};

/// What the frame around every page shows.
pub(super) struct Frame {
    /// The current entry of the navigation.
    pub(super) here: &'static str,
    /// The changes after which the page looks again, as [`super::live`] says them.
    pub(super) watch: String,
    pub(super) csrf: String,
    pub(super) now_ms: u64,
    /// Who has signed in.
    pub(super) who: String,
    pub(super) role: Role,
}

impl Frame {
    /// A frame as of now.
    pub(super) fn new(here: &'static str, watch: impl Into<String>, visit: Visit) -> Frame {
        Frame {
            here,
            watch: watch.into(),
            csrf: visit.csrf,
            now_ms: now_ms(),
            who: visit.grant.actor.name,
            role: visit.grant.actor.role,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct FleetQuery {
    #[serde(default)]
    selector: String,
}

#[derive(Template)]
#[template(path = "fleet.html")]
struct FleetPage {
    frame: Frame,
    fleet: FleetView,
    /// The devices that wait for somebody who knows their fingerprints.
    waiting: Vec<DeviceKey>,
    may_decide: bool,
    may_enroll: bool,
    /// Where a device finds this control plane, as this browser does.
    server: String,
}

pub(super) async fn fleet(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
    query: Result<Query<FleetQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Html<String>, PageError> {
    let Query(query) = query.map_err(|_| PageError::Malformed)?;
    let frame = Frame::new("fleet", "device device-keys", visit);
    let may_decide = frame.role >= roles::needed(&Method::POST, "/device-keys");
    let may_enroll = frame.role >= roles::needed(&Method::POST, "/device-tokens");
    let waiting = keys::known(&console.app.core, Some(KeyState::Pending), frame.now_ms).await?;
    let (devices, error) = match Selector::from_str(&query.selector) {
        Ok(selector) => (devices::list(&console.app.core, &selector).await?, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let fleet = FleetView::new(&devices, query.selector, error, frame.now_ms);
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let server = format!("https://{}", host.unwrap_or("CONTROL-PLANE:8080"));
    page(&FleetPage {
        frame,
        fleet,
        waiting,
        may_decide,
        may_enroll,
        server,
    })
}

#[derive(Template)]
#[template(path = "device.html")]
struct DevicePage {
    frame: Frame,
    device: DeviceView,
}

pub(super) async fn device(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
    Path(id): Path<String>,
) -> Result<Html<String>, PageError> {
    let missing = |_| PageError::NotFound("There is no such device.".to_owned());
    let device = devices::get(&console.app.core, &id.parse().map_err(missing)?).await?;
    let frame = Frame::new("fleet", format!("device:{}", device.id), visit);
    let device = DeviceView::new(&device, frame.now_ms);
    page(&DevicePage { frame, device })
}

#[derive(Template)]
#[template(path = "models.html")]
struct ModelsPage {
    frame: Frame,
    models: Vec<ModelView>,
}

pub(super) async fn models(
    State(console): State<Console>,
    Extension(visit): Extension<Visit>,
) -> Result<Html<String>, PageError> {
    let core = &console.app.core;
    let (models, bundles) = (registry::list(core).await?, publish::list(core).await?);
    let devices = devices::list(core, &Selector::default()).await?;
    let frame = Frame::new("models", "model bundle device", visit);
    let models = model_views(models, &bundles, &devices, frame.now_ms);
    page(&ModelsPage { frame, models })
}
