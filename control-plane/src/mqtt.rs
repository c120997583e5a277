//! The MQTT edge: the control plane as one client of a broker, embedded or not, and the rules of the embedded one.
//!
//! It calls into the domains and knows nothing that they do not tell it. Invariant: a message that cannot be handled is
//! counted and dropped, never the connection.

use std::{sync::Arc, time::Duration};

use rumqttc::{AsyncClient, Event, EventLoop, Incoming, MqttOptions, NetworkOptions, Publish, QoS};
use skerry_broker::{Access, Authentication, Connect, Hooks, Identity, Refusal};
use skerry_shared::{
    desired::{Ack, Desired, Reported, Status},
    digest::Digest,
    id::DeviceId,
    schema::{Envelope, SchemaVersion},
    topic::{Channel, Topic},
    transfer::Want,
};
use tokio::{sync::mpsc, task::JoinSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    app::{App, Change, log_db, now_ms},
    db::Db,
    devices::{self, store},
    telemetry::{
        Message,
        ingest::{BATCH_MAX, Ingest},
    },
};

/// The control plane's client id, and its user name at the embedded broker. No device id contains a space or upper case,
/// but this one could be a device's: enrolment refuses it.
pub(crate) const CONTROL_PLANE: &str = "skerry-control-plane";

const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A dead peer is noticed by rumqttc after two keep-alives at the latest; a poll that takes longer hangs.
const POLL_TIMEOUT: Duration = Duration::from_secs(75);
const PACKET_BYTES: usize = 256 * 1024;
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Messages that may wait for their handler. Above it they are dropped: devices repeat what matters.
const QUEUE: usize = 4096;
/// Telemetry is larger, at most 96 KiB a message. Above it frames are dropped here, and their devices send them again.
const TELEMETRY_QUEUE: usize = 1024;
/// How often old telemetry is looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

/// How to reach the broker.
pub(crate) struct Connection {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) username: String,
    pub(crate) password: String,
}

/// The embedded broker's rules: a device uses its own topics, the control plane all of ours.
pub(crate) struct BrokerHooks {
    db: Db,
    own_password: Digest,
}

impl BrokerHooks {
    pub(crate) fn new(db: Db, own_password: Digest) -> BrokerHooks {
        BrokerHooks { db, own_password }
    }

    async fn identify(&self, connect: Connect<'_>) -> Result<Identity, Refusal> {
        let (Some(user), Some(password)) = (connect.user_name, connect.password) else {
            return Err(Refusal::NotAuthorized);
        };
        if user != connect.client_id {
            return Err(Refusal::NotAuthorized);
        }
        let got = Digest::of(password);
        if user == CONTROL_PLANE {
            let same = got == self.own_password;
            return if same {
                Ok(Identity::new(user))
            } else {
                Err(Refusal::NotAuthorized)
            };
        }
        let device: DeviceId = user.parse().map_err(|_| Refusal::NotAuthorized)?;
        let id = device.clone();
        // Both sides are digests of high-entropy secrets: a comparison that stops early tells nothing.
        match self.db.read(move |conn| store::secret_hash(conn, &id)).await {
            Ok(Some(hash)) if hash == *got.as_bytes() => Ok(Identity::new(user)),
            Ok(_) => Err(Refusal::NotAuthorized),
            Err(_) => Err(Refusal::Unavailable),
        }
    }
}

impl Hooks for BrokerHooks {
    fn authenticate<'a>(&'a self, connect: Connect<'a>) -> Authentication<'a> {
        Box::pin(self.identify(connect))
    }

    fn authorize(&self, identity: &Identity, access: Access, topic: &str) -> bool {
        if identity.as_str() == CONTROL_PLANE {
            return topic.starts_with("skerry/v1/");
        }
        match (topic.parse::<Topic>(), access) {
            (Ok(Topic::Device(device, channel)), access) => {
                device.as_str() == identity.as_str() && channel.is_up() == (access == Access::Publish)
            }
            (Ok(Topic::Shared(_)), access) => access == Access::Subscribe,
            (Err(_), _) => false,
        }
    }
}

