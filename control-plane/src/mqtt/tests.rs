//! The edge against a real broker.

use std::net::SocketAddr;

use rumqttc::LastWill;
use serde_json::json;
use skerry_broker::{Broker, BrokerConfig, Limits};
use skerry_shared::digest::Digest;
use tokio::sync::broadcast::error::RecvError;

use super::*;
use crate::{config::Mqtt, db::DbError, devices::Device, test_server::TestServer};

const PASSWORD: &str = "the control plane's";

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
        username: CONTROL_PLANE.to_owned(),
        password: PASSWORD.to_owned(),
    };
    TestServer::start_with(mqtt).await
}

async fn broker(app: &App, port: u16) -> Broker {
    let config = BrokerConfig {
        bind: SocketAddr::from(([127, 0, 0, 1], port)),
        storage: None,
        limits: Limits::default(),
    };
    let hooks = BrokerHooks::new(app.core.clone(), Digest::of(PASSWORD.as_bytes()));
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
        let id: DeviceId = id.parse().unwrap();
        let mut options = MqttOptions::new(id.as_str(), address.ip().to_string(), address.port());
        options.set_credentials(id.as_str(), "password");
        let will = Topic::Device(id.clone(), Channel::Status).to_string();
        options.set_last_will(LastWill::new(will, status(false), QoS::AtLeastOnce, true));
        let (requests, mut events) = AsyncClient::new(options, 16);
        while !matches!(
            soon(events.poll()).await.unwrap(),
            Event::Incoming(Incoming::ConnAck(_))
        ) {}
        Link { id, requests, events }
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
        username: CONTROL_PLANE.to_owned(),
        password: PASSWORD.to_owned(),
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
             INSERT INTO devices (id, labels, platform, agent_version, public_key, secret_hash, enrolled_at_ms, generation)
             SELECT 'm-' || i, '{}', 'aarch64-unknown-linux-gnu', '', '', x'00', 0, 1 FROM n",
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
    let mut link = Link::connect(server.server.mqtt_address().unwrap(), "d-1").await;
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
        username: CONTROL_PLANE.to_owned(),
        password: PASSWORD.to_owned(),
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
    let (queue, states) = mpsc::channel(8);
    let admitted = Arc::new(Admitted::default());
    admitted.add("d-2".parse().unwrap());
    for id in ["d-1", "d-2"] {
        let mut publish = Publish::new("t", QoS::AtLeastOnce, status(true));
        publish.retain = true;
        queue
            .send((id.parse().unwrap(), Channel::Status, publish))
            .await
            .unwrap();
    }
    drop(queue);
    handle_states(Arc::clone(app), Some(admitted), Arc::default(), states).await;
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
    let (queue, states) = mpsc::channel(8);
    let mut publish = Publish::new("t", QoS::AtLeastOnce, report("d-1", 1, 0));
    publish.retain = retained;
    queue.send((id, Channel::Reported, publish)).await.unwrap();
    drop(queue);
    handle_states(Arc::clone(app), None, told, states).await;
    !app.core.read(store::unpublished).await.unwrap().is_empty()
}

#[tokio::test]
async fn a_device_that_is_behind_is_told_again() {
    assert!(is_told_again(Duration::from_secs(60), false).await);
    assert!(!is_told_again(Duration::ZERO, false).await);
    assert!(!is_told_again(Duration::from_secs(60), true).await);
}
