//! The console as a browser meets it: a whole control plane behind an in-process router.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    access::Role,
    app::{Change, now_ms},
    config::Config,
    db::DbError,
    devices,
    test_server::{Answer, TestServer},
};

const INDEX: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

struct Browser {
    server: Arc<TestServer>,
    cookie: String,
}

impl Browser {
    async fn sign_in() -> Browser {
        let server = Arc::new(TestServer::start().await);
        let token = server.token.clone();
        Browser::sign_in_to(server, &format!("token={token}")).await
    }

    /// Signs in with what the form sends.
    async fn sign_in_to(server: Arc<TestServer>, form: &str) -> Browser {
        let answer = send_form(&server, "", "/login", form, &[]).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.body);
        let cookie = answer.header("set-cookie");
        assert!(cookie.starts_with("__Host-skerry_session="), "{cookie}");
        for attribute in ["HttpOnly", "Secure", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        assert!(!cookie.contains(&server.token));
        let cookie = cookie.split(';').next().unwrap().to_owned();
        Browser { server, cookie }
    }

    async fn get(&self, path: &str) -> Answer {
        let request = Request::get(path).header(header::COOKIE, &self.cookie);
        self.server.send(request.body(Body::empty()).unwrap()).await
    }

    async fn post(&self, path: &str, csrf: &str, headers: &[(&str, &str)]) -> Answer {
        send_form(&self.server, &self.cookie, path, &format!("csrf={csrf}"), headers).await
    }

    /// Sends a form with more in it, as the page would.
    async fn fill(&self, path: &str, fields: &str) -> Answer {
        let form = format!("csrf={}&{fields}", self.csrf().await);
        send_form(
            &self.server,
            &self.cookie,
            path,
            &form,
            &[("sec-fetch-site", "same-origin")],
        )
        .await
    }

    /// The session's secret, as a page carries it.
    async fn csrf(&self) -> String {
        let page = self.get("/").await.body;
        let (_, rest) = page.split_once("name=\"csrf\" value=\"").unwrap();
        rest.split('"').next().unwrap().to_owned()
    }

    async fn stream(&self) -> impl Stream<Item = String> + Unpin + use<> {
        let request = Request::get("/console/events").header(header::COOKIE, &self.cookie);
        let request = request.body(Body::empty()).unwrap();
        let response = self.server.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
        let frames = response.into_body().into_data_stream();
        frames.map(|frame| String::from_utf8(frame.unwrap().to_vec()).unwrap())
    }

    async fn report(&self, device: &str, change: impl FnOnce(&mut Value)) {
        let mut reported = json!({
            "schema": "1.0", "device": device, "boot_id": "0123456789abcdef0123456789abcdef", "seq": 1,
            "device_time_ms": 5, "generation": 0,
            "agent": {"version": "0.1.0", "platform": "pulley64"},
            "update": {"state": "idle"},
            "bundles": [{"model": "motion", "version": 7, "slot": "current", "index": INDEX}],
        });
        change(&mut reported);
        let reported = serde_json::from_value(reported).unwrap();
        devices::record_reported(&self.server.server.app().core, reported, devices::Heard::At(now_ms()))
            .await
            .unwrap();
    }

    async fn rollout(&self) {
        self.server.enroll("dev-1", &[]).await;
        self.server.publish("motion", 2).await;
        let body = json!({"model": "motion", "version": 2, "groups": [{"size": "1"}]});
        let answer = self.server.api("POST", "/api/v1/rollouts", body.to_string()).await;
        assert_eq!(answer.status, StatusCode::CREATED);
    }
}

async fn login(server: &TestServer, token: &str, headers: &[(&str, &str)]) -> Answer {
    send_form(server, "", "/login", &format!("token={token}"), headers).await
}

async fn send_form(server: &TestServer, cookie: &str, path: &str, form: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::post(path)
        .header(header::COOKIE, cookie)
        .header(header::HOST, "skerry.test")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    server.send(request.body(form.to_owned().into()).unwrap()).await
}

const PASSWORD: &str = "correct+horse+battery";

