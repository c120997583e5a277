//! The OpenAPI 3.1 document: what all calls share, and how it is served.
//!
//! Routes are registered with `utoipa_axum::routes!` from documented handlers, so a route cannot be missing here. Invariant:
//! every operation says how it fails.

use axum::{
    http::{Method, header},
    response::IntoResponse,
    routing::get,
};
use bytes::Bytes;
use utoipa::{
    PartialSchema,
    openapi::{
        Components, ContentBuilder, Info, LicenseBuilder, OpenApi, OpenApiBuilder, Ref, RefOr, Response,
        path::{Operation, PathItem},
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
        tag::TagBuilder,
    },
};

use super::problem::ProblemDetails;
use crate::access::roles;

/// The security scheme of the API tokens.
const TOKEN: &str = "api_token";

/// The document without routes.
pub(super) fn empty() -> OpenApi {
    let mut info = Info::new("Skerry control plane", env!("CARGO_PKG_VERSION"));
    info.description = Some(
        "Devices, models, bundles and rollouts of a fleet. Times are UTC milliseconds. Errors are problem details \
         (RFC 9457); their `type` is stable."
            .to_owned(),
    );
    info.license = Some(
        LicenseBuilder::new()
            .name("Apache-2.0")
            .identifier(Some("Apache-2.0"))
            .build(),
    );
    let mut components = Components::new();
    let mut scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    scheme.description = Some("An API token, `skp_…`. Each call names the least role that it needs.".to_owned());
    components.add_security_scheme(TOKEN, SecurityScheme::Http(scheme));
    components
        .schemas
        .insert("ProblemDetails".to_owned(), ProblemDetails::schema());
    let tags = [
        ("devices", "Devices and their enrolment"),
        ("models", "The model registry"),
        ("runs", "Training runs and their experiments"),
        ("bundles", "Signed bundles, their content and the TUF metadata"),
        ("telemetry", "What devices have measured"),
        ("rollouts", "Bringing a bundle to devices, group by group"),
        ("audit", "Who changed what"),
        ("access", "Users, API tokens and their roles"),
        ("system", "The control plane itself"),
    ];
    let tag = |(name, text)| TagBuilder::new().name(name).description(Some(text)).build();
    OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .tags(Some(tags.map(tag)))
        .build()
}

/// Says of all operations that they need an API token, and of which role (OpenAPI 3.1: the requirement's list).
pub(super) fn require_token(api: &mut OpenApi) {
    for (path, item) in &mut api.paths.paths {
        for (method, operation) in METHODS.into_iter().zip(operations(item)) {
            let Some(operation) = operation else { continue };
            let role = roles::needed(&method, path);
            operation.security = Some(vec![SecurityRequirement::new(TOKEN, [role.as_str()])]);
            let responses = &mut operation.responses.responses;
            let unknown = Response::new("The API token is missing, not known, or over");
            responses.insert("401".to_owned(), unknown.into());
            let too_small = Response::new(format!("The token's role is less than {role}"));
            responses.entry("403".to_owned()).or_insert(too_small.into());
        }
    }
}

/// Gives every documented failure its body, and every operation a `default` one.
pub(super) fn describe_failures(api: &mut OpenApi) {
    let problem = Ref::from_schema_name("ProblemDetails");
    let content = ContentBuilder::new().schema(Some(problem)).build();
    each_operation(api, |operation| {
        let responses = &mut operation.responses.responses;
        responses
            .entry("default".to_owned())
            .or_insert_with(|| Response::new("Any other failure").into());
        for (status, response) in responses.iter_mut() {
            let fails = status == "default" || status.starts_with(['4', '5']);
            if let (true, RefOr::T(response)) = (fails, response) {
                response
                    .content
                    .insert("application/problem+json".to_owned(), content.clone().into());
            }
        }
    });
}

fn each_operation(api: &mut OpenApi, mut change: impl FnMut(&mut Operation)) {
    for item in api.paths.paths.values_mut() {
        operations(item).into_iter().flatten().for_each(&mut change);
    }
}

/// In the order of [`operations`].
const METHODS: [Method; 8] = [
    Method::GET,
    Method::PUT,
    Method::POST,
    Method::DELETE,
    Method::OPTIONS,
    Method::HEAD,
    Method::PATCH,
    Method::TRACE,
];

fn operations(item: &mut PathItem) -> [&mut Option<Operation>; 8] {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.options,
        &mut item.head,
        &mut item.patch,
        &mut item.trace,
    ]
}

/// The route that serves the document. Anybody may read it: it is the same in every installation.
pub(super) fn route<S: Clone + Send + Sync + 'static>(api: &OpenApi) -> axum::routing::MethodRouter<S> {
    let text = Bytes::from(api.to_json().expect("the document is plain JSON"));
    get(async move || ([(header::CONTENT_TYPE, "application/json")], text.clone()).into_response())
}

/// Writes the router's wildcards (`{*path}`) as OpenAPI's plain names.
pub(super) fn name_wildcards(document: &mut OpenApi) {
    let paths = std::mem::take(&mut document.paths.paths);
    document.paths.paths = paths
        .into_iter()
        .map(|(path, item)| (path.replace("{*", "{"), item))
        .collect();
}
