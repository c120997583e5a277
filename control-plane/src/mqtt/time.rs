//! Answers devices that ask for the time.
//!
//! Each answer costs a signature, so a device gets one in [`EVERY`], however often it asks. Invariant: what is remembered is
//! at most one moment for each device that asked within that time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use rumqttc::QoS;
use skerry_shared::{
    id::DeviceId,
    schema::{Envelope, SchemaVersion},
    time::{TIME_PAYLOAD_TYPE, TimeAnswer, TimeRequest},
    topic::{Channel, Topic},
};

use super::outbox::Message;
use crate::signing::online::OnlineKeys;

/// A device asks once a connection, and again after a minute without an answer.
const EVERY: Duration = Duration::from_secs(2);

/// When each device was last answered.
#[derive(Default)]
pub(super) struct TimeDesk {
    answered: HashMap<DeviceId, Instant>,
}

impl TimeDesk {
    /// The answer to a question, or nothing if this device was answered just before.
    pub(super) fn answer(
        &mut self,
        keys: &OnlineKeys,
        device: DeviceId,
        request: &TimeRequest,
        (now, now_ms): (Instant, u64),
    ) -> Option<Message> {
        self.answered.retain(|_, at| now.duration_since(*at) < EVERY);
        if self.answered.contains_key(&device) {
            return None;
        }
        self.answered.insert(device.clone(), now);
        let answer = TimeAnswer {
            schema: SchemaVersion::CURRENT,
            device: device.clone(),
            nonce: request.nonce,
            time_ms: now_ms,
        };
        Some(Message {
            topic: Topic::Device(device, Channel::Time),
            qos: QoS::AtLeastOnce,
            retain: false,
            payload: keys.sign_time(TIME_PAYLOAD_TYPE, &answer.to_json()).to_json(),
        })
    }
}