/// Starts the tasks of the edge.
pub(crate) fn spawn(tasks: &mut JoinSet<()>, app: &Arc<App>, connection: Connection, shutdown: &CancellationToken) {
    let mut options = MqttOptions::new(CONTROL_PLANE, connection.host, connection.port);
    options.set_credentials(connection.username, connection.password);
    options.set_keep_alive(KEEP_ALIVE);
    options.set_max_packet_size(PACKET_BYTES, PACKET_BYTES);
    options.set_clean_session(true);
    let (client, mut events) = AsyncClient::new(options, 256);
    let mut network = NetworkOptions::new();
    // An acknowledgement must not wait for the packet before it to be acknowledged by TCP: up to 40 ms.
    network.set_tcp_nodelay(true);
    events.set_network_options(network);
    let (state, states) = mpsc::channel(QUEUE);
    let (want, wants) = mpsc::channel(QUEUE);
    let (telemetry, frames) = mpsc::channel(TELEMETRY_QUEUE);
    tasks.spawn(poll(
        Arc::clone(app),
        client.clone(),
        events,
        Queues { state, want, telemetry },
        shutdown.clone(),
    ));
    tasks.spawn(handle_states(Arc::clone(app), states));
    tasks.spawn(handle_wants(Arc::clone(app), client.clone(), wants));
    tasks.spawn(handle_telemetry(Arc::clone(app), client.clone(), frames));
    tasks.spawn(publish_desired(Arc::clone(app), client, shutdown.clone()));
}

/// One queue per kind of handler, so that a slow one does not hold up the others.
struct Queues {
    state: mpsc::Sender<(DeviceId, Channel, Publish)>,
    want: mpsc::Sender<(DeviceId, Publish)>,
    telemetry: mpsc::Sender<Message>,
}

async fn poll(app: Arc<App>, client: AsyncClient, mut events: EventLoop, queues: Queues, shutdown: CancellationToken) {
    let mut backoff = Duration::from_millis(100);
    loop {
        let event = tokio::select! {
            event = tokio::time::timeout(POLL_TIMEOUT, events.poll()) => event,
            () = shutdown.cancelled() => return,
        };
        match event {
            Ok(Ok(Event::Incoming(Incoming::ConnAck(_)))) => {
                backoff = Duration::from_millis(100);
                tracing::info!("connected to the MQTT broker");
                // The session is clean: subscribe again, and say again what devices should run.
                for channel in [Channel::Reported, Channel::Status, Channel::Want, Channel::Telemetry] {
                    if let Err(error) = client.try_subscribe(channel.of_all_devices(), QoS::AtLeastOnce) {
                        tracing::error!(%error, "cannot subscribe");
                    }
                }
                log_db(
                    app.core.write(store::mark_all_unpublished).await,
                    "mark desired states unpublished",
                );
                app.desired_changed.notify_one();
            }
            Ok(Ok(Event::Incoming(Incoming::Publish(publish)))) => queue(&queues, publish),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the MQTT broker cannot be reached");
                let jitter = f64::from(rand_byte()) / 512.0 + 0.5;
                tokio::select! {
                    () = tokio::time::sleep(backoff.mul_f64(jitter)) => {}
                    () = shutdown.cancelled() => return,
                }
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
            Err(_) => {
                tracing::warn!("the MQTT connection hangs, starting a new one");
                events.clean();
            }
        }
    }
}

fn rand_byte() -> u8 {
    let mut byte = [128];
    // Without randomness there is no jitter, which harms nobody.
    let _ = getrandom::fill(&mut byte);
    byte[0]
}

fn queue(queues: &Queues, publish: Publish) {
    let Ok(Topic::Device(device, channel)) = publish.topic.parse::<Topic>() else {
        return;
    };
    let full = match channel {
        Channel::Want => queues.want.try_send((device, publish)).is_err(),
        Channel::Telemetry => {
            let payload = publish.payload;
            queues.telemetry.try_send(Message { device, payload }).is_err()
        }
        _ => queues.state.try_send((device, channel, publish)).is_err(),
    };
    if full {
        tracing::warn!("a queue for device messages is full, one is dropped");
    }
}

