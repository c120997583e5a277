//! The edge against a real broker.

use std::net::SocketAddr;

use rumqttc::{ConnectionError, LastWill};
use serde_json::json;
use skerry_broker::{Broker, BrokerConfig, Limits};
use skerry_shared::{
    desired::Status,
    dsse::{Envelope as DsseEnvelope, Signers},
    time::{NONCE_BYTES, Nonce, TIME_PAYLOAD_TYPE, TimeAnswer},
};
use tokio::sync::broadcast::error::RecvError;

use super::*;
use crate::{
    config::{BrokerAccess, Mqtt},
    db::DbError,
    devices::Device,
    test_server::TestServer,
};

/// A port where nobody listens.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A control plane that looks for its broker at a port.
async fn server(port: u16) -> TestServer {
    let mqtt = Mqtt::External {
        host: "127.0.0.1".to_owned(),
        port,
        access: BrokerAccess::Plain {
            username: CONTROL_PLANE.to_owned(),
            password: String::new(),
        },
    };
    TestServer::start_with(mqtt).await
}

async fn broker(app: &App, port: u16) -> Broker {
    let config = BrokerConfig {
        bind: SocketAddr::from(([127, 0, 0, 1], port)),
        storage: None,
        tls: None,
        limits: Limits::default(),
    };
    let hooks = BrokerHooks::new(app.core.clone(), Proof::None);
    Broker::start(config, Arc::new(hooks)).await.unwrap()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, future).await.expect("nothing came in time")
}

/// Waits until the device is as it should be: looks whenever something has changed.
async fn until(app: &App, id: &str, is: impl Fn(&Device) -> bool) -> Device {
    let id = id.parse().unwrap();
    let mut changes = app.changes.subscribe();
    let wait = async {
        loop {
            let device = devices::get(&app.core, &id).await.unwrap();
            if is(&device) {
                return device;
            }
            assert_ne!(changes.recv().await, Err(RecvError::Closed));
        }
    };
    soon(wait).await
}

/// An agent's connection, without the agent.
struct Link {
    id: DeviceId,
    requests: AsyncClient,
    events: EventLoop,
}

impl Link {
    async fn connect(address: SocketAddr, id: &str) -> Link {
        Link::try_connect(address, id, None).await.unwrap()
    }

    async fn try_connect(
        address: SocketAddr,
        id: &str,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Link, ConnectionError> {
        let id: DeviceId = id.parse().unwrap();
        let mut options = MqttOptions::new(id.as_str(), address.ip().to_string(), address.port());
        if let Some(tls) = tls {
            options.set_transport(Transport::Tls(TlsConfiguration::Rustls(tls)));
        }
        let will = Topic::Device(id.clone(), Channel::Status).to_string();
        options.set_last_will(LastWill::new(will, status(false), QoS::AtLeastOnce, true));
        let (requests, mut events) = AsyncClient::new(options, 16);
        while !matches!(soon(events.poll()).await?, Event::Incoming(Incoming::ConnAck(_))) {}
        Ok(Link { id, requests, events })
    }

    /// Publishes, and waits for the broker's word.
    async fn publish(&mut self, channel: Channel, retain: bool, payload: Vec<u8>) {
        let topic = Topic::Device(self.id.clone(), channel).to_string();
        self.requests
            .publish(topic, QoS::AtLeastOnce, retain, payload)
            .await
            .unwrap();
        while !matches!(
            soon(self.events.poll()).await.unwrap(),
            Event::Incoming(Incoming::PubAck(_))
        ) {}
    }
}

fn status(online: bool) -> Vec<u8> {
    let status = Status {
        schema: SchemaVersion::CURRENT,
        boot_id: "00000000000000000000000000000001".parse().unwrap(),
        online,
    };
    status.to_json()
}

fn report(id: &str, seq: u64, generation: u64) -> Vec<u8> {
    let report = json!({
        "schema": "1.0", "device": id, "boot_id": "00000000000000000000000000000001", "seq": seq,
        "device_time_ms": 5, "generation": generation,
        "agent": {"version": "0.1.0", "platform": "pulley64"}, "update": {"state": "idle"}, "bundles": [],
    });
    report.to_string().into_bytes()
}

#[tokio::test]
async fn requests_of_an_outage_do_not_keep_the_subscriptions_out() {
    let server = server(free_port()).await;
    server.enroll("d-1", &[]).await;
    let app = server.server.app();
    let port = free_port();
    let (client, events) = client(Connection {
        host: "127.0.0.1".to_owned(),
        port,
        security: Security::Plain(None),
        admitted: None,
    });
    while client
        .try_publish("skerry/v1/d/d-1/chunk", QoS::AtMostOnce, false, "old")
        .is_ok()
    {}
    let (mut tasks, shutdown) = (JoinSet::new(), CancellationToken::new());
    spawn_around(&mut tasks, app, client, events, None, &shutdown);
    let broker = broker(app, port).await;
    let mut link = Link::connect(broker.local_addr(), "d-1").await;
    link.publish(Channel::Status, true, status(true)).await;
    until(app, "d-1", |device| device.connected).await;
}

#[tokio::test]
async fn a_control_plane_that_finds_its_broker_late_says_all_and_hears_all() {
    let port = free_port();
    let server = server(port).await;
    let app = server.server.app();
    server.enroll("d-1", &[]).await;
    let more = REQUESTS + 50;
    let insert = move |conn: &rusqlite::Connection| -> Result<(), DbError> {
        conn.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO devices (id, labels, platform, agent_version, public_key, enrolled_at_ms, generation)
             SELECT 'm-' || i, '{}', 'aarch64-unknown-linux-gnu', '', '', 0, 1 FROM n",
            [more as i64],
        )?;
        Ok(())
    };
    app.core.write(insert).await.unwrap();
    app.desired_changed.notify_one();
    let broker = broker(app, port).await;
    let mut link = Link::connect(broker.local_addr(), "d-1").await;
    link.publish(Channel::Status, true, status(true)).await;
    let mut changes = app.changes.subscribe();
    until(app, "d-1", |device| device.connected).await;
    let all_said = async {
        while !app.core.read(store::unpublished).await.unwrap().is_empty() {
            assert_ne!(changes.recv().await, Err(RecvError::Closed));
        }
    };
    soon(all_said).await;
}

