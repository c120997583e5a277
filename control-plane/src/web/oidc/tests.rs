//! Signing in through a provider as a browser does it, against a small one over real HTTP with real signatures.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, task::Poll};

use axum::{
    body::Body,
    http::{Request, StatusCode, header},
};
use openidconnect::url::Url;
use serde_json::{Value, json};

use super::fake::{Provider, new_key, signed};
use crate::{
    access::{
        self, Role, User, UserChange,
        oidc::{Oidc, OidcConfig, OidcError},
    },
    app::now_ms,
    audit::By,
    test_server::{Answer, TestServer},
};

const CLIENT: &str = "skerry";

struct World {
    provider: Provider,
    server: TestServer,
}

/// A sign-in that has begun: what stands in the address that the browser was sent to, and its cookie.
struct Begun {
    state: String,
    nonce: String,
    challenge: String,
    cookie: String,
}

fn cookie_of(answer: &Answer) -> String {
    answer.header("set-cookie").split(';').next().unwrap().to_owned()
}

fn config(issuer: &str) -> OidcConfig {
    OidcConfig {
        issuer: issuer.to_owned(),
        client_id: CLIENT.to_owned(),
        client_secret_file: None,
        redirect_url: "https://skerry.test/login/oidc/callback".to_owned(),
        groups_claim: "groups".to_owned(),
        roles: BTreeMap::from([("staff".to_owned(), Role::Viewer), ("fleet".to_owned(), Role::Operator)]),
        ca_file: "/nowhere".into(),
    }
}

impl World {
    async fn start() -> World {
        let provider = Provider::start().await;
        let oidc = config(provider.issuer());
        let server = TestServer::start_configured(|config| config.oidc = Some(oidc)).await;
        World { provider, server }
    }

    async fn get(&self, path: &str, cookie: &str) -> Answer {
        let request = Request::get(path).header(header::COOKIE, cookie);
        self.server.send(request.body(Body::empty()).unwrap()).await
    }

    async fn begin(&self) -> Begun {
        let answer = self.get("/login/oidc", "").await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.body);
        let cookie = answer.header("set-cookie");
        for attribute in ["__Host-skerry_oidc=", "HttpOnly", "Secure", "SameSite=Lax", "Path=/;"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        let url = Url::parse(answer.header("location")).unwrap();
        assert_eq!(url.path(), "/authorize");
        let field = |name: &str| {
            let found = url.query_pairs().find(|(key, _)| key == name);
            found.unwrap().1.into_owned()
        };
        assert_eq!(field("response_type"), "code");
        assert_eq!(field("code_challenge_method"), "S256");
        Begun {
            state: field("state"),
            nonce: field("nonce"),
            challenge: field("code_challenge"),
            cookie: cookie_of(&answer),
        }
    }

    /// The claims of a good token for Ada.
    fn claims(&self, begun: &Begun, groups: &[&str]) -> Value {
        let now = now_ms() / 1000;
        json!({
            "iss": self.provider.issuer(), "aud": CLIENT, "sub": "u-1", "nonce": begun.nonce, "iat": now, "exp": now + 300,
            "preferred_username": "Ada", "groups": groups,
        })
    }

    /// The browser comes back, and the provider has a token of these claims for it.
    async fn come_back(&self, begun: &Begun, claims: &Value) -> Answer {
        let token = signed(self.provider.key(), claims);
        self.provider.hand_out("code", &begun.challenge, token);
        self.return_with(begun, "code").await
    }

    async fn return_with(&self, begun: &Begun, code: &str) -> Answer {
        let path = format!("/login/oidc/callback?state={}&code={code}", begun.state);
        self.get(&path, &begun.cookie).await
    }

    async fn sign_in(&self, groups: &[&str]) -> Answer {
        let begun = self.begin().await;
        let claims = self.claims(&begun, groups);
        self.come_back(&begun, &claims).await
    }

    async fn users(&self) -> Vec<User> {
        access::users(&self.server.server.app().core).await.unwrap()
    }

