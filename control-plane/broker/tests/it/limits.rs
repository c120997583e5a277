//! What one client or one network may not keep from the others: places, and time.

use crate::{Rules, client, client::Client, config, connect, soon, start};
use rumqttc::{LastWill, QoS};
use skerry_broker::{Access, Admission, Authentication, Broker, Connect, Hooks, Identity, Limits};
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

async fn connect_from(address: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whether the broker reads and answers what a client sends first.
async fn is_answered(from: &str, to: SocketAddr) -> bool {
    // CONNECT of MQTT 3.1.1 with a clean session and the client id "x".
    let connect = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01x";
    let mut stream = connect_from(from, to).await;
    // A refused connection may be gone before this is sent.
    let _ = stream.write_all(connect).await;
    soon(stream.read(&mut [0; 4])).await.is_ok_and(|count| count > 0)
}

#[tokio::test]
async fn one_network_cannot_take_the_handshakes_of_all_others() {
    let broker = start(config(Limits {
        handshakes_per_network: 2,
        ..Limits::default()
    }))
    .await;
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(connect_from("127.0.0.2", broker.local_addr()).await);
    }
    // Not closed in its own time, as a silent one would be, but before its CONNECT is answered.
    assert!(!is_answered("127.0.0.2", broker.local_addr()).await);
    assert!(is_answered("127.0.0.1", broker.local_addr()).await);
    // Those who are identified do not count: a fleet may be behind one address.
    let mut fleet = Vec::new();
    for id in ["a", "b", "c", "control"] {
        fleet.push(connect(&broker, id).await);
    }
    fleet[3].publish("d/a/desired", "served").await.unwrap();
    drop(silent);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off_in_time() {
    let broker = start(config(Limits {
        write_timeout: Duration::from_millis(300),
        client_channel_capacity: 8,
        ..Limits::default()
    }))
    .await;
    let mut options = client::options(&broker, "a");
    options.set_last_will(LastWill::new("d/a/status", "gone", QoS::AtLeastOnce, false));
    let mut stalled = Client::connect(options).await.unwrap();
    assert!(stalled.subscribe("d/a/chunk").await);
    let mut control = connect(&broker, "control").await;
    assert!(control.subscribe("d/a/status").await);
    // 25 MiB do not fit into the socket's buffers.
    for _ in 0..400 {
        control.publish_qos0("d/a/chunk", vec![0; 64 * 1024]).await.unwrap();
    }
    assert_eq!(control.text().await, "gone");
    drop(stalled);
}

/// The rules of the other tests, for a while.
struct ForAWhile(Duration);

impl Hooks for ForAWhile {
    fn authenticate<'a>(&'a self, connect: Connect<'a>) -> Authentication<'a> {
        let until = (connect.client_id != "control").then(|| SystemTime::now() + self.0);
        let identity = Identity::new(connect.client_id);
        Box::pin(std::future::ready(Ok(Admission { identity, until })))
    }

    fn authorize(&self, identity: &Identity, access: Access, topic: &str) -> bool {
        Rules.authorize(identity, access, topic)
    }
}

#[tokio::test]
async fn a_connection_ends_when_its_admission_does_and_leaves_its_last_will() {
    let hooks = ForAWhile(Duration::from_millis(300));
    let broker = Broker::start(config(Limits::default()), Arc::new(hooks)).await.unwrap();
    let mut control = connect(&broker, "control").await;
    assert!(control.subscribe("d/a/status").await);
    let mut options = client::options(&broker, "a");
    options.set_last_will(LastWill::new("d/a/status", "gone", QoS::AtLeastOnce, false));
    let device = Client::connect(options.clone()).await.unwrap();
    device.closed().await;
    assert_eq!(control.text().await, "gone");
    // It may come back with something newer.
    Client::connect(options).await.unwrap();
    control.publish("d/a/desired", "control stays").await.unwrap();
}
