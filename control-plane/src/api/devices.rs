//! Routes of devices and their enrolment.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use skerry_shared::{
    desired::{BundleAssignment, InstalledBundle, Outcome, ReportedError, UpdateStatus},
    id::{DeviceId, Generation, ModelName, ModelVersion, Platform, RolloutId},
};
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Problem,
    agent_packages::install_line,
    extract::{CalledBy, Caller, JsonBody, UrlPath, UrlQuery},
    load::Client,
};
use crate::{
    access::Role,
    app::{App, Change, now_ms, random_hex},
    ca::{
        CONTROL_PLANE, Request,
        certificate::{ClientCertificate, ClientIdentity},
    },
    config::{BrokerAccess, Mqtt},
    devices::{
        self, Credential, Device, Enrolment, Selector,
        keys::{self, Admitted, Asked, Asking},
        token::{self, NewToken},
    },
    https::PeerCertificate,
    openapi,
};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default()
        .routes(routes!(list))
        .routes(routes!(show, change))
        .routes(routes!(revoke))
        .routes(routes!(create_token))
}

/// No bearer token: the one-time token is in the body, or the certificate in the handshake.
pub(super) fn open_routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::default().routes(routes!(enroll)).routes(routes!(renew))
}

#[derive(Deserialize)]
struct ListQuery {
    #[serde(default)]
    selector: String,
}

#[derive(Serialize, ToSchema)]
struct DeviceList {
    devices: Vec<DeviceView>,
}

/// Lists devices
#[utoipa::path(get, path = "/devices", operation_id = "list_devices", tag = "devices",
    params(("selector" = Option<String>, Query,
        description = "Only devices with these labels, for example `site=north,kind=wrist`")),
    responses(
        (status = 200, description = "The devices that match", body = DeviceList),
        (status = 422, description = "The selector is malformed"),
    ))]
async fn list(State(app): State<Arc<App>>, UrlQuery(query): UrlQuery<ListQuery>) -> Result<Json<DeviceList>, Problem> {
    let selector: Selector = query
        .selector
        .parse()
        .map_err(|error| Problem::refused(format!("{error}")))?;
    let devices = devices::list(&app.core, &selector).await?;
    let devices = devices.into_iter().map(DeviceView::from).collect();
    Ok(Json(DeviceList { devices }))
}

/// Shows a device
#[utoipa::path(get, path = "/devices/{id}", operation_id = "show_device", tag = "devices",
    params(("id" = String, Path, description = "The device")),
    responses(
        (status = 200, description = "The device", body = DeviceView),
        (status = 404, description = "There is no such device"),
    ))]
async fn show(State(app): State<Arc<App>>, UrlPath(id): UrlPath<String>) -> Result<Json<DeviceView>, Problem> {
    Ok(Json(devices::get(&app.core, &parse_id(&id)?).await?.into()))
}

/// Changes to a device.
#[derive(Deserialize, ToSchema)]
#[schema(as = DeviceChange)]
struct ChangeBody {
    /// Labels to set; `null` removes one.
    labels: BTreeMap<String, Option<String>>,
}

/// Sets and removes labels of a device
#[utoipa::path(patch, path = "/devices/{id}", operation_id = "change_device", tag = "devices",
    params(("id" = String, Path, description = "The device")),
    request_body = ChangeBody,
    responses(
        (status = 200, description = "The device after the change", body = DeviceView),
        (status = 403, description = "The role is too small, or the device would leave production, which takes an admin"),
        (status = 404, description = "There is no such device"),
        (status = 422, description = "A label is malformed"),
    ))]
async fn change(
    State(app): State<Arc<App>>,
    Caller(actor): Caller,
    UrlPath(id): UrlPath<String>,
    JsonBody(body): JsonBody<ChangeBody>,
) -> Result<Json<DeviceView>, Problem> {
    let id = parse_id(&id)?;
    let production = app.config.rollouts.production.clone();
    let kept = production.filter(|_| actor.role < Role::Admin);
    devices::set_labels(&app.core, &id, body.labels, kept, actor.by(now_ms())).await?;
    app.changes.send(Change::Device(id.clone()));
    Ok(Json(devices::get(&app.core, &id).await?.into()))
}

fn parse_id(text: &str) -> Result<DeviceId, Problem> {
    text.parse().map_err(|_| Problem::not_found("there is no such device"))
}