    async fn disable(&self, name: &str) {
        let change = UserChange {
            role: None,
            disabled: Some(true),
        };
        let by = By::new("test", now_ms());
        access::change_user(&self.server.server.app().core, name.parse().unwrap(), change, by)
            .await
            .unwrap();
    }

    async fn audit_log(&self) -> String {
        self.server.api("GET", "/api/v1/audit", "").await.body
    }
}

fn assert_refused(answer: &Answer, why: &str) {
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.body);
    assert!(answer.body.contains(why), "{why}: {}", answer.body);
    assert_eq!(answer.header("set-cookie"), "");
}

#[tokio::test]
async fn a_good_sign_in_makes_a_user_with_the_largest_role_of_its_groups_and_a_session() {
    let world = World::start().await;
    let answer = world.sign_in(&["staff", "fleet", "chess"]).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let cookie = answer.header("set-cookie");
    assert!(cookie.starts_with("__Host-skerry_session="), "{cookie}");
    assert!(cookie.contains("SameSite=Strict"), "{cookie}");
    let fleet = world.get("/", &cookie_of(&answer)).await;
    assert_eq!(fleet.status, StatusCode::OK);
    let users = world.users().await;
    assert_eq!(users.len(), 1);
    assert_eq!((users[0].name.as_str(), users[0].role), ("ada", Role::Operator));
    assert!(!users[0].has_password);
    let log = world.audit_log().await;
    assert!(log.contains("\"sign-in\"") && log.contains("\"user.create\""), "{log}");
}

#[tokio::test]
async fn a_token_that_is_not_for_this_sign_in_is_refused() {
    let world = World::start().await;
    let past = now_ms() / 1000 - 60;
    let wrong = [
        ("nonce", json!("another")),
        ("nonce", Value::Null),
        ("aud", json!("another")),
        ("aud", json!([CLIENT, "another"])),
        ("iss", json!("http://127.0.0.1:1")),
        ("exp", json!(past)),
    ];
    for (claim, value) in wrong {
        let begun = world.begin().await;
        let mut claims = world.claims(&begun, &["staff"]);
        claims[claim] = value;
        let answer = world.come_back(&begun, &claims).await;
        assert_refused(&answer, "provider");
    }
    assert_eq!(world.users().await, []);
}

#[tokio::test]
async fn a_token_with_another_key_or_none_is_refused() {
    let world = World::start().await;
    let begun = world.begin().await;
    let claims = world.claims(&begun, &["staff"]);
    world
        .provider
        .hand_out("code", &begun.challenge, signed(&new_key(), &claims));
    assert_refused(&world.return_with(&begun, "code").await, "provider");

    let begun = world.begin().await;
    let good = signed(world.provider.key(), &world.claims(&begun, &["staff"]));
    let (_, rest) = good.split_once('.').unwrap();
    let (payload, _) = rest.split_once('.').unwrap();
    // {"alg":"none"}
    let unsigned = format!("eyJhbGciOiJub25lIn0.{payload}.");
    world.provider.hand_out("code", &begun.challenge, unsigned);
    assert_refused(&world.return_with(&begun, "code").await, "provider");
    assert_eq!(world.users().await, []);
}

#[tokio::test]
async fn who_is_in_no_group_with_a_role_is_refused_and_stands_in_the_audit_log() {
    let world = World::start().await;
    for groups in [&["chess"][..], &[]] {
        assert_refused(&world.sign_in(groups).await, "no group");
    }
    assert_eq!(world.users().await, []);
    let log = world.audit_log().await;
    assert!(log.contains("\"sign-in.refused\"") && log.contains("user/ada"), "{log}");
}

#[tokio::test]
async fn a_state_is_good_once_and_only_for_the_browser_that_began() {
    let world = World::start().await;
    let begun = world.begin().await;
    let claims = world.claims(&begun, &["staff"]);
    let first = world.come_back(&begun, &claims).await;
    assert_eq!(first.status, StatusCode::OK, "{}", first.body);
    assert_refused(&world.come_back(&begun, &claims).await, "not begun here");

    let theirs = world.begin().await;
    let mine = world.begin().await;
    let mixed = Begun {
        cookie: mine.cookie,
        ..theirs
    };
    let claims = world.claims(&mixed, &["staff"]);
    assert_refused(&world.come_back(&mixed, &claims).await, "not begun here");
    let bare = Begun {
        cookie: String::new(),
        ..mixed
    };
    assert_refused(&world.come_back(&bare, &claims).await, "not begun here");
}

