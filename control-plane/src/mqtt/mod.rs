//! The MQTT edge: the control plane as one client of a broker, embedded or not, and the rules of the embedded one.
//!
//! It calls into the domains and knows nothing that they do not tell it. Invariant: a message that cannot be handled is
//! counted and dropped, never the connection.

mod hooks;
mod identities;
mod outbox;
mod repeat;
mod states;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod time;
mod turns;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, MqttOptions, NetworkOptions, Publish, QoS, Request, Subscribe,
    SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::ClientConfig;
use skerry_shared::{
    desired::{Ack, Desired},
    id::DeviceId,
    schema::{Envelope, SchemaVersion},
    time::TimeRequest,
    topic::{Channel, Topic},
    transfer::Want,
};
use tokio::{sync::watch, task::JoinSet, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

pub(crate) use self::hooks::{Admitted, BrokerHooks, Proof};
use self::{
    outbox::{ConnectionId, Message as Outgoing, Outbox},
    repeat::Told,
    states::StateDesk,
    time::TimeDesk,
    turns::{Places, Pushed, Turns},
};
use crate::{
    app::{App, Change, log_db, now_ms},
    ca::CONTROL_PLANE,
    devices::{self, store},
    telemetry::{
        Message,
        ingest::{BATCH_MAX, Ingest},
    },
};

const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A dead peer is noticed by rumqttc after two keep-alives at the latest; a poll that takes longer hangs.
const POLL_TIMEOUT: Duration = Duration::from_secs(75);
const PACKET_BYTES: usize = 256 * 1024;
/// Requests that may wait for the connection. Above it whoever publishes waits.
const REQUESTS: usize = 256;
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Reported states and signs of life that may wait for their handler. A device repeats what matters, and its newest word counts.
const STATES: Places = Places {
    per_device: 16,
    in_all: 4096,
};
/// Wants, each at most 4 KiB. An agent has at most 8 parts under way, each in a want of its own at worst.
const WANTS: Places = Places {
    per_device: 16,
    in_all: 4096,
};
/// Questions for the time: an agent waits a minute for the answer before it asks again.
const QUESTIONS: Places = Places {
    per_device: 2,
    in_all: 4096,
};
/// Telemetry, at most 96 KiB a message. An agent has at most 8 frames under way, and sends again what is not acknowledged.
const FRAMES: Places = Places {
    per_device: 16,
    in_all: 1024,
};
/// How often it is stored, at most, that devices have sent telemetry: less than a rollout's shortest patience on a fleet
/// that sends all the time, and far less often than the frames come.
const HEARD_EVERY: Duration = Duration::from_secs(1);
/// How often desired states are looked at without a call.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How often old telemetry is looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

/// How a connection to the broker is secured, and who this is there.
pub(crate) enum Security {
    /// By TLS, with a certificate.
    Tls(Arc<ClientConfig>),
    /// Not at all, on this machine; with a user name and a password, if the broker wants them.
    Plain(Option<(String, String)>),
}

/// How to reach the broker.
pub(crate) struct Connection {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) security: Security,
    /// The embedded broker's. With another one, which lives on when this process dies, every retained word is believed.
    pub(crate) admitted: Option<Arc<Admitted>>,
}

/// Starts the tasks of the edge.
pub(crate) fn spawn(tasks: &mut JoinSet<()>, app: &Arc<App>, connection: Connection, shutdown: &CancellationToken) {
    let admitted = connection.admitted.clone();
    let (client, events) = client(connection);
    spawn_around(tasks, app, client, events, admitted, shutdown);
}

