//! The connection to the broker: MQTT 3.1.1 by rumqttc, with birth and last will, and a back-off that never gives up.
//!
//! It knows topics and bytes, not what they mean. A PUBACK says only that a broker has a message: what must not be lost is
//! kept elsewhere until the control plane itself acknowledges it.

use std::{sync::Arc, time::Duration};

use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, LastWill, MqttOptions, NetworkOptions, Publish, QoS, Request, Subscribe,
    TlsConfiguration, Transport,
};
use rustls::ClientConfig;
use skerry_shared::{
    desired::Status,
    id::{BootId, DeviceId},
    schema::{Envelope, SchemaVersion},
    topic::{Channel, Topic},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    enroll::Identity,
    jitter::{self, jitter},
};

const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// rumqttc notices a dead peer after two keep-alives at the latest; a poll that takes longer hangs.
const POLL_TIMEOUT: Duration = Duration::from_secs(75);
/// Both ways: a part of 32 KiB with room. The crate's default of 10 KiB would end the connection.
const PACKET_BYTES: usize = 256 * 1024;
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Parts that may wait for the download: twice its window.
const PARTS_QUEUE: usize = 2 * crate::transfer::WINDOW;
/// Acknowledgements that may wait for the spool. One too many is lost: its frames are sent again.
const ACKS_QUEUE: usize = 64;

/// What the broker brought.
#[derive(Debug)]
pub(crate) enum FromBroker {
    /// The connection is up: everything retained is said again.
    Connected,
    /// A desired state.
    Desired(Vec<u8>),
    /// A signed time.
    Time(Vec<u8>),
}

/// The sending half; cheap to clone.
#[derive(Clone)]
pub(crate) struct Sender {
    client: AsyncClient,
    device: DeviceId,
    connection: watch::Receiver<Option<u64>>,
}

impl Sender {
    /// Publishes, or drops the message when there is no connection or the outgoing queue is full: whoever sends repeats what
    /// matters. What queues up without a connection would be stale when it comes, and would keep the subscriptions out.
    pub(crate) fn try_publish(&self, channel: Channel, qos: QoS, payload: Vec<u8>) -> bool {
        if self.connection.borrow().is_none() {
            return false;
        }
        let topic = self.topic(channel);
        let retain = matches!(channel, Channel::Reported | Channel::Status);
        self.client.try_publish(topic, qos, retain, payload).is_ok()
    }

    /// True while a connection to the broker is up.
    pub(crate) fn is_connected(&self) -> bool {
        self.connection.borrow().is_some()
    }

    fn topic(&self, channel: Channel) -> String {
        Topic::Device(self.device.clone(), channel).to_string()
    }
}

fn status(boot_id: &BootId, online: bool) -> Vec<u8> {
    Status {
        schema: SchemaVersion::CURRENT,
        boot_id: boot_id.clone(),
        online,
    }
    .to_json()
}

/// The receiving half: events for the agent's loop, parts for the download, acknowledgements for telemetry.
pub(crate) struct Received {
    pub(crate) events: mpsc::Receiver<FromBroker>,
    pub(crate) parts: mpsc::Receiver<Vec<u8>>,
    pub(crate) acks: mpsc::Receiver<Vec<u8>>,
    /// The number of the connection that is up, counted from 1.
    pub(crate) connection: watch::Receiver<Option<u64>>,
}

/// Starts the connection's task.
pub(crate) fn start(
    identity: &Identity,
    tls: Arc<ClientConfig>,
    boot_id: &BootId,
    shutdown: CancellationToken,
) -> (Sender, Received) {
    let device = identity.device_id.clone();
    let mut options = MqttOptions::new(device.as_str(), identity.mqtt.host.clone(), identity.mqtt.port);
    if identity.mqtt.plain {
        // A broker without certificates tells devices apart by their user names.
        options.set_credentials(device.as_str(), "");
    } else {
        options.set_transport(Transport::Tls(TlsConfiguration::Rustls(tls)));
    }
    options.set_keep_alive(KEEP_ALIVE);
    options.set_max_packet_size(PACKET_BYTES, PACKET_BYTES);
    options.set_clean_session(true);
    let will = status(boot_id, false);
    let topic = Topic::Device(device.clone(), Channel::Status).to_string();
    options.set_last_will(LastWill::new(topic, will, QoS::AtLeastOnce, true));
    let (client, mut event_loop) = AsyncClient::new(options, 64);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    event_loop.set_network_options(network);
    let (events_in, events) = mpsc::channel(64);
    let (parts_in, parts) = mpsc::channel(PARTS_QUEUE);
    let (acks_in, acks) = mpsc::channel(ACKS_QUEUE);
    let (connection_in, connection) = watch::channel(None);
    let sender = Sender {
        client,
        device,
        connection: connection.clone(),
    };
    let task = Poller {
        sender: sender.clone(),
        boot_id: boot_id.clone(),
        events: events_in,
        parts: parts_in,
        acks: acks_in,
        connections: 0,
        connection: connection_in,
    };
    tokio::spawn(task.run(event_loop, shutdown));
    let received = Received {
        events,
        parts,
        acks,
        connection,
    };
    (sender, received)
}