/// An enrolment token to make.
#[derive(Deserialize, ToSchema)]
#[schema(as = NewDeviceToken)]
struct TokenBody {
    /// How long it can be used: at most 31 days.
    #[serde(default = "one_day")]
    #[schema(minimum = 1, maximum = 2_678_400)]
    ttl_seconds: u64,
    /// How many devices may use it.
    #[serde(default = "one")]
    #[schema(minimum = 1)]
    uses: u32,
    /// Labels for the devices that use it.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

fn one_day() -> u64 {
    86_400
}

fn one() -> u32 {
    1
}

/// An enrolment token.
#[derive(Serialize, ToSchema)]
struct DeviceToken {
    /// The token; it is not shown again.
    token: String,
    /// UTC milliseconds.
    expires_at_ms: u64,
    /// How many devices may use it.
    uses: u32,
    /// For the shell of a device without an agent: installs one and enrols with the token. It reaches this control plane by the
    /// `Host` of the request. Absent where the control plane itself speaks no HTTPS.
    install_line: Option<String>,
}

/// Makes an enrolment token
#[utoipa::path(post, path = "/device-tokens", operation_id = "create_device_token", tag = "devices",
    request_body = TokenBody,
    responses(
        (status = 201, description = "The token", body = DeviceToken),
        (status = 422, description = "Its life, its uses or a label is refused"),
    ))]
