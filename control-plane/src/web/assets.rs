//! The console's style and scripts, embedded.

use std::sync::LazyLock;

use axum::{
    extract::Path,
    http::header,
    response::{IntoResponse, Response},
};
use skerry_shared::digest::Digest;

use super::PageError;

const CSS: &str = include_str!("../../assets/console.css");
const SCRIPT: &str = include_str!("../../assets/console.js");
const LOGIN_SCRIPT: &str = include_str!("../../assets/login.js");

static VERSION: LazyLock<String> = LazyLock::new(|| {
    let all = [CSS, SCRIPT, LOGIN_SCRIPT].concat();
    Digest::of(all.as_bytes()).to_hex()[..12].to_owned()
});

/// Changes with the content of any file: pages name it in their links, so that browsers may keep files for ever.
pub(super) fn version() -> &'static str {
    &VERSION
}

pub(super) async fn serve(Path(file): Path<String>) -> Response {
    let (media_type, content) = match file.as_str() {
        "console.css" => ("text/css; charset=utf-8", CSS),
        "console.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "login.js" => ("text/javascript; charset=utf-8", LOGIN_SCRIPT),
        _ => return PageError::NotFound("There is no such file.".to_owned()).into_response(),
    };
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (headers, content).into_response()
}