fn client(connection: Connection) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(CONTROL_PLANE, connection.host, connection.port);
    match connection.security {
        Security::Tls(config) => {
            options.set_transport(Transport::Tls(TlsConfiguration::Rustls(config)));
        }
        Security::Plain(Some((username, password))) => {
            options.set_credentials(username, password);
        }
        Security::Plain(None) => {}
    }
    options.set_keep_alive(KEEP_ALIVE);
    options.set_max_packet_size(PACKET_BYTES, PACKET_BYTES);
    options.set_clean_session(true);
    let (client, mut events) = AsyncClient::new(options, REQUESTS);
    let mut network = NetworkOptions::new();
    // An acknowledgement must not wait for the packet before it to be acknowledged by TCP: up to 40 ms.
    network.set_tcp_nodelay(true);
    events.set_network_options(network);
    (client, events)
}

fn spawn_around(
    tasks: &mut JoinSet<()>,
    app: &Arc<App>,
    client: AsyncClient,
    events: EventLoop,
    admitted: Option<Arc<Admitted>>,
    shutdown: &CancellationToken,
) {
    let (connection, watched) = watch::channel(None);
    let outbox = Outbox::new(client, watched);
    let told = Arc::new(Told::default());
    let queues = Queues {
        states: Arc::new(Turns::new(STATES)),
        wants: Arc::new(Turns::new(WANTS)),
        questions: Arc::new(Turns::new(QUESTIONS)),
        frames: Arc::new(Turns::new(FRAMES)),
    };
    let (states, wants) = (Arc::clone(&queues.states), Arc::clone(&queues.wants));
    let (questions, frames) = (Arc::clone(&queues.questions), Arc::clone(&queues.frames));
    tasks.spawn(poll(Arc::clone(app), events, connection, queues, shutdown.clone()));
    let mut until_shutdown = Handlers { tasks, shutdown };
    let desk = StateDesk::new(Arc::clone(app), admitted, Arc::clone(&told));
    until_shutdown.spawn(handle_states(desk, states));
    until_shutdown.spawn(handle_wants(Arc::clone(app), outbox.clone(), wants));
    until_shutdown.spawn(handle_times(Arc::clone(app), outbox.clone(), questions));
    until_shutdown.spawn(handle_telemetry(Arc::clone(app), outbox.clone(), frames));
    until_shutdown.spawn(publish_desired(Arc::clone(app), outbox, told));
}

/// Tasks that may end anywhere: what each is at is one transaction or one message, and devices repeat what matters.
struct Handlers<'a> {
    tasks: &'a mut JoinSet<()>,
    shutdown: &'a CancellationToken,
}

impl Handlers<'_> {
    fn spawn(&mut self, handler: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            shutdown.run_until_cancelled(handler).await;
        });
    }
}

/// A message of a device that is answered over the connection that it came by.
struct Asked {
    connection: ConnectionId,
    payload: Bytes,
}

/// One queue per kind of handler, so that a slow one does not hold up the others.
struct Queues {
    states: Arc<Turns<(Channel, Publish)>>,
    wants: Arc<Turns<Asked>>,
    questions: Arc<Turns<Asked>>,
    frames: Arc<Turns<Bytes>>,
}