async fn create_token(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    headers: HeaderMap,
    JsonBody(body): JsonBody<TokenBody>,
) -> Result<(StatusCode, Json<DeviceToken>), Problem> {
    let uses = body.uses;
    let new = NewToken {
        life: Duration::from_secs(body.ttl_seconds),
        uses,
        labels: body.labels,
    };
    let made = token::make(&app.core, new, app.pins(), by).await?;
    let answer = DeviceToken {
        install_line: install_line(&app, &headers, &made.text),
        token: made.text,
        expires_at_ms: made.expires_at_ms,
        uses,
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

/// A device that wants to belong to the fleet.
#[derive(Deserialize, ToSchema)]
#[schema(as = Enrolment)]
struct EnrollBody {
    /// The enrolment token, `skt_…`. Without one the device's key must be on the factory's list, or an operator must approve it.
    token: Option<String>,
    /// The id it asks for; without one it is given one.
    #[schema(value_type = Option<String>)]
    device_id: Option<DeviceId>,
    /// Its request for a certificate (PKCS #10, PEM), signed by its key on the curve P-256. Names in it are not read.
    #[schema(max_length = 8192)]
    request: String,
    /// Its platform, for example `aarch64-unknown-linux-gnu`.
    #[schema(value_type = String)]
    platform: Platform,
    /// Its agent's version.
    #[schema(max_length = 64)]
    agent_version: String,
}

/// What a new device needs.
#[derive(Serialize, ToSchema)]
struct Enrolled {
    /// Its id from now on.
    #[schema(value_type = String)]
    device_id: DeviceId,
    certificate: Certificate,
    mqtt: MqttAccess,
    /// The TUF root metadata in base64. A device compares its digest with the one in its token.
    root: String,
}

/// A device's certificate.
#[derive(Serialize, ToSchema)]
#[schema(as = DeviceCertificate)]
struct Certificate {
    /// The device's certificate, then the authority's, in PEM.
    chain: String,
    /// The server's time.
    issued_at_ms: u64,
    /// When it ends. A device renews it at two thirds of its life; up to 90 days after its end it may still do so.
    not_after_ms: u64,
}

/// Where a device finds the MQTT broker. It shows its certificate there; its id is its client id.
#[derive(Serialize, ToSchema)]
struct MqttAccess {
    /// Absent: the host at which the device has found this API.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    host: Option<String>,
    port: u16,
    /// Who has signed the broker's certificate, in PEM; absent: the fleet's own authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    authority: Option<String>,
    /// True for a broker on this machine that does not speak TLS.
    plain: bool,
}

impl MqttAccess {
    fn of(app: &App) -> Result<MqttAccess, Problem> {
        let (host, port) = app.mqtt_address.clone();
        let (plain, ca) = match &app.config.mqtt {
            Mqtt::Embedded { .. } => (app.config.mqtt_plain, None),
            Mqtt::External { access, .. } => match access {
                BrokerAccess::Tls { ca, .. } => (false, ca.as_ref()),
                BrokerAccess::Plain { .. } => (true, None),
            },
        };
        let authority = ca.map(std::fs::read_to_string).transpose().map_err(Problem::internal)?;
        Ok(MqttAccess {
            host,
            port,
            authority,
            plain,
        })
    }
}

/// The secret part of an enrolment token.
fn secret_of(token: &str) -> Result<Vec<u8>, Problem> {
    let secret = token.strip_prefix("skt_").and_then(|token| token.split_once('.'));
    let secret = secret.and_then(|(secret, _)| URL_SAFE_NO_PAD.decode(secret).ok());
    secret.ok_or_else(|| Problem::bad_request("the enrolment token is malformed"))
}

/// Reads a request for a certificate.
fn parse_request(pem: &str) -> Result<Request, Problem> {
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes());
    let der = der.map_err(|_| Problem::refused("request must be a certificate request (PKCS #10) in PEM"))?;
    Request::parse(&der).map_err(|error| Problem::refused(error.to_string()))
}

/// Issues a certificate, and says until when it counts.
fn issue(app: &App, request: &Request, device: &DeviceId, now_ms: u64) -> Result<Certificate, Problem> {
    let life = app.config.tls.device_life;
    let issued = app.certificates.authority().issue_device(request, device, life, now_ms);
    let issued = issued.map_err(Problem::internal)?;
    Ok(Certificate {
        chain: issued.chain_pem,
        issued_at_ms: now_ms,
        not_after_ms: issued.not_after_ms,
    })
}

/// A device that an operator must approve first.
#[derive(Serialize, ToSchema)]
struct EnrolmentPending {
    /// The SHA-256 of its public key, in hex: what the operator compares.
    fingerprint: String,
    /// When to ask again, at the earliest.
    retry_after_seconds: u64,
}

/// How an enrolment ends that is no error.
enum EnrollAnswer {
    Enrolled(Box<Enrolled>),
    Pending(EnrolmentPending),
}

impl IntoResponse for EnrollAnswer {
    fn into_response(self) -> Response {
        match self {
            EnrollAnswer::Enrolled(enrolled) => (StatusCode::CREATED, Json(enrolled)).into_response(),
            EnrollAnswer::Pending(pending) => (StatusCode::ACCEPTED, Json(pending)).into_response(),
        }
    }
}

/// A person looks at it: there is no hurry, and a fleet that waits must not be a load.
const ASK_AGAIN_SECONDS: u64 = 5;

/// Enrols a device
///
/// With a one-time token, or by its key alone: one on the factory's list enrols at once, any other waits until an operator has
/// approved it, and asks again.
#[utoipa::path(post, path = "/enroll", operation_id = "enroll", tag = "devices",
    request_body = EnrollBody,
    responses(
        (status = 201, description = "Enrolled", body = Enrolled),
        (status = 202, description = "An operator must approve the key; ask again", body = EnrolmentPending),
        (status = 403, description = "The token is not known, used or expired, or the key was rejected"),
        (status = 409, description = "Another device has this id"),
        (status = 422, description = "The request, the id or the version is refused"),
    ))]