#[tokio::test]
async fn telemetry_shows_that_a_device_is_there() {
    let server = TestServer::start().await;
    server.enroll("d-1", &[]).await;
    let app = server.server.app();
    let tls = server.device_tls("d-1").await;
    let address = server.server.mqtt_address().unwrap();
    let mut link = Link::try_connect(address, "d-1", Some(tls)).await.unwrap();
    link.publish(Channel::Status, true, status(true)).await;
    until(app, "d-1", |device| device.connected).await;
    let forget = |conn: &rusqlite::Connection| -> Result<(), DbError> {
        conn.execute("UPDATE devices SET last_seen_at_ms = NULL", [])?;
        Ok(())
    };
    app.core.write(forget).await.unwrap();
    link.publish(Channel::Telemetry, false, b"of an unknown format".to_vec())
        .await;
    until(app, "d-1", |device| device.last_seen_at_ms.is_some()).await;
}

#[tokio::test]
async fn what_the_broker_remembers_of_a_device_does_not_show_that_it_is_there() {
    let port = free_port();
    let server = server(port).await;
    let app = server.server.app();
    server.enroll("d-1", &[]).await;
    let broker = broker(app, port).await;
    let mut changes = app.changes.subscribe();
    let mut heard = async || {
        let this = Change::Device("d-1".parse().unwrap());
        soon(async { while changes.recv().await.unwrap() != this {} }).await;
    };
    let mut link = Link::connect(broker.local_addr(), "d-1").await;
    // When its status is known, its reports are subscribed to: the next one comes as it is published.
    link.publish(Channel::Status, true, status(true)).await;
    heard().await;
    link.publish(Channel::Reported, true, report("d-1", 1, 0)).await;
    heard().await;
    let at_ms = until(app, "d-1", |_| true).await.last_seen_at_ms;
    assert!(at_ms.is_some());
    let (mut tasks, shutdown) = (JoinSet::new(), CancellationToken::new());
    let again = Connection {
        host: "127.0.0.1".to_owned(),
        port,
        security: Security::Plain(None),
        admitted: None,
    };
    spawn(&mut tasks, app, again, &shutdown);
    heard().await;
    heard().await;
    let device = until(app, "d-1", |_| true).await;
    assert_eq!(device.last_seen_at_ms, at_ms);
}

