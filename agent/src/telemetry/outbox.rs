//! What leaves the spool and when: a window of frames on their way, sent again when their acknowledgement does not come.
//!
//! No network, no clock, no task: it is told what happened and when, and answers with what to publish. Invariant: a frame
//! leaves the spool on the control plane's acknowledgement only, so whatever is lost on the way is sent again.

use std::{collections::BTreeMap, time::Duration};

use skerry_shared::desired::FrameId;
use tokio::time::Instant;

use super::{collect::Frame, spool::Spool};

/// Far above a round trip and a commit; a frame sent twice costs only its bytes.
const RESEND_AFTER: Duration = Duration::from_secs(30);

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// A collection was made.
    Collected(Vec<Frame>),
    /// The control plane has committed frames.
    Acked(Vec<FrameId>),
    /// A connection is up; what was on its way in the one before may be lost.
    Connected,
    /// There is no connection.
    Disconnected,
    /// The deadline has passed.
    Overdue,
}

/// The spool with its window.
pub(super) struct Outbox {
    spool: Spool,
    /// When each frame of the window was sent last.
    sent: BTreeMap<FrameId, Instant>,
    connected: bool,
}

impl Outbox {
    pub(super) fn new(spool: Spool) -> Outbox {
        Outbox {
            spool,
            sent: BTreeMap::new(),
            connected: false,
        }
    }

    /// Takes an event in, and returns the frames to be published now.
    pub(super) fn handle(&mut self, event: Event, now: Instant) -> Vec<Vec<u8>> {
        match event {
            Event::Collected(frames) => {
                for frame in frames {
                    if let Err(error) = self.spool.append(&frame) {
                        let error = format!("{:#}", anyhow::Error::new(error));
                        tracing::error!(error, points = frame.points, "telemetry cannot be kept and is dropped");
                    }
                }
            }
            Event::Acked(frames) => {
                for id in frames {
                    self.sent.remove(&id);
                    if let Err(error) = self.spool.acked(&id) {
                        tracing::warn!(
                            error = format!("{:#}", anyhow::Error::new(error)),
                            "cannot tidy the spool"
                        );
                    }
                }
            }
            Event::Connected => {
                self.connected = true;
                self.sent.clear();
            }
            Event::Disconnected => self.connected = false,
            Event::Overdue => {}
        }
        if self.connected { self.due(now) } else { Vec::new() }
    }

    fn due(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut due = Vec::new();
        for id in self.spool.window() {
            let waits = self.sent.get(&id).is_some_and(|sent| now < *sent + RESEND_AFTER);
            if !waits && let Some(bytes) = self.spool.read(&id) {
                due.push(bytes);
                self.sent.insert(id, now);
            }
        }
        due
    }

    /// When [`Event::Overdue`] is to be told.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let oldest = self.sent.values().min().filter(|_| self.connected)?;
        Some(*oldest + RESEND_AFTER)
    }

    pub(super) fn spool(&self) -> &Spool {
        &self.spool
    }
}