async fn enroll(
    State(app): State<Arc<App>>,
    Client(network): Client,
    JsonBody(body): JsonBody<EnrollBody>,
) -> Result<EnrollAnswer, Problem> {
    if body.agent_version.len() > 64 {
        return Err(Problem::refused("agent_version must have at most 64 bytes"));
    }
    let secret = body.token.as_deref().map(secret_of).transpose()?;
    let request = parse_request(&body.request)?;
    let public_key = request.public_key_hex();
    let (credential, given) = match secret {
        Some(secret) => (Credential::Token(secret), None),
        None => {
            let fingerprint = request.fingerprint();
            let asked = Asked {
                device: body.device_id.clone(),
                platform: Some(body.platform.clone()),
                agent_version: body.agent_version.clone(),
            };
            let asking = Asking {
                fingerprint,
                network,
                asked,
            };
            match keys::admit(&app.core, asking, now_ms()).await? {
                Admitted::Yes(device) => (Credential::Key(fingerprint), device),
                Admitted::Pending => {
                    tracing::info!(fingerprint = %fingerprint.to_hex(), "a device waits to be approved");
                    app.changes.send(Change::DeviceKeys);
                    return Ok(EnrollAnswer::Pending(EnrolmentPending {
                        fingerprint: fingerprint.to_hex(),
                        retry_after_seconds: ASK_AGAIN_SECONDS,
                    }));
                }
            }
        }
    };
    let random = |error: anyhow::Error| Problem::internal(std::io::Error::other(error.to_string()));
    let device = match given.or(body.device_id) {
        Some(device) => device,
        None => match devices::enrolled_with(&app.core, &credential, &public_key).await? {
            Some(device) => device,
            None => format!("dev-{}", random_hex::<4>().map_err(random)?)
                .parse()
                .expect("a valid device id"),
        },
    };
    if device.as_str() == CONTROL_PLANE {
        return Err(Problem::refused("this device id is the control plane's own"));
    }
    let now_ms = now_ms();
    let certificate = issue(&app, &request, &device, now_ms)?;
    let enrolment = Enrolment {
        credential,
        device,
        public_key,
        platform: body.platform,
        agent_version: body.agent_version,
        certificate_not_after_ms: certificate.not_after_ms,
    };
    let device = devices::enroll(&app.core, enrolment, now_ms).await?;
    tracing::info!(device.id = %device, "a device enrolled");
    app.changes.send(Change::Device(device.clone()));
    let answer = Enrolled {
        device_id: device,
        certificate,
        mqtt: MqttAccess::of(&app)?,
        root: STANDARD.encode(app.keys.current().root_bytes()),
    };
    Ok(EnrollAnswer::Enrolled(Box::new(answer)))
}

/// A device that renews its certificate.
#[derive(Deserialize, ToSchema)]
#[schema(as = Renewal)]
struct RenewBody {
    /// Its request for a certificate (PKCS #10, PEM), signed by the key that it has enrolled with.
    #[schema(max_length = 8192)]
    request: String,
}

/// A new certificate, and where the broker is by now.
#[derive(Serialize, ToSchema)]
struct Renewed {
    certificate: Certificate,
    mqtt: MqttAccess,
}

/// Renews a device's certificate
///
/// The device shows its present one in the TLS handshake, which must offer the protocol `skerry-device/1` (ALPN). It may have
/// expired up to 90 days ago: then this call is all that it is good for.
#[utoipa::path(post, path = "/renew", operation_id = "renew_certificate", tag = "devices",
    request_body = RenewBody,
    responses(
        (status = 200, description = "The new certificate", body = Renewed),
        (status = 401, description = "No certificate of a device was shown"),
        (status = 403, description = "The device has been revoked, or the key is not its own"),
        (status = 404, description = "There is no such device"),
        (status = 422, description = "The request is refused"),
    ))]
async fn renew(
    State(app): State<Arc<App>>,
    certificate: Option<Extension<PeerCertificate>>,
    JsonBody(body): JsonBody<RenewBody>,
) -> Result<Json<Renewed>, Problem> {
    let shown = certificate.map(|Extension(PeerCertificate(shown))| shown);
    let device = match shown.as_deref() {
        Some(ClientCertificate {
            identity: ClientIdentity::Device(device),
            ..
        }) => device.clone(),
        _ => {
            let detail =
                "this call needs a device's certificate in the TLS handshake, with the protocol skerry-device/1";
            return Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "not authorized",
                detail,
            ));
        }
    };
    let request = parse_request(&body.request)?;
    let public_key = request.public_key_hex();
    if shown.is_some_and(|shown| shown.public_key != public_key) {
        return Err(devices::DeviceError::OtherKey(device).into());
    }
    let now_ms = now_ms();
    let certificate = issue(&app, &request, &device, now_ms)?;
    devices::renew(&app.core, &device, public_key, certificate.not_after_ms, now_ms).await?;
    tracing::info!(device.id = %device, "a device has renewed its certificate");
    app.changes.send(Change::Device(device));
    Ok(Json(Renewed {
        certificate,
        mqtt: MqttAccess::of(&app)?,
    }))
}

/// Revokes a device
///
/// Its connection ends at once, it cannot connect or renew its certificate again, and its id stays taken.
#[utoipa::path(post, path = "/devices/{id}/revoke", operation_id = "revoke_device", tag = "devices",
    params(("id" = String, Path, description = "The device")),
    responses(
        (status = 200, description = "The device after the change", body = DeviceView),
        (status = 404, description = "There is no such device"),
    ))]