#[tokio::test]
async fn a_device_that_a_crash_cut_off_is_not_believed_to_be_online() {
    // Nothing answers there: no connection of its own interferes.
    let server = server(free_port()).await;
    let app = server.server.app();
    for id in ["d-1", "d-2"] {
        server.enroll(id, &[]).await;
    }
    let admitted = Arc::new(Admitted::default());
    admitted.add("d-2".parse().unwrap());
    let mut desk = StateDesk::new(Arc::clone(app), Some(admitted), Arc::default());
    for id in ["d-1", "d-2"] {
        let mut publish = Publish::new("t", QoS::AtLeastOnce, status(true));
        publish.retain = true;
        desk.hear(id.parse().unwrap(), Channel::Status, &publish).await;
    }
    let connected = async |id: &str| until(app, id, |_| true).await.connected;
    assert!(!connected("d-1").await);
    assert!(connected("d-2").await);
}

/// A report of generation 0 comes from a device that was told generation 1 some time ago: is that published again?
async fn is_told_again(told_ago: Duration, retained: bool) -> bool {
    let server = server(free_port()).await;
    let app = server.server.app();
    server.enroll("d-1", &[]).await;
    let id: DeviceId = "d-1".parse().unwrap();
    let publish = |conn: &rusqlite::Connection| -> Result<(), DbError> {
        conn.execute("UPDATE devices SET generation = 1, published_generation = 1", [])?;
        Ok(())
    };
    app.core.write(publish).await.unwrap();
    let told = Arc::new(Told::default());
    told.note(&id, Instant::now() - told_ago);
    let mut publish = Publish::new("t", QoS::AtLeastOnce, report("d-1", 1, 0));
    publish.retain = retained;
    let mut desk = StateDesk::new(Arc::clone(app), None, told);
    desk.hear(id, Channel::Reported, &publish).await;
    !app.core.read(store::unpublished).await.unwrap().is_empty()
}

#[tokio::test]
async fn a_device_that_is_behind_is_told_again() {
    assert!(is_told_again(Duration::from_secs(60), false).await);
    assert!(!is_told_again(Duration::ZERO, false).await);
    assert!(!is_told_again(Duration::from_secs(60), true).await);
}

#[tokio::test]
async fn a_certificate_opens_the_broker_for_its_own_device_only() {
    let server = TestServer::start().await;
    for id in ["d-1", "d-2"] {
        server.enroll(id, &[]).await;
    }
    let address = server.server.mqtt_address().unwrap();
    let first = server.device_tls("d-1").await;
    let connects =
        async |id: &str, tls: Option<&Arc<ClientConfig>>| Link::try_connect(address, id, tls.cloned()).await.is_ok();
    assert!(connects("d-1", Some(&first)).await);
    for other in ["d-2", "d-3", CONTROL_PLANE] {
        let refused = Link::try_connect(address, other.trim_end(), Some(first.clone()))
            .await
            .err();
        assert!(
            matches!(refused, Some(ConnectionError::ConnectionRefused(_))),
            "{other}: {refused:?}"
        );
    }
    assert!(!connects("d-1", None).await, "without TLS");
    // A second certificate for the same id, of another key: only the newest key counts.
    let second = server.device_tls("d-1").await;
    assert!(connects("d-1", Some(&second)).await);
    assert!(!connects("d-1", Some(&first)).await);
}

#[tokio::test]
async fn a_certificate_of_another_fleet_is_refused_by_the_broker() {
    let (server, other) = (TestServer::start().await, TestServer::start().await);
    for server in [&server, &other] {
        server.enroll("d-1", &[]).await;
    }
    let own = server.device_tls("d-1").await;
    let foreign = other.device_tls("d-1").await;
    let mut mixed = (*own).clone();
    mixed.client_auth_cert_resolver = Arc::clone(&foreign.client_auth_cert_resolver);
    let address = server.server.mqtt_address().unwrap();
    assert!(Link::try_connect(address, "d-1", Some(own)).await.is_ok());
    assert!(Link::try_connect(address, "d-1", Some(Arc::new(mixed))).await.is_err());
    assert!(
        Link::try_connect(address, "d-1", Some(foreign)).await.is_err(),
        "nor does it trust the broker"
    );
}