struct Poller {
    sender: Sender,
    boot_id: BootId,
    events: mpsc::Sender<FromBroker>,
    parts: mpsc::Sender<Vec<u8>>,
    acks: mpsc::Sender<Vec<u8>>,
    /// So far.
    connections: u64,
    connection: watch::Sender<Option<u64>>,
}

impl Poller {
    async fn run(mut self, mut event_loop: EventLoop, shutdown: CancellationToken) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let polled = tokio::select! {
                polled = tokio::time::timeout(POLL_TIMEOUT, event_loop.poll()) => polled,
                () = shutdown.cancelled() => {
                    self.say_goodbye(event_loop).await;
                    return;
                }
            };
            match polled {
                Ok(Ok(event)) => {
                    if let Event::Incoming(Incoming::ConnAck(_)) = event {
                        backoff = BACKOFF_MIN;
                    }
                    self.handle(event, &mut event_loop);
                }
                Ok(Err(error)) => {
                    self.connection.send_replace(None);
                    tracing::warn!(%error, retry_ms = backoff.as_millis() as u64, "no connection to the broker");
                    tokio::select! {
                        () = tokio::time::sleep(jitter::shortened(backoff, jitter())) => {}
                        () = shutdown.cancelled() => return,
                    }
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
                Err(_) => {
                    self.connection.send_replace(None);
                    tracing::warn!("the connection to the broker hangs, starting a new one");
                    event_loop.clean();
                }
            }
        }
    }

    fn handle(&mut self, event: Event, event_loop: &mut EventLoop) {
        match event {
            Event::Incoming(Incoming::ConnAck(_)) => {
                tracing::info!("connected to the broker");
                // The crate forgets to forget it, and nothing would go out any more.
                event_loop.state.collision = None;
                // Not through the queue, which may be full of what was said before: these come first, and always fit.
                for channel in [Channel::Desired, Channel::Chunk, Channel::Ack, Channel::Time] {
                    let subscribe = Subscribe::new(self.sender.topic(channel), QoS::AtLeastOnce);
                    event_loop.pending.push_back(Request::Subscribe(subscribe));
                }
                let topic = self.sender.topic(Channel::Status);
                let mut birth = Publish::new(topic, QoS::AtLeastOnce, status(&self.boot_id, true));
                birth.retain = true;
                event_loop.pending.push_back(Request::Publish(birth));
                self.connections += 1;
                self.connection.send_replace(Some(self.connections));
                let _ = self.events.try_send(FromBroker::Connected);
            }
            Event::Incoming(Incoming::Publish(publish)) => match publish.topic.parse::<Topic>() {
                Ok(Topic::Device(_, Channel::Desired)) => {
                    // Retained: if the queue is full, the next connection brings it again.
                    let _ = self.events.try_send(FromBroker::Desired(publish.payload.to_vec()));
                }
                // One too many is lost, and the question is put again.
                Ok(Topic::Device(_, Channel::Time)) => {
                    let _ = self.events.try_send(FromBroker::Time(publish.payload.to_vec()));
                }
                // A part too many is asked for again.
                Ok(Topic::Device(_, Channel::Chunk)) => drop(self.parts.try_send(publish.payload.to_vec())),
                Ok(Topic::Device(_, Channel::Ack)) => drop(self.acks.try_send(publish.payload.to_vec())),
                _ => {}
            },
            _ => {}
        }
    }

    /// Says on purpose what the last will would say, and gives it a moment to leave.
    async fn say_goodbye(&self, mut event_loop: EventLoop) {
        let goodbye = status(&self.boot_id, false);
        self.sender.try_publish(Channel::Status, QoS::AtLeastOnce, goodbye);
        let _ = self.sender.client.try_disconnect();
        let drained = async { while event_loop.poll().await.is_ok() {} };
        let _ = tokio::time::timeout(Duration::from_secs(1), drained).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{
        enroll::{Broker, Life},
        tls,
    };

    #[tokio::test]
    async fn nothing_queues_up_without_a_connection() {
        // Bound and never accepted from: nobody answers there.
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let identity = Identity {
            device_id: "dev-1".parse().unwrap(),
            server: String::new(),
            authority: String::new(),
            mqtt: Broker {
                host: "127.0.0.1".to_owned(),
                port: nobody.local_addr().unwrap().port(),
                authority: None,
                plain: true,
            },
            certificate: Life {
                issued_at_ms: 0,
                not_after_ms: 0,
            },
        };
        let folder = tempfile::tempdir().unwrap();
        let tls = tls::tests::of_a_device(folder.path());
        let boot_id = "0".repeat(32).parse().unwrap();
        let shutdown = CancellationToken::new();
        let (sender, _received) = start(&identity, tls, &boot_id, shutdown.clone());
        // More than the queue would take: afterwards the subscriptions must still fit.
        let taken = (0..200).filter(|_| sender.try_publish(Channel::Want, QoS::AtLeastOnce, vec![0; 10]));
        assert_eq!(taken.count(), 0);
        shutdown.cancel();
    }
}