async fn poll(
    app: Arc<App>,
    mut events: EventLoop,
    connection: watch::Sender<Option<ConnectionId>>,
    queues: Queues,
    shutdown: CancellationToken,
) {
    let mut backoff = BACKOFF_MIN;
    let mut id = ConnectionId::default();
    loop {
        let event = tokio::select! {
            event = tokio::time::timeout(POLL_TIMEOUT, events.poll()) => event,
            () = shutdown.cancelled() => return,
        };
        match event {
            Ok(Ok(Event::Incoming(Incoming::ConnAck(_)))) => {
                backoff = BACKOFF_MIN;
                tracing::info!("connected to the MQTT broker");
                // The session is clean: subscribe again, and say again what devices should run. Not through the client:
                // its queue may be full of what an outage has left, and `pending` goes before it.
                let channels = [
                    Channel::Telemetry,
                    Channel::Want,
                    Channel::TimeRequest,
                    Channel::Reported,
                    Channel::Status,
                ];
                let filters = channels.map(|channel| SubscribeFilter::new(channel.of_all_devices(), QoS::AtLeastOnce));
                events
                    .pending
                    .push_back(Request::Subscribe(Subscribe::new_many(filters)));
                // A publish that collided with a packet id of the old session would hold up this one for ever.
                events.state.collision = None;
                id = id.next();
                // Before the mark: whatever is published over an older connection must not be noted after it.
                connection.send_replace(Some(id));
                log_db(
                    app.core.write(store::mark_all_unpublished).await,
                    "mark desired states unpublished",
                );
                app.desired_changed.notify_one();
            }
            Ok(Ok(Event::Incoming(Incoming::Publish(publish)))) => queue(&queues, id, publish),
            Ok(Ok(Event::Incoming(Incoming::SubAck(ack)))) => {
                if ack.return_codes.contains(&SubscribeReasonCode::Failure) {
                    tracing::error!("the MQTT broker refuses a subscription: devices are not heard");
                }
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                connection.send_replace(None);
                tracing::warn!(%error, "the MQTT broker cannot be reached");
                let jitter = f64::from(rand_byte()) / 512.0 + 0.5;
                tokio::select! {
                    () = tokio::time::sleep(backoff.mul_f64(jitter)) => {}
                    () = shutdown.cancelled() => return,
                }
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
            Err(_) => {
                connection.send_replace(None);
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

fn queue(queues: &Queues, connection: ConnectionId, publish: Publish) {
    let Ok(Topic::Device(device, channel)) = publish.topic.parse::<Topic>() else {
        return;
    };
    let asked = |payload| Asked { connection, payload };
    let sender = device.clone();
    let pushed = match channel {
        Channel::Want => queues.wants.push(device, asked(publish.payload)),
        Channel::TimeRequest => queues.questions.push(device, asked(publish.payload)),
        Channel::Telemetry => queues.frames.push(device, publish.payload),
        _ => queues.states.push(device, (channel, publish)),
    };
    match pushed {
        Pushed::Queued => {}
        // Not a warning: whoever floods would fill the log too.
        Pushed::InsteadOfOldest => {
            tracing::debug!(device.id = %sender, ?channel, "a device has too many messages that wait, its oldest is dropped")
        }
        Pushed::Refused => tracing::warn!(?channel, "a queue for device messages is full, one is dropped"),
    }
}

async fn handle_states(mut desk: StateDesk, states: Arc<Turns<(Channel, Publish)>>) {
    loop {
        let (device, (channel, publish)) = states.next().await;
        desk.hear(device, channel, &publish).await;
    }
}

fn malformed(device: &DeviceId, error: &dyn std::fmt::Display) {
    tracing::warn!(device.id = %device, %error, "a device sent a message that does not parse");
}

async fn handle_wants(app: Arc<App>, mut outbox: Outbox, wants: Arc<Turns<Asked>>) {
    loop {
        let (device, Asked { connection, payload }) = wants.next().await;
        // The device asks again over the next connection.
        if outbox.connection() != Some(connection) {
            continue;
        }
        let want = match Want::from_json(&payload) {
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
        for payload in messages {
            let message = Outgoing {
                topic: Topic::Device(device.clone(), Channel::Chunk),
                qos: QoS::AtMostOnce,
                retain: false,
                payload,
            };
            // Waits while the connection is slow. Meanwhile each device may queue a few wants, whatever it sends; their answers
            // are read when it is their turn.
            if outbox.publish(connection, message).await.is_err() {
                break;
            }
        }
    }
}

/// Says what time it is. A question of an earlier connection has a nonce that its device has forgotten.
async fn handle_times(app: Arc<App>, mut outbox: Outbox, questions: Arc<Turns<Asked>>) {
    let mut desk = TimeDesk::default();
    loop {
        let (device, Asked { connection, payload }) = questions.next().await;
        let request = match TimeRequest::from_json(&payload) {
            Ok(request) => request,
            Err(error) => {
                malformed(&device, &error);
                continue;
            }
        };
        let now = (Instant::now(), now_ms());
        if let Some(answer) = desk.answer(&app.keys, device, &request, now) {
            // Without a connection it is lost, and so is the device's.
            let _ = outbox.publish(connection, answer).await;
        }
    }
}

/// Takes in what has queued up, and acknowledges it after the commit. Old telemetry is deleted in between, step by step.
async fn handle_telemetry(app: Arc<App>, mut outbox: Outbox, frames: Arc<Turns<Bytes>>) {
    let mut ingest = Ingest::new(app.telemetry.clone());
    let mut expiry = tokio::time::interval(EXPIRE_EVERY);
    expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = BTreeMap::new();
    let mut heard_until = tokio::time::Instant::now();
    loop {
        let mut came = Vec::new();
        tokio::select! {
            many = frames.next_many(BATCH_MAX) => came = many,
            () = tokio::time::sleep_until(heard_until), if !heard.is_empty() => {}
            _ = expiry.tick() => {
                match ingest.expire(app.config.telemetry_retention_days, now_ms()).await {
                    Ok(true) => expiry.reset_immediately(),
                    Ok(false) => {}
                    Err(error) => log_db(Err(error), "delete old telemetry"),
                }
                continue;
            }
        }
        let messages: Vec<Message> = came
            .into_iter()
            .map(|(device, payload)| Message { device, payload })
            .collect();
        let now = now_ms();
        heard.extend(messages.iter().map(|message| (message.device.clone(), now)));
        if heard_until <= tokio::time::Instant::now() {
            let stored = devices::record_heard(&app.core, std::mem::take(&mut heard)).await;
            log_db(stored, "store when devices were heard");
            heard_until = tokio::time::Instant::now() + HEARD_EVERY;
        }
        if messages.is_empty() {
            continue;
        }
        let acks = match ingest.ingest(messages, now).await {
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
        // Without a connection they are lost: the devices send the frames again, and are told then.
        for acked in acks {
            let Some(connection) = outbox.connection() else { break };
            let ack = Ack {
                schema: SchemaVersion::CURRENT,
                frames: acked.frames,
            };
            let message = Outgoing {
                topic: Topic::Device(acked.device, Channel::Ack),
                qos: QoS::AtLeastOnce,
                retain: false,
                payload: ack.to_json(),
            };
            if outbox.publish(connection, message).await.is_err() {
                break;
            }
        }
        app.changes.send(Change::Telemetry);
    }
}

/// Publishes every desired state that is newer than the published one, whenever it is woken, and now and then: a request that
/// breaks off between its write and its call wakes nobody. While there is no connection nothing is published: the next one
/// wakes it.
async fn publish_desired(app: Arc<App>, mut outbox: Outbox, told: Arc<Told>) {
    loop {
        let _ = tokio::time::timeout(LOOK_EVERY, app.desired_changed.notified()).await;
        let Some(connection) = outbox.connection() else {
            continue;
        };
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
            let message = Outgoing {
                topic: Topic::Device(device.id.clone(), Channel::Desired),
                qos: QoS::AtLeastOnce,
                retain: true,
                payload: app.keys.sign_desired(&desired),
            };
            told.note(&device.id, Instant::now());
            if outbox.publish(connection, message).await.is_err() {
                break;
            }
            let (id, generation) = (device.id.clone(), device.generation);
            let watched = outbox.clone();
            let mark = move |conn: &_| {
                // Decided on the writer's thread, after which the mark of a newer connection comes, or before which it came.
                match watched.connection() == Some(connection) {
                    true => store::mark_published(conn, &id, generation),
                    false => Ok(()),
                }
            };
            log_db(app.core.write(mark).await, "mark published");
            app.changes.send(Change::Device(device.id));
        }
    }
}
