//! Telemetry on the device: counts become frames, frames wait on disk, and leave it when the control plane has them.
//!
//! ```text
//! serving → metrics ─┐
//!                    ├─ collect → spool → outbox → link ══▶
//! /proc → host ──────┘              ▲        ▲
//!                                   └────────┴─ ack ◀══
//! ```
//! One task owns all of it and does nothing between events. Invariant: what was recorded is acknowledged, dropped and counted
//! as such, or pending; a kill changes none of the three.

pub(crate) mod metrics;
pub(crate) mod spool;

mod collect;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod cut_tests;
mod host;
mod outbox;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use rumqttc::QoS;
use skerry_shared::{
    desired::Ack,
    id::{BootId, DeviceId},
    schema::Envelope,
    topic::Channel,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinError,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use self::{
    collect::Collector,
    outbox::{Event, Outbox},
    spool::{SPOOL_BYTES, Spool, TelemetryStatus},
};
use crate::{clock::Clock, disk::Disk, link::Sender, serving::Serving};

/// The telemetry task, wired.
pub(crate) struct Task {
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    pub(crate) state_dir: PathBuf,
    pub(crate) interval: Duration,
    pub(crate) device: DeviceId,
    pub(crate) boot_id: BootId,
    pub(crate) serving: Arc<Serving>,
    pub(crate) sender: Sender,
    pub(crate) acks: mpsc::Receiver<Vec<u8>>,
    pub(crate) connection: watch::Receiver<Option<u64>>,
    pub(crate) status: watch::Sender<TelemetryStatus>,
}

impl Task {
    /// Collects and sends until `stop`, and collects once more then. Without a usable spool the agent goes on without telemetry.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let (disk, folder) = (self.disk.clone(), self.state_dir.join("spool"));
        let outbox = match tokio::task::spawn_blocking(move || Spool::open(&disk, &folder, SPOOL_BYTES)).await {
            Ok(Ok(spool)) => Outbox::new(spool),
            Ok(Err(error)) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::error!(error, "there is no telemetry: the spool cannot be opened");
                return;
            }
            Err(error) => {
                tracing::error!(%error, "there is no telemetry: opening the spool ended badly");
                return;
            }
        };
        if let Err(error) = self.serve_events(outbox, &stop).await {
            tracing::error!(%error, "telemetry ended badly; restart the agent");
        }
    }

    async fn serve_events(&mut self, mut outbox: Outbox, stop: &CancellationToken) -> Result<(), JoinError> {
        let (serving, state_dir) = (Arc::clone(&self.serving), self.state_dir.clone());
        let mut collector = Collector::new(
            serving,
            state_dir,
            &self.device,
            self.boot_id.clone(),
            self.clock.now_ns(),
        );
        let mut ticks = tokio::time::interval_at(Instant::now() + self.interval, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.status.send_replace(outbox.spool().status());
        // A connection that came up while the spool was read counts as news.
        self.connection.mark_changed();
        while !stop.is_cancelled() {
            let deadline = outbox.deadline();
            let event = tokio::select! {
                _ = ticks.tick() => collected(&mut collector, &outbox, &self.clock),
                Some(bytes) = self.acks.recv() => match Ack::from_json(&bytes) {
                    Ok(ack) => Event::Acked(ack.frames),
                    Err(error) => {
                        tracing::warn!(%error, "an acknowledgement does not parse");
                        continue;
                    }
                },
                Ok(()) = self.connection.changed() => match *self.connection.borrow_and_update() {
                    Some(_) => Event::Connected,
                    None => Event::Disconnected,
                },
                () = async { match deadline { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => Event::Overdue,
                () = stop.cancelled() => break,
            };
            outbox = self.turn(outbox, event).await?;
        }
        let last = collected(&mut collector, &outbox, &self.clock);
        self.turn(outbox, last).await.map(|_| ())
    }

    /// One event: the disk's part on a thread that may block, then the network's.
    async fn turn(&self, mut outbox: Outbox, event: Event) -> Result<Outbox, JoinError> {
        let now = Instant::now();
        let turned = tokio::task::spawn_blocking(move || {
            let due = outbox.handle(event, now);
            (outbox, due)
        });
        let (outbox, due) = turned.await?;
        // First the counts: nobody may find more in the control plane than this device says it has recorded.
        self.status.send_replace(outbox.spool().status());
        for frame in due {
            // One that does not leave is sent again after its time.
            self.sender.try_publish(Channel::Telemetry, QoS::AtLeastOnce, frame);
        }
        Ok(outbox)
    }
}

fn collected(collector: &mut Collector, outbox: &Outbox, clock: &Clock) -> Event {
    let dropped = outbox.spool().status().points_dropped;
    Event::Collected(collector.collect(clock.now_ns(), dropped))
}