#[tokio::test]
async fn a_code_of_another_sign_in_is_worth_nothing() {
    let world = World::start().await;
    let (theirs, mine) = (world.begin().await, world.begin().await);
    // Even with my nonce in it: the provider gives it for their verifier only.
    let token = signed(world.provider.key(), &world.claims(&mine, &["staff"]));
    world.provider.hand_out("theirs", &theirs.challenge, token);
    assert_refused(&world.return_with(&mine, "theirs").await, "provider");
    let mine = world.begin().await;
    assert_refused(&world.return_with(&mine, "").await, "has not signed you in");
}

#[tokio::test]
async fn a_role_follows_the_groups_and_who_is_shut_out_stays_out() {
    let world = World::start().await;
    world.sign_in(&["fleet"]).await;
    let answer = world.sign_in(&["staff"]).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert_eq!(world.users().await[0].role, Role::Viewer);
    world.disable("ada").await;
    assert_refused(&world.sign_in(&["fleet"]).await, "shut out");
    assert_eq!(world.users().await[0].role, Role::Viewer);
    let page = world.get("/", &cookie_of(&answer)).await;
    assert_eq!(page.header("location"), "/login");
}

#[tokio::test]
async fn a_person_of_the_provider_never_becomes_a_user_that_was_made_here() {
    let world = World::start().await;
    world.server.token_of_user("ada", Role::Admin).await;
    assert_refused(&world.sign_in(&["staff"]).await, "another user");
    let begun = world.begin().await;
    let mut claims = world.claims(&begun, &["staff"]);
    // An address that nobody has checked is no name.
    claims["preferred_username"] = Value::Null;
    claims["email"] = json!("bob@example.org");
    assert_refused(&world.come_back(&begun, &claims).await, "no name");
    let begun = world.begin().await;
    claims["nonce"] = json!(begun.nonce);
    claims["email_verified"] = json!(true);
    let answer = world.come_back(&begun, &claims).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let names: Vec<String> = world
        .users()
        .await
        .into_iter()
        .map(|user| user.name.to_string())
        .collect();
    assert_eq!(names, ["ada", "bob@example.org"]);
}

#[tokio::test]
async fn the_sign_in_page_names_the_provider_only_where_there_is_one() {
    let world = World::start().await;
    assert!(world.get("/login", "").await.body.contains("href=\"/login/oidc\""));
    let without = TestServer::start().await;
    let get = |path: &str| without.send(Request::get(path).body(Body::empty()).unwrap());
    assert!(!get("/login").await.body.contains("/login/oidc"));
    assert_eq!(get("/login/oidc").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn whoever_begins_sign_ins_without_end_keeps_out_nobody_else() {
    // It takes connections and never answers.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let issuer = format!("http://{}", silent.local_addr().unwrap());
    let oidc = Arc::new(Oidc::new(config(&issuer)).unwrap());
    let begin = |address: &str| {
        let network = address.parse::<IpAddr>().unwrap().into();
        let oidc = Arc::clone(&oidc);
        Box::pin(async move { oidc.begin(network, now_ms()).await })
    };
    let mut flood: Vec<_> = (0..4).map(|_| begin("192.0.2.1")).collect();
    let mut refused = 0;
    for sign_in in &mut flood {
        match futures_util::poll!(sign_in) {
            Poll::Ready(Err(OidcError::Busy)) => refused += 1,
            Poll::Ready(_) => panic!("nobody answers there"),
            Poll::Pending => {}
        }
    }
    assert_eq!(refused, 1);
    assert!(futures_util::poll!(begin("192.0.2.2")).is_pending());
    // The calls under way end with it.
    drop(silent);
}