#[tokio::test]
async fn revoking_a_device_ends_its_connection_and_keeps_it_out() {
    let server = TestServer::start().await;
    for id in ["d-1", "d-2"] {
        server.enroll(id, &[]).await;
    }
    let app = server.server.app();
    let address = server.server.mqtt_address().unwrap();
    let (first, second) = (server.device_tls("d-1").await, server.device_tls("d-2").await);
    let mut link = Link::try_connect(address, "d-1", Some(first.clone())).await.unwrap();
    let mut other = Link::try_connect(address, "d-2", Some(second)).await.unwrap();
    link.publish(Channel::Status, true, status(true)).await;
    until(app, "d-1", |device| device.connected).await;
    let answer = server.api("POST", "/api/v1/devices/d-1/revoke", "").await;
    assert_eq!(answer.status, axum::http::StatusCode::OK, "{}", answer.body);
    assert!(answer.json()["revoked_at_ms"].is_u64());
    let ended = async { while link.events.poll().await.is_ok() {} };
    soon(ended).await;
    until(app, "d-1", |device| !device.connected).await;
    let back = Link::try_connect(address, "d-1", Some(first)).await.err();
    assert!(matches!(back, Some(ConnectionError::ConnectionRefused(_))), "{back:?}");
    other.publish(Channel::Status, true, status(true)).await;
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate_and_the_renewed_one_opens_another() {
    let server = TestServer::start().await;
    server.enroll("d-1", &[]).await;
    let address = server.server.mqtt_address().unwrap();
    // It has some seconds left: enough to connect on a machine with much to do.
    let life_ms = server.server.app().config.tls.device_life.as_millis() as u64;
    let (old, _) = server.device_certificate("d-1", now_ms() - life_ms + 5000).await;
    let mut link = Link::try_connect(address, "d-1", Some(Arc::new(old))).await.unwrap();
    link.publish(Channel::Status, true, status(true)).await;
    let ended = async { while link.events.poll().await.is_ok() {} };
    soon(ended).await;
    let renewed = server.device_tls("d-1").await;
    assert!(Link::try_connect(address, "d-1", Some(renewed)).await.is_ok());
}

/// A question of this device; each has a nonce of its own.
fn question(nonce: u8) -> TimeRequest {
    TimeRequest {
        schema: SchemaVersion::CURRENT,
        nonce: Nonce::new([nonce; NONCE_BYTES]),
    }
}

/// The answer in a message, by the key that the root names for times.
fn told(app: &App, payload: &[u8]) -> TimeAnswer {
    let keys = app.keys.current().root().time_keys().unwrap();
    let key = |bytes: [u8; 32]| ed25519_dalek::VerifyingKey::from_bytes(&bytes).unwrap();
    let signers = Signers {
        keys: keys
            .keys
            .values()
            .filter_map(|key| key.ed25519_bytes())
            .map(key)
            .collect(),
        threshold: keys.threshold.get() as usize,
    };
    let envelope = DsseEnvelope::from_json(payload).unwrap();
    TimeAnswer::from_json(&envelope.verify(TIME_PAYLOAD_TYPE, &signers).unwrap()).unwrap()
}

#[tokio::test]
async fn a_device_that_asks_is_told_the_time_on_its_own_topic() {
    let server = TestServer::start().await;
    server.enroll("d-1", &[]).await;
    let app = server.server.app();
    let tls = server.device_tls("d-1").await;
    let address = server.server.mqtt_address().unwrap();
    let mut link = Link::try_connect(address, "d-1", Some(tls)).await.unwrap();
    let topic = Topic::Device(link.id.clone(), Channel::Time).to_string();
    link.requests.subscribe(topic, QoS::AtLeastOnce).await.unwrap();
    // The control plane hears what comes after this.
    link.publish(Channel::Status, true, status(true)).await;
    until(app, "d-1", |device| device.connected).await;
    let before = now_ms();
    let request = question(1);
    link.requests
        .publish(
            Topic::Device(link.id.clone(), Channel::TimeRequest).to_string(),
            QoS::AtLeastOnce,
            false,
            request.to_json(),
        )
        .await
        .unwrap();
    let payload = loop {
        if let Event::Incoming(Incoming::Publish(publish)) = soon(link.events.poll()).await.unwrap() {
            break publish.payload;
        }
    };
    let answer = told(app, &payload);
    assert_eq!((answer.device, answer.nonce), (link.id, request.nonce));
    assert!((before..=now_ms()).contains(&answer.time_ms));
}

#[tokio::test]
async fn a_device_that_asks_all_the_time_is_answered_now_and_then() {
    let server = TestServer::start().await;
    let app = server.server.app();
    let began = Instant::now();
    let mut desk = TimeDesk::default();
    let mut asks = |id: &str, after: Duration| {
        let answer = desk.answer(&app.keys, id.parse().unwrap(), &question(2), (began + after, 7));
        answer.map(|message| told(app, &message.payload).time_ms)
    };
    assert_eq!(asks("d-1", Duration::ZERO), Some(7));
    assert_eq!(asks("d-1", Duration::from_millis(1999)), None);
    assert_eq!(asks("d-2", Duration::from_millis(1999)), Some(7));
    assert_eq!(asks("d-1", Duration::from_secs(2)), Some(7));
}
