//! The agent's packages at the API: what is taken in, who may, and what the script and the line say.

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use skerry_shared::digest::Digest;

use crate::{
    access::Role,
    test_server::{Answer, TestServer},
};

const DEB: &[u8] = b"!<arch>\na package";

async fn publish(server: &TestServer, file: &str, content: &'static [u8]) -> Answer {
    let path = format!("/api/v1/agent-packages/{file}");
    server.api("POST", &path, content).await
}

/// A call of a device that has no identity yet.
async fn anybody(server: &TestServer, path: &str) -> Answer {
    let request = Request::get(path).header("host", "192.0.2.1:8080");
    server.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_package_is_handed_out_byte_for_byte_and_the_next_one_takes_its_place() {
    let server = TestServer::start().await;
    let answer = publish(&server, "skerry-agent_0.1.0-1_arm64.deb", DEB).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.body);
    assert_eq!(answer.json()["digest"], Digest::of(DEB).to_string());
    let got = anybody(&server, "/agent-packages/skerry-agent_0.1.0-1_arm64.deb").await;
    assert_eq!(got.body.as_bytes(), DEB);

    publish(&server, "skerry-agent_0.2.0-1_arm64.deb", b"!<arch>\nthe next").await;
    let gone = anybody(&server, "/agent-packages/skerry-agent_0.1.0-1_arm64.deb").await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
    let list = server.api("GET", "/api/v1/agent-packages", "").await.json();
    assert_eq!(list["packages"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(list["packages"][0]["version"], "0.2.0-1");
}

#[tokio::test]
async fn what_is_no_package_is_refused_and_so_is_whoever_is_no_admin() {
    let server = TestServer::start().await;
    for (file, content) in [
        ("skerry-agent_0.1.0-1_sparc.deb", DEB),
        ("other_0.1.0-1_arm64.deb", DEB),
        ("skerry-agent_0.1.0-1_arm64.deb", b"a script".as_slice()),
        ("skerry-agent-0.1.0-aarch64-unknown-linux-gnu.tar.gz", DEB),
    ] {
        let answer = publish(&server, file, content).await;
        assert_eq!(
            answer.status,
            StatusCode::UNPROCESSABLE_ENTITY,
            "{file}: {}",
            answer.body
        );
    }
    let operator = server.token_of(Role::Operator).await;
    let path = "/api/v1/agent-packages/skerry-agent_0.1.0-1_arm64.deb";
    let answer = server.api_as(&operator, "POST", path, DEB).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.body);
    let list = server.api_as(&operator, "GET", "/api/v1/agent-packages", "").await;
    assert_eq!(list.json()["packages"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn the_script_names_every_package_by_its_digest_and_trusts_the_fleets_authority() {
    let server = TestServer::start().await;
    publish(&server, "skerry-agent_0.1.0-1_arm64.deb", DEB).await;
    let script = anybody(&server, "/install.sh?token=skt_a.b.c").await;
    assert_eq!(script.header("cache-control"), "no-store");
    let row = format!(
        "arm64 deb skerry-agent_0.1.0-1_arm64.deb {} {}",
        DEB.len(),
        Digest::of(DEB).to_hex()
    );
    for text in [&row, "SERVER='https://192.0.2.1:8080'", "TOKEN='skt_a.b.c'"] {
        assert!(script.body.contains(text), "{text}: {}", script.body);
    }
    let anchor = anybody(&server, "/install.pem").await.body;
    assert_eq!(anchor, server.server.app().certificates.authority().pem());
    assert!(script.body.contains(anchor.trim()), "{}", script.body);
    let refused = anybody(&server, "/install.sh?token=%27;reboot;%27").await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn a_new_token_comes_with_the_line_that_installs_an_agent() {
    let server = TestServer::start().await;
    let request = Request::post("/api/v1/device-tokens")
        .header("authorization", format!("Bearer {}", server.token))
        .header("content-type", "application/json")
        .header("host", "192.0.2.1:8080");
    let answer = server.send(request.body(Body::from("{}")).unwrap()).await.json();
    let anchor = anybody(&server, "/install.pem").await.body;
    let line = answer["install_line"].as_str().unwrap();
    let token = answer["token"].as_str().unwrap();
    assert!(line.contains(&Digest::of(anchor.as_bytes()).to_hex()), "{line}");
    let script = format!("'https://192.0.2.1:8080/install.sh?token={token}'");
    assert!(line.contains(&script), "{line}");

    let plain = TestServer::start_configured(|config| config.http_plain = true).await;
    let answer = plain.api("POST", "/api/v1/device-tokens", "{}").await.json();
    assert!(answer["install_line"].is_null(), "{answer}");
}
