//! Which role a route needs: one table for the API and the console.
//!
//! A route's noun is the first part of its path. Invariant: a noun that is not in the table is the admin's alone, so a route
//! that somebody forgets here is closed and not open.

use axum::http::Method;

use super::Role::{self, Admin, Operator, Publisher, Viewer};

/// Calls that need another role than their noun does.
const EXCEPTIONS: &[(&str, Role)] = &[
    // Saying that a version may go to the fleet is the word of whoever runs it.
    ("/models/{name}/versions/{version}/approve", Operator),
];

/// Noun, the role to look at it, the role to change it.
const TABLE: &[(&str, Role, Role)] = &[
    // The fleet.
    ("devices", Viewer, Operator),
    ("device-tokens", Operator, Operator),
    ("device-keys", Viewer, Operator),
    ("device-trust", Viewer, Admin),
    // What new devices run as a service: the offline keys do not sign it, so nobody but an admin chooses it.
    ("agent-packages", Viewer, Admin),
    ("rollouts", Viewer, Operator),
    ("telemetry", Viewer, Admin),
    ("events", Viewer, Admin),
    ("audit", Viewer, Admin),
    // What is rolled out.
    ("models", Viewer, Publisher),
    ("runs", Viewer, Publisher),
    ("experiments", Viewer, Publisher),
    ("blobs", Viewer, Publisher),
    ("bundles", Viewer, Publisher),
    ("tuf", Viewer, Publisher),
    // Who may do what. Everybody has a password and tokens of their own; the handlers keep those of others apart.
    ("users", Admin, Admin),
    ("tokens", Viewer, Viewer),
    ("whoami", Viewer, Admin),
    // Pages of the console that are no noun of the API.
    ("", Viewer, Admin),
    ("console", Viewer, Admin),
    ("account", Viewer, Viewer),
    ("logout", Viewer, Viewer),
];

/// The role that a route needs. `path` is the route's path in the API (`/devices/{id}`) or in the console.
pub fn needed(method: &Method, path: &str) -> Role {
    if let Some((_, role)) = EXCEPTIONS.iter().find(|(exception, _)| *exception == path) {
        return *role;
    }
    let noun = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let row = TABLE.iter().find(|(name, ..)| *name == noun);
    row.map_or(
        Admin,
        |(_, look, change)| if method.is_safe() { *look } else { *change },
    )
}

/// True when the table has the noun of this path: a test holds every route of the API to it.
#[cfg(test)]
pub(crate) fn is_listed(path: &str) -> bool {
    let noun = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    TABLE.iter().any(|(name, ..)| *name == noun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_that_nobody_has_listed_is_the_admins() {
        assert_eq!(needed(&Method::GET, "/secrets"), Admin);
        assert_eq!(needed(&Method::POST, "/telemetry/forget"), Admin);
    }

    #[test]
    fn operators_run_the_fleet_and_publishers_fill_it() {
        for (method, path, role) in [
            (Method::GET, "/devices", Viewer),
            (Method::HEAD, "/blobs/{digest}", Viewer),
            (Method::PATCH, "/devices/{id}", Operator),
            (Method::POST, "/device-tokens", Operator),
            (Method::POST, "/rollouts/{id}/abort", Operator),
            (Method::POST, "/models/{name}/versions", Publisher),
            (Method::POST, "/models/{name}/versions/{version}/approve", Operator),
            (Method::POST, "/runs", Publisher),
            (Method::PUT, "/blobs/{digest}", Publisher),
            (Method::GET, "/users", Admin),
        ] {
            assert_eq!(needed(&method, path), role, "{method} {path}");
        }
    }
}