async fn revoke(
    State(app): State<Arc<App>>,
    CalledBy(by): CalledBy,
    UrlPath(id): UrlPath<String>,
) -> Result<Json<DeviceView>, Problem> {
    let id = parse_id(&id)?;
    app.revoke_device(&id, by).await?;
    tracing::info!(device.id = %id, "a device has been revoked");
    Ok(Json(devices::get(&app.core, &id).await?.into()))
}

/// A device as the API shows it.
#[derive(Serialize, ToSchema)]
#[schema(as = Device)]
pub(super) struct DeviceView {
    #[schema(value_type = String)]
    id: DeviceId,
    /// The operator's labels.
    labels: BTreeMap<String, String>,
    #[schema(value_type = String)]
    platform: Platform,
    agent_version: String,
    /// True while its connection lives.
    connected: bool,
    enrolled_at_ms: u64,
    /// When its certificate ends; `null` for one that has none and must enrol again.
    certificate_not_after_ms: Option<u64>,
    /// When it was revoked; `null` while it has access.
    revoked_at_ms: Option<u64>,
    /// When two agents with its identity were last seen to take turns: a copied disk, or a stolen key; `null` if never.
    duplicate_seen_at_ms: Option<u64>,
    /// The server's time of its last message.
    last_seen_at_ms: Option<u64>,
    /// The generation of its desired state.
    #[schema(value_type = u64)]
    generation: Generation,
    /// What it should run.
    desired: Vec<AssignmentView>,
    /// What it has installed.
    #[schema(value_type = Vec<openapi::InstalledBundle>)]
    bundles: Vec<InstalledBundle>,
    /// How the newest update of each model ended.
    #[schema(value_type = Vec<openapi::Outcome>)]
    outcomes: Vec<Outcome>,
    /// What is wrong without anything having failed, by its last report: `stale_metadata`, `time_untrusted`.
    #[schema(value_type = Vec<openapi::ReportedError>)]
    alarms: Vec<ReportedError>,
    /// The newest generation that it has accepted; absent before its first report, like all below.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, nullable = false)]
    reported_generation: Option<Generation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<openapi::UpdateStatus>, nullable = false)]
    update: Option<UpdateStatus>,
    /// Where its Open Inference Protocol API listens; `null` when nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    inference_address: Option<Option<String>>,
}

/// A model version that a device should run.
#[derive(Serialize, ToSchema)]
#[schema(as = Assignment)]
struct AssignmentView {
    #[schema(value_type = String)]
    model: ModelName,
    #[schema(value_type = u64)]
    version: ModelVersion,
    /// The rollout that asked for it.
    #[schema(value_type = Option<u64>)]
    rollout: Option<RolloutId>,
}

impl From<BundleAssignment> for AssignmentView {
    fn from(assignment: BundleAssignment) -> AssignmentView {
        AssignmentView {
            model: assignment.model,
            version: assignment.version,
            rollout: assignment.rollout,
        }
    }
}

impl From<Device> for DeviceView {
    fn from(device: Device) -> DeviceView {
        let mut view = DeviceView {
            id: device.id,
            labels: device.labels,
            platform: device.platform,
            agent_version: device.agent_version,
            connected: device.connected,
            enrolled_at_ms: device.enrolled_at_ms,
            certificate_not_after_ms: device.certificate_not_after_ms,
            revoked_at_ms: device.revoked_at_ms,
            duplicate_seen_at_ms: device.duplicate_seen_at_ms,
            last_seen_at_ms: device.last_seen_at_ms,
            generation: device.generation,
            desired: device.desired.into_iter().map(AssignmentView::from).collect(),
            bundles: Vec::new(),
            outcomes: Vec::new(),
            alarms: Vec::new(),
            reported_generation: None,
            update: None,
            inference_address: None,
        };
        if let Some(reported) = device.reported {
            view.bundles = reported.bundles;
            view.outcomes = reported.outcomes;
            view.alarms = reported.alarms;
            view.reported_generation = Some(reported.generation);
            view.update = Some(reported.update);
            view.inference_address = Some(reported.agent.inference_address);
        }
        view
    }
}
