//! A new enrolment token: the page that shows it once, with the line that installs an agent.

use std::{str::FromStr, time::Duration};

use askama::Template;
use axum::{
    Extension, Form,
    extract::{State, rejection::FormRejection},
    http::{HeaderMap, header},
    response::Html,
};
use serde::Deserialize;

use super::{Console, PageError, page, pages::Frame, session::Visit, sign_in::check_csrf};
use crate::{
    agent_package,
    api::{CalledBy, agent_packages::install_line},
    devices::{
        Selector,
        token::{self, NewToken},
    },
};

/// Copied from this page into a shell, now or tomorrow.
const LIFE: Duration = Duration::from_secs(86_400);

#[derive(Deserialize)]
pub(super) struct TokenForm {
    csrf: String,
    #[serde(default)]
    labels: String,
    uses: u32,
}

#[derive(Template)]
#[template(path = "enrolment.html")]
struct EnrolmentPage {
    frame: Frame,
    /// The token: it is on this page only.
    token: String,
    uses: u32,
    hours: u64,
    server: String,
    line: Option<String>,
    /// For which machines there is an agent here.
    packages: Vec<String>,
}

pub(super) async fn create_token(
    State(console): State<Console>,
    CalledBy(by): CalledBy,
    Extension(visit): Extension<Visit>,
    headers: HeaderMap,
    form: Result<Form<TokenForm>, FormRejection>,
) -> Result<Html<String>, PageError> {
    let Form(form) = form.map_err(|_| PageError::Malformed)?;
    check_csrf(&visit, &headers, &form.csrf)?;
    let labels = Selector::from_str(&form.labels).map_err(|error| PageError::Refused(format!("{error}.")))?;
    let new = NewToken {
        life: LIFE,
        uses: form.uses,
        labels: labels.into_labels(),
    };
    let app = &console.app;
    let made = token::make(&app.core, new, app.pins(), by).await?;
    let mut packages: Vec<String> = agent_package::list(&app.core)
        .await?
        .into_iter()
        .map(|package| package.architecture)
        .collect();
    packages.dedup();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    page(&EnrolmentPage {
        // It never looks again: the page would be gone.
        frame: Frame::new("fleet", "", visit),
        line: install_line(app, &headers, &made.text),
        token: made.text,
        uses: form.uses,
        hours: LIFE.as_secs() / 3600,
        server: format!("https://{}", host.unwrap_or("CONTROL-PLANE:8080")),
        packages,
    })
}