async fn handle_states(app: Arc<App>, mut states: mpsc::Receiver<(DeviceId, Channel, Publish)>) {
    while let Some((device, channel, publish)) = states.recv().await {
        match channel {
            Channel::Status => match Status::from_json(&publish.payload) {
                Ok(status) => {
                    let stored = devices::record_connected(&app.core, &device, status.online, now_ms()).await;
                    log_db(stored, "store a device's connection");
                }
                Err(error) => malformed(&device, &error),
            },
            Channel::Reported => match Reported::from_json(&publish.payload) {
                Ok(reported) if reported.device == device => {
                    match devices::record_reported(&app.core, reported, now_ms()).await {
                        Ok(_) => {}
                        Err(error) => tracing::warn!(device.id = %device, %error, "cannot store a reported state"),
                    }
                }
                Ok(_) => tracing::warn!(device.id = %device, "a device reports as another one"),
                Err(error) => malformed(&device, &error),
            },
            _ => continue,
        }
        app.changes.send(Change::Device(device));
    }
}

fn malformed(device: &DeviceId, error: &dyn std::fmt::Display) {
    tracing::warn!(device.id = %device, %error, "a device sent a message that does not parse");
}

async fn handle_wants(app: Arc<App>, client: AsyncClient, mut wants: mpsc::Receiver<(DeviceId, Publish)>) {
    while let Some((device, publish)) = wants.recv().await {
        let want = match Want::from_json(&publish.payload) {
            Ok(want) => want,
            Err(error) => {
                malformed(&device, &error);
                continue;
            }
        };
        let messages = match app.transfer.answer(&want).await {
            Ok(messages) => messages,
            Err(error) => {
                tracing::error!(device.id = %device, error = %anyhow::Error::new(error), "cannot answer a want");
                continue;
            }
        };
        let topic = Topic::Device(device, Channel::Chunk).to_string();
        for message in messages {
            // Waits while the connection is down or slow: the window of each device bounds what can wait here.
            if client
                .publish(topic.as_str(), QoS::AtMostOnce, false, message)
                .await
                .is_err()
            {
                return;
            }
        }
    }
}

/// Takes in what has queued up, and acknowledges it after the commit. Old telemetry is deleted in between, step by step.
async fn handle_telemetry(app: Arc<App>, client: AsyncClient, mut frames: mpsc::Receiver<Message>) {
    let mut ingest = Ingest::new(app.telemetry.clone());
    let mut expiry = tokio::time::interval(EXPIRE_EVERY);
    expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut messages = Vec::new();
        tokio::select! {
            count = frames.recv_many(&mut messages, BATCH_MAX) => if count == 0 { return },
            _ = expiry.tick() => {
                match ingest.expire(app.config.telemetry_retention_days, now_ms()).await {
                    Ok(true) => expiry.reset_immediately(),
                    Ok(false) => {}
                    Err(error) => log_db(Err(error), "delete old telemetry"),
                }
                continue;
            }
        }
        let acks = match ingest.ingest(messages, now_ms()).await {
            Ok(acks) => acks,
            Err(error) => {
                // Their devices send them again.
                tracing::error!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "telemetry was not stored"
                );
                continue;
            }
        };
        for acked in acks {
            let topic = Topic::Device(acked.device, Channel::Ack).to_string();
            let ack = Ack {
                schema: SchemaVersion::CURRENT,
                frames: acked.frames,
            };
            if client
                .publish(topic, QoS::AtLeastOnce, false, ack.to_json())
                .await
                .is_err()
            {
                return;
            }
        }
        app.changes.send(Change::Telemetry);
    }
}

/// Publishes every desired state that is newer than the published one, whenever it is woken.
async fn publish_desired(app: Arc<App>, client: AsyncClient, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = app.desired_changed.notified() => {}
            () = shutdown.cancelled() => return,
        }
        let unpublished = match app.core.read(store::unpublished).await {
            Ok(unpublished) => unpublished,
            Err(error) => {
                log_db(Err(error), "read desired states");
                continue;
            }
        };
        for device in unpublished {
            let desired = Desired {
                schema: SchemaVersion::CURRENT,
                device: device.id.clone(),
                generation: device.generation,
                issued_at_ms: now_ms(),
                bundles: device.desired,
            };
            let topic = Topic::Device(device.id.clone(), Channel::Desired).to_string();
            let signed = app.keys.sign_desired(&desired);
            if client.publish(topic, QoS::AtLeastOnce, true, signed).await.is_err() {
                return;
            }
            let (id, generation) = (device.id.clone(), device.generation);
            log_db(
                app.core
                    .write(move |conn| store::mark_published(conn, &id, generation))
                    .await,
                "mark published",
            );
            app.changes.send(Change::Device(device.id));
        }
    }
}
