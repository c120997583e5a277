//! The MQTT edge: the control plane as one client of a broker, embedded or not, and the rules of the embedded one.
//!
//! It calls into the domains and knows nothing that they do not tell it. Invariant: a message that cannot be handled is
//! counted and dropped, never the connection.

mod hooks;
mod identities;
mod outbox;
mod repeat;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod time;
mod wants;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, MqttOptions, NetworkOptions, Publish, QoS, Request, Subscribe,
    SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
};
use rustls::ClientConfig;
use skerry_shared::{
    desired::{Ack, Desired, Reported, Status},
    id::DeviceId,
    schema::{Envelope, SchemaVersion},
    time::TimeRequest,
    topic::{Channel, Topic},
    transfer::Want,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::hooks::{Admitted, BrokerHooks, Proof};
use self::{
    identities::Identities,
    outbox::{ConnectionId, Message as Outgoing, Outbox},
    repeat::Told,
    time::TimeDesk,
    wants::{Waiting, Wants},
};
use crate::{
    app::{App, Change, log_db, now_ms},
    ca::CONTROL_PLANE,
    devices::{self, Heard, Recorded, store},
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
/// Messages that may wait for their handler. Above it they are dropped: devices repeat what matters.
const QUEUE: usize = 4096;
/// Telemetry is larger, at most 96 KiB a message. Above it frames are dropped here, and their devices send them again.
const TELEMETRY_QUEUE: usize = 1024;
/// How often it is stored, at most, that devices have sent telemetry: less than a rollout's shortest patience on a fleet
/// that sends all the time, and far less often than the frames come.
const HEARD_EVERY: Duration = Duration::from_secs(1);
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
    let (state, states) = mpsc::channel(QUEUE);
    let wants = Arc::new(Wants::default());
    let (telemetry, frames) = mpsc::channel(TELEMETRY_QUEUE);
    let (times, questions) = mpsc::channel(QUEUE);
    let queues = Queues {
        state,
        wants: Arc::clone(&wants),
        telemetry,
        times,
    };
    tasks.spawn(poll(Arc::clone(app), events, connection, queues, shutdown.clone()));
    tasks.spawn(handle_states(Arc::clone(app), admitted, Arc::clone(&told), states));
    tasks.spawn(handle_wants(Arc::clone(app), outbox.clone(), wants, shutdown.clone()));
    tasks.spawn(handle_times(Arc::clone(app), outbox.clone(), questions));
    tasks.spawn(handle_telemetry(Arc::clone(app), outbox.clone(), frames));
    tasks.spawn(publish_desired(Arc::clone(app), outbox, told, shutdown.clone()));
}

/// One queue per kind of handler, so that a slow one does not hold up the others.
struct Queues {
    state: mpsc::Sender<(DeviceId, Channel, Publish)>,
    wants: Arc<Wants>,
    telemetry: mpsc::Sender<Message>,
    times: mpsc::Sender<Waiting>,
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
    let full = match channel {
        Channel::Want => {
            let want = Waiting {
                device,
                connection,
                payload: publish.payload,
            };
            if !queues.wants.push(want) {
                // Not a warning: whoever floods would fill the log too.
                tracing::debug!("a device has too many wants that wait, one is dropped");
            }
            false
        }
        Channel::TimeRequest => {
            let question = Waiting {
                device,
                connection,
                payload: publish.payload,
            };
            queues.times.try_send(question).is_err()
        }
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

async fn handle_states(
    app: Arc<App>,
    admitted: Option<Arc<Admitted>>,
    told: Arc<Told>,
    mut states: mpsc::Receiver<(DeviceId, Channel, Publish)>,
) {
    let mut identities = Identities::default();
    while let Some((device, channel, publish)) = states.recv().await {
        let heard = if publish.retain {
            Heard::Retained
        } else {
            Heard::At(now_ms())
        };
        match channel {
            Channel::Status => match Status::from_json(&publish.payload) {
                Ok(status) => {
                    let past = heard == Heard::Retained && admitted.as_ref().is_some_and(|a| !a.contains(&device));
                    let online = status.online && !past;
                    let stored = devices::record_connected(&app.core, &device, online, heard).await;
                    log_db(stored, "store a device's connection");
                    if status.online && heard != Heard::Retained && identities.born(&device, &status.boot_id) {
                        tracing::warn!(device.id = %device, "two agents use one identity: revoke the device, or enrol one of them anew");
                        let noted = devices::record_duplicate(&app.core, &device, now_ms()).await;
                        log_db(noted, "store that a device is there twice");
                    }
                }
                Err(error) => malformed(&device, &error),
            },
            Channel::Reported => match Reported::from_json(&publish.payload) {
                Ok(reported) if reported.device == device => {
                    match devices::record_reported(&app.core, reported, heard).await {
                        Ok(Recorded::Behind) if heard != Heard::Retained && told.is_due(&device, Instant::now()) => {
                            let id = device.clone();
                            let marked = app.core.write(move |conn| store::mark_unpublished(conn, &id)).await;
                            log_db(marked, "mark a desired state unpublished");
                            app.desired_changed.notify_one();
                        }
                        Ok(Recorded::Behind | Recorded::UpToDate | Recorded::Older) => {}
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

async fn handle_wants(app: Arc<App>, mut outbox: Outbox, wants: Arc<Wants>, shutdown: CancellationToken) {
    loop {
        let waiting = tokio::select! {
            waiting = wants.next() => waiting,
            () = shutdown.cancelled() => return,
        };
        let Waiting {
            device,
            connection,
            payload,
        } = waiting;
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
async fn handle_times(app: Arc<App>, mut outbox: Outbox, mut questions: mpsc::Receiver<Waiting>) {
    let mut desk = TimeDesk::default();
    while let Some(question) = questions.recv().await {
        let request = match TimeRequest::from_json(&question.payload) {
            Ok(request) => request,
            Err(error) => {
                malformed(&question.device, &error);
                continue;
            }
        };
        let now = (Instant::now(), now_ms());
        if let Some(answer) = desk.answer(&app.keys, question.device, &request, now) {
            // Without a connection it is lost, and so is the device's.
            let _ = outbox.publish(question.connection, answer).await;
        }
    }
}

/// Takes in what has queued up, and acknowledges it after the commit. Old telemetry is deleted in between, step by step.
async fn handle_telemetry(app: Arc<App>, mut outbox: Outbox, mut frames: mpsc::Receiver<Message>) {
    let mut ingest = Ingest::new(app.telemetry.clone());
    let mut expiry = tokio::time::interval(EXPIRE_EVERY);
    expiry.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = BTreeMap::new();
    let mut heard_until = tokio::time::Instant::now();
    loop {
        let mut messages = Vec::new();
        tokio::select! {
            count = frames.recv_many(&mut messages, BATCH_MAX) => if count == 0 { return },
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

/// Publishes every desired state that is newer than the published one, whenever it is woken. While there is no connection
/// nothing is published: the next one wakes it.
async fn publish_desired(app: Arc<App>, mut outbox: Outbox, told: Arc<Told>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = app.desired_changed.notified() => {}
            () = shutdown.cancelled() => return,
        }
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