async fn get(server: &TestServer, path: &str, accept: &str) -> Answer {
    let request = Request::get(path).header(header::ACCEPT, accept);
    server.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn without_a_session_every_page_leads_to_the_sign_in() {
    let server = TestServer::start().await;
    for path in [
        "/",
        "/devices/dev-1",
        "/models",
        "/audit",
        "/rollouts",
        "/rollouts/1",
        "/account",
        "/users",
        "/console/events",
    ] {
        let answer = get(&server, path, "text/html").await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{path}");
        assert_eq!(answer.header("location"), "/login", "{path}");
    }
    for path in [
        "/login",
        "/assets/console.css",
        "/assets/console.js",
        "/assets/login.js",
    ] {
        assert_eq!(get(&server, path, "*/*").await.status, StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn wrong_tokens_are_refused_and_do_not_keep_a_right_one_out() {
    let server = TestServer::start().await;
    let answer = login(&server, "skp_wrong", &[]).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.header("set-cookie"), "");
    assert!(answer.body.contains("This API token is not known."));
    let mut answers = Vec::new();
    // More than twice a minute's failures: one minute may end in between.
    for _ in 0..25 {
        answers.push(login(&server, "skp_wrong", &[]).await.status);
    }
    assert!(answers.contains(&StatusCode::TOO_MANY_REQUESTS));
    let answer = login(&server, &server.token, &[]).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn a_session_ends_when_its_token_is_gone_or_at_sign_out() {
    let browser = Browser::sign_in().await;
    let csrf = browser.csrf().await;
    assert_eq!(browser.post("/logout", &csrf, &[]).await.header("location"), "/login");
    assert_eq!(browser.get("/").await.status, StatusCode::SEE_OTHER);

    let browser = Browser::sign_in().await;
    assert_eq!(browser.get("/").await.status, StatusCode::OK);
    let delete = |conn: &rusqlite::Connection| Ok::<_, DbError>(conn.execute("DELETE FROM access_tokens", [])?);
    browser.server.server.app().core.write(delete).await.unwrap();
    assert_eq!(browser.get("/").await.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn every_answer_forbids_foreign_content() {
    let browser = Browser::sign_in().await;
    for path in ["/", "/login", "/assets/console.js", "/devices/nobody", "/nowhere"] {
        let answer = browser.get(path).await;
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none';"), "{path}");
        assert!(
            policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"),
            "{path}"
        );
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("referrer-policy"), "same-origin", "{path}");
    }
    assert_eq!(browser.get("/").await.header("cache-control"), "no-store");
}

#[tokio::test]
async fn no_page_has_inline_script_or_style() {
    let browser = Browser::sign_in().await;
    browser.rollout().await;
    for path in [
        "/",
        "/devices/dev-1",
        "/models",
        "/audit",
        "/rollouts",
        "/rollouts/1",
        "/account",
        "/users",
        "/login",
        "/nowhere",
    ] {
        let page = browser.get(path).await.body;
        assert!(!page.contains("style="), "{path}");
        assert!(!page.contains("<style"), "{path}");
        assert_eq!(
            page.matches("<script").count(),
            page.matches("<script src=\"/assets/").count(),
            "{path}"
        );
    }
}

#[tokio::test]
async fn an_empty_fleet_says_what_to_do() {
    let browser = Browser::sign_in().await;
    let page = browser.get("/").await.body;
    assert!(
        page.contains("skerry device token") && page.contains("SKERRY_ENROLL_TOKEN=TOKEN skerry-agent enroll"),
        "{page}"
    );
}

#[tokio::test]
async fn a_new_devices_token_is_shown_once_with_the_line_that_installs_an_agent() {
    let browser = Browser::sign_in().await;
    assert!(browser.get("/").await.body.contains("action=\"/device-tokens\""));
    let form = format!("csrf={}&labels=site%3Dnorth&uses=2", browser.csrf().await);
    let headers = [("sec-fetch-site", "same-origin"), ("host", "192.0.2.1:8080")];
    let made = send_form(&browser.server, &browser.cookie, "/device-tokens", &form, &headers).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    assert!(
        made.body.contains("skt_") && made.body.contains("2 devices"),
        "{}",
        made.body
    );
    assert!(made.body.contains("/install.sh?token=skt_"), "{}", made.body);
    assert!(made.body.contains("There is no agent here yet"), "{}", made.body);
    assert!(
        !made.body.contains("style=") && !made.body.contains("<style"),
        "{}",
        made.body
    );
    assert!(!browser.get("/").await.body.contains("skt_"));
    for refused in ["labels=&uses=0", "labels=%3Cscript%3E&uses=1"] {
        let answer = browser.fill("/device-tokens", refused).await;
        assert!(answer.status.is_client_error(), "{refused}: {}", answer.status);
    }
    let viewer = browser.server.token_of(Role::Viewer).await;
    let viewer = Browser::sign_in_to(Arc::clone(&browser.server), &format!("token={viewer}")).await;
    assert!(!viewer.get("/").await.body.contains("action=\"/device-tokens\""));
    let answer = viewer.fill("/device-tokens", "labels=&uses=1").await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn the_fleet_page_shows_what_devices_run() {
    let browser = Browser::sign_in().await;
    browser.server.enroll("dev-1", &[("site", "north")]).await;
    browser.server.enroll("dev-2", &[]).await;
    browser.report("dev-1", |_| ()).await;
    let page = browser.get("/").await.body;
    assert!(page.contains("motion <b>v7</b>"), "{page}");
    assert!(page.contains("site=north") && page.contains("dev-2"), "{page}");

    let filtered = browser.get("/?selector=site%3Dnorth").await.body;
    assert!(filtered.contains("dev-1") && !filtered.contains("dev-2"), "{filtered}");
    let refused = browser.get("/?selector=%3Cscript%3E").await.body;
    assert!(
        refused.contains("is no label selector") && !refused.contains("<script>"),
        "{refused}"
    );
    let device = browser.get("/devices/dev-1").await.body;
    assert!(device.contains("motion") && device.contains("current"), "{device}");
    assert_eq!(browser.get("/devices/nobody").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_page_of_a_device_shows_its_alarms_and_what_is_wrong_with_its_identity() {
    let browser = Browser::sign_in().await;
    browser.server.enroll("dev-1", &[]).await;
    browser.report("dev-1", |_| ()).await;
    let words = [
        "stale_metadata",
        "time_untrusted",
        "the timestamp is of yesterday",
        "Two agents as one",
        "Two agents, one identity",
        "revoked ",
    ];
    let quiet = browser.get("/devices/dev-1").await.body;
    for word in words {
        assert!(!quiet.contains(word), "{word}: {quiet}");
    }
    let alarm = |code: &str| json!({"code": code, "message": "&"});
    browser
        .report("dev-1", |reported| {
            reported["seq"] = json!(2);
            reported["alarms"] = json!([alarm("stale_metadata"), alarm("time_untrusted")]);
            reported["update"]["waits"] = json!({"code": "expired", "message": "the timestamp is of yesterday"});
        })
        .await;
    let core = &browser.server.server.app().core;
    devices::record_duplicate(core, &"dev-1".parse().unwrap(), now_ms())
        .await
        .unwrap();
    let alarmed = browser.get("/devices/dev-1").await.body;
    for word in &words[..5] {
        assert!(alarmed.contains(word), "{word}: {alarmed}");
    }
    let answer = browser.server.api("POST", "/api/v1/devices/dev-1/revoke", "").await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let revoked = browser.get("/devices/dev-1").await.body;
    assert!(revoked.contains("revoked ") && revoked.contains("Revoked"), "{revoked}");
}

#[tokio::test]
async fn hostile_words_stay_words() {
    let hostile = "<script>alert(1)</script>\"'&";
    let browser = Browser::sign_in().await;
    browser.rollout().await;
    let failed = |reported: &mut Value| {
        let error = json!({"code": hostile, "message": hostile});
        reported["refused"] = error.clone();
        reported["agent"]["version"] = hostile.into();
        reported["agent"]["inference_address"] = hostile.into();
        reported["outcomes"] = json!([{"generation": 1, "model": "motion", "version": 2, "rollout": 1, "wire_bytes": 1,
            "result": {"kind": "failed", "error": error}}]);
    };
    browser.report("dev-1", failed).await;
    let labels = json!({hostile: hostile}).to_string();
    let spoil = move |conn: &rusqlite::Connection| {
        conn.execute("UPDATE devices SET labels = ?1", [&labels])?;
        conn.execute("UPDATE models SET description = ?1", [hostile])?;
        conn.execute("UPDATE model_versions SET description = ?1", [hostile])?;
        Ok::<_, DbError>(())
    };
    browser.server.server.app().core.write(spoil).await.unwrap();
    browser
        .server
        .server
        .app()
        .changes
        .send(Change::Device("dev-1".parse().unwrap()));
    for path in ["/", "/devices/dev-1", "/models", "/rollouts", "/rollouts/1"] {
        let answer = browser.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert!(!answer.body.contains("<script>"), "{path}: {}", answer.body);
        assert!(!answer.body.contains("\"'&\""), "{path}: {}", answer.body);
    }
    assert!(
        browser
            .get("/devices/dev-1")
            .await
            .body
            .contains("&#60;script&#62;alert(1)")
    );
}

#[tokio::test]
async fn a_rollout_is_paused_only_from_its_own_page() {
    let browser = Browser::sign_in().await;
    browser.rollout().await;
    let csrf = browser.csrf().await;
    let foreign = [
        (csrf.as_str(), "origin", "http://evil.test"),
        (csrf.as_str(), "origin", "null"),
        (csrf.as_str(), "sec-fetch-site", "cross-site"),
        (csrf.as_str(), "sec-fetch-site", "same-site"),
        ("", "origin", "http://skerry.test"),
        ("0123", "sec-fetch-site", "same-origin"),
    ];
    for (csrf, name, value) in foreign {
        let answer = browser.post("/rollouts/1/abort", csrf, &[(name, value)]).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{name}: {value}");
    }
    let state = async || browser.server.api("GET", "/api/v1/rollouts/1", "").await.json()["state"].clone();
    assert_ne!(state().await, "stopping");

    let own = [("origin", "http://skerry.test")];
    let answer = browser.post("/rollouts/1/pause", &csrf, &own).await;
    assert_eq!(answer.header("location"), "/rollouts/1", "{}", answer.body);
    assert_eq!(state().await, "paused");
    let page = browser.get("/rollouts/1").await.body;
    assert!(
        page.contains("paused by an operator") && page.contains("Resume"),
        "{page}"
    );
    let answer = browser.post("/rollouts/2/pause", &csrf, &own).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn another_site_cannot_sign_a_browser_in() {
    let server = TestServer::start().await;
    let answer = login(&server, &server.token, &[("origin", "http://evil.test")]).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    let answer = login(&server, &server.token, &[("sec-fetch-site", "same-origin")]).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn the_models_page_tells_published_from_registered() {
    let browser = Browser::sign_in().await;
    assert!(browser.get("/models").await.body.contains("skerry model register"));
    browser.server.publish("motion", 2).await;
    let page = browser.get("/models").await.body;
    assert!(page.contains("Published") && page.contains("2000.0 kB for all platforms, 1500.0 kB on the wire"));
}

#[tokio::test]
async fn the_stream_tells_of_changes_and_of_its_own_gaps() {
    let browser = Browser::sign_in().await;
    let mut stream = browser.stream().await;
    assert_eq!(stream.next().await.unwrap(), "data: all\n\n");
    let changes = &browser.server.server.app().changes;
    let change = || Change::Device("dev-1".parse().unwrap());
    changes.send(change());
    assert_eq!(stream.next().await.unwrap(), "data: device:dev-1\n\n");
    // More than fit the channel, while nobody reads.
    for _ in 0..5000 {
        changes.send(change());
    }
    assert_eq!(stream.next().await.unwrap(), "data: all\n\n");
}

#[tokio::test]
async fn the_stream_ends_with_the_control_plane() {
    let browser = Browser::sign_in().await;
    let mut stream = browser.stream().await;
    stream.next().await.unwrap();
    browser.server.server.app().shutdown.cancel();
    while stream.next().await.is_some() {}
}

#[tokio::test]
async fn an_unknown_address_is_a_page_for_browsers_and_a_problem_for_programs() {
    let server = TestServer::start().await;
    let page = get(&server, "/nowhere", "text/html,*/*").await;
    assert_eq!(page.status, StatusCode::NOT_FOUND);
    assert!(page.header("content-type").starts_with("text/html"));
    for (path, accept) in [("/nowhere", "*/*"), ("/api/v1/nowhere", "text/html")] {
        let answer = get(&server, path, accept).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert_eq!(answer.header("content-type"), "application/problem+json", "{path}");
    }
}

#[tokio::test]
async fn a_user_signs_in_with_a_password_and_waits_after_wrong_ones() {
    let server = Arc::new(TestServer::start().await);
    server.token_of_user("alice", Role::Viewer).await;
    let form = format!("user=alice&password={PASSWORD}");
    let browser = Browser::sign_in_to(Arc::clone(&server), &form).await;
    assert!(browser.get("/").await.body.contains(">alice</a>"));

    let mut statuses = Vec::new();
    for _ in 0..6 {
        let answer = send_form(&server, "", "/login", "user=alice&password=wrong", &[]).await;
        assert_eq!(answer.header("set-cookie"), "");
        statuses.push(answer.status.as_u16());
    }
    assert_eq!(statuses[..5], [401; 5]);
    assert_eq!(statuses[5], 429);
    // The session that is there goes on, and tokens are let in.
    assert_eq!(browser.get("/").await.status, StatusCode::OK);
    assert_eq!(login(&server, &server.token, &[]).await.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn over_plain_http_the_cookie_is_one_that_browsers_take() {
    let server = Arc::new(TestServer::start_configured(|config| config.http_plain = true).await);
    let answer = login(&server, &server.token, &[]).await;
    let cookie = answer.header("set-cookie");
    assert!(
        cookie.starts_with("skerry_session=") && !cookie.contains("Secure"),
        "{cookie}"
    );
}

#[tokio::test]
async fn a_session_from_before_the_sign_in_is_worth_nothing_after_it() {
    let browser = Browser::sign_in().await;
    let form = format!("token={}", browser.server.token);
    let again = send_form(&browser.server, &browser.cookie, "/login", &form, &[]).await;
    assert_eq!(again.status, StatusCode::SEE_OTHER);
    assert!(!again.header("set-cookie").starts_with(&browser.cookie));
    assert_eq!(browser.get("/").await.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn a_viewer_sees_no_button_and_can_press_none() {
    let admin = Browser::sign_in().await;
    admin.rollout().await;
    let token = admin.server.token_of(Role::Viewer).await;
    let viewer = Browser::sign_in_to(Arc::clone(&admin.server), &format!("token={token}")).await;
    let button = "action=\"/rollouts/1/pause\"";
    assert!(admin.get("/rollouts/1").await.body.contains(button));
    let page = viewer.get("/rollouts/1").await.body;
    assert!(!page.contains(button) && !page.contains("/abort"), "{page}");
    assert!(!page.contains("href=\"/users\""), "{page}");
    for path in [
        "/rollouts/1/pause",
        "/rollouts/1/resume",
        "/rollouts/1/abort",
        "/rollouts/1/approve",
    ] {
        let answer = viewer.fill(path, "").await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
        assert!(
            answer.body.contains("needs the role operator"),
            "{path}: {}",
            answer.body
        );
    }
    for path in ["/users", "/users/alice/disable"] {
        assert_eq!(viewer.fill(path, "").await.status, StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(viewer.get("/users").await.status, StatusCode::FORBIDDEN);
    assert_eq!(viewer.get("/account").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_button_to_approve_is_for_somebody_else_than_the_author() {
    let production = |config: &mut Config| config.rollouts.production = Some("stage=production".parse().unwrap());
    let server = Arc::new(TestServer::start_configured(production).await);
    let alice = server.token_of_user("alice", Role::Operator).await;
    server.token_of_user("bob", Role::Operator).await;
    server.enroll("dev-1", &[("stage", "production")]).await;
    server.publish("motion", 2).await;
    let body = json!({"model": "motion", "version": 2, "groups": [{"size": "1"}]}).to_string();
    server.api_as(&alice, "POST", "/api/v1/rollouts", body).await;
    let browser =
        async |user: &str| Browser::sign_in_to(Arc::clone(&server), &format!("user={user}&password={PASSWORD}")).await;
    let (alice, bob) = (browser("alice").await, browser("bob").await);
    let page = alice.get("/rollouts/1").await.body;
    assert!(
        page.contains("must approve it") && !page.contains("/rollouts/1/approve"),
        "{page}"
    );
    assert_eq!(alice.fill("/rollouts/1/approve", "").await.status, StatusCode::CONFLICT);
    assert!(bob.get("/rollouts/1").await.body.contains("/rollouts/1/approve"));
    // Not from another site's page.
    let csrf = bob.csrf().await;
    let foreign = bob
        .post("/rollouts/1/approve", &csrf, &[("origin", "http://evil.test")])
        .await;
    assert_eq!(foreign.status, StatusCode::FORBIDDEN);
    assert_eq!(bob.fill("/rollouts/1/approve", "").await.status, StatusCode::SEE_OTHER);
    let page = bob.get("/rollouts/1").await.body;
    assert!(page.contains("<dt>Approved by</dt><dd>bob</dd>"), "{page}");
}

#[tokio::test]
async fn an_own_token_is_made_shown_once_and_revoked_on_the_account_page() {
    let server = Arc::new(TestServer::start().await);
    server.token_of_user("alice", Role::Operator).await;
    let form = format!("user=alice&password={PASSWORD}");
    let alice = Browser::sign_in_to(Arc::clone(&server), &form).await;
    let page = alice.get("/account").await.body;
    assert!(
        page.contains("<option>operator</option>") && !page.contains("<option>admin</option>"),
        "{page}"
    );
    let made = alice.fill("/account/tokens", "name=laptop&role=viewer&days=7").await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    let (_, secret) = made.body.split_once("<code>skp_").unwrap();
    let secret = format!("skp_{}", secret.split('<').next().unwrap());
    let who = server.api_as(&secret, "GET", "/api/v1/whoami", "").await.json();
    assert_eq!(who["name"], "alice/laptop");
    assert!(
        !made.body.contains("http-equiv"),
        "a page that reloads itself would lose the secret"
    );
    let page = alice.get("/account").await.body;
    let id = secret.split('_').nth(1).unwrap();
    assert!(page.contains(id) && !page.contains(&secret), "{page}");
    let more = alice.fill("/account/tokens", "name=more&role=admin&days=7").await;
    assert_eq!(more.status, StatusCode::UNPROCESSABLE_ENTITY);

    // A session of the token ends with it.
    let with_token = Browser::sign_in_to(Arc::clone(&server), &format!("token={secret}")).await;
    let mut stream = with_token.stream().await;
    stream.next().await.unwrap();
    let revoked = alice.fill(&format!("/account/tokens/{id}/revoke"), "").await;
    assert_eq!(revoked.status, StatusCode::SEE_OTHER);
    while stream.next().await.is_some() {}
    assert_eq!(with_token.get("/").await.header("location"), "/login");
}

#[tokio::test]
async fn a_new_password_takes_the_present_one_and_signs_out_everywhere() {
    let server = Arc::new(TestServer::start().await);
    server.token_of_user("alice", Role::Viewer).await;
    let form = format!("user=alice&password={PASSWORD}");
    let here = Browser::sign_in_to(Arc::clone(&server), &form).await;
    let there = Browser::sign_in_to(Arc::clone(&server), &form).await;
    let new = "password=another+horse+entirely";
    let refused = here.fill("/account/password", &format!("current=wrong&{new}")).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(there.get("/").await.status, StatusCode::OK);
    let changed = here
        .fill("/account/password", &format!("current={PASSWORD}&{new}"))
        .await;
    assert_eq!(changed.header("location"), "/login", "{}", changed.body);
    for browser in [&here, &there] {
        assert_eq!(browser.get("/").await.status, StatusCode::SEE_OTHER);
    }
    Browser::sign_in_to(server, &format!("user=alice&{new}")).await;
}

#[tokio::test]
async fn an_admin_makes_users_and_shuts_them_out_at_once() {
    let admin = Browser::sign_in().await;
    let made = admin
        .fill("/users", &format!("name=alice&role=viewer&password={PASSWORD}"))
        .await;
    assert_eq!(made.status, StatusCode::SEE_OTHER, "{}", made.body);
    let form = format!("user=alice&password={PASSWORD}");
    let alice = Browser::sign_in_to(Arc::clone(&admin.server), &form).await;
    let raised = admin.fill("/users/alice/role", "role=operator").await;
    assert_eq!(raised.status, StatusCode::SEE_OTHER);
    assert!(alice.get("/account").await.body.contains("<b>operator</b>"));
    let mut stream = alice.stream().await;
    stream.next().await.unwrap();
    assert_eq!(
        admin.fill("/users/alice/disable", "").await.status,
        StatusCode::SEE_OTHER
    );
    while stream.next().await.is_some() {}
    assert_eq!(alice.get("/").await.header("location"), "/login");
    assert!(admin.get("/users").await.body.contains("Shut out"));
    for (fields, status) in [
        ("name=Bob&role=viewer&password=", 422),
        ("name=bob&role=viewer&password=short", 422),
        ("name=alice&role=viewer&password=", 409),
        ("name=bob&role=root&password=", 400),
    ] {
        assert_eq!(admin.fill("/users", fields).await.status.as_u16(), status, "{fields}");
    }
}

#[tokio::test]
async fn the_audit_page_finds_who_did_what_and_escapes_it() {
    let browser = Browser::sign_in().await;
    let body = r#"{"name": "m", "description": "<b>bold</b>"}"#;
    assert_eq!(
        browser.server.api("POST", "/api/v1/models", body).await.status,
        StatusCode::CREATED
    );
    let page = browser.get("/audit?object=model/m").await.body;
    assert!(page.contains("model.create"), "{page}");
    assert!(!page.contains("<b>bold") && page.contains("bold"), "{page}");
    let page = browser.get("/audit?action=rollout.").await.body;
    assert!(
        page.contains("No entry matches") && !page.contains("model.create"),
        "{page}"
    );
    assert_eq!(browser.get("/audit?before=x").await.status, StatusCode::BAD_REQUEST);
}
