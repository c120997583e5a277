//! The MQTT topics (DESIGN §5). Devices use exact topics; only the control plane subscribes with wildcards.

use std::{fmt, str::FromStr};

use crate::{digest::Digest, id::DeviceId};

const ROOT: &str = "skerry/v1";

/// What a device's topic carries, and which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Down, retained: a [`crate::dsse::Envelope`] around [`crate::desired::Desired`].
    Desired,
    /// Up, retained: [`crate::desired::Reported`].
    Reported,
    /// Up: [`crate::otlp::TelemetryFrame`].
    Telemetry,
    /// Up: single events.
    Events,
    /// Up: captured samples.
    Capture,
    /// Up: [`crate::transfer::Want`].
    Want,
    /// Down: [`crate::transfer::Part`].
    Chunk,
    /// Down: [`crate::desired::Ack`], sent after the control plane's own commit.
    Ack,
    /// Up, retained, also the last will: [`crate::desired::Status`].
    Status,
    /// Up: [`crate::time::TimeRequest`].
    TimeRequest,
    /// Down: a [`crate::dsse::Envelope`] around [`crate::time::TimeAnswer`].
    Time,
}

impl Channel {
    /// Every channel.
    pub const ALL: [Channel; 11] = [
        Channel::Desired,
        Channel::Reported,
        Channel::Telemetry,
        Channel::Events,
        Channel::Capture,
        Channel::Want,
        Channel::Chunk,
        Channel::Ack,
        Channel::Status,
        Channel::TimeRequest,
        Channel::Time,
    ];

    /// The last level of the topic.
    pub const fn as_str(self) -> &'static str {
        match self {
            Channel::Desired => "desired",
            Channel::Reported => "reported",
            Channel::Telemetry => "telemetry",
            Channel::Events => "events",
            Channel::Capture => "capture",
            Channel::Want => "want",
            Channel::Chunk => "chunk",
            Channel::Ack => "ack",
            Channel::Status => "status",
            Channel::TimeRequest => "time-request",
            Channel::Time => "time",
        }
    }

    /// True when the device publishes, false when it subscribes.
    pub const fn is_up(self) -> bool {
        !matches!(self, Channel::Desired | Channel::Chunk | Channel::Ack | Channel::Time)
    }

    /// The filter with which the control plane subscribes to this channel of all devices.
    pub fn of_all_devices(self) -> String {
        format!("{ROOT}/d/+/{}", self.as_str())
    }
}

/// A topic of ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// `skerry/v1/d/{device}/{channel}`.
    Device(DeviceId, Channel),
    /// `skerry/v1/x/{bundle}`: chunks of one bundle for many devices; `bundle` is its chunk index's digest in hex.
    Shared(Digest),
}

/// A topic that is not one of ours, a wildcard filter among them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a Skerry topic")]
pub struct UnknownTopic(String);

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Topic::Device(device, channel) => write!(f, "{ROOT}/d/{device}/{}", channel.as_str()),
            Topic::Shared(bundle) => write!(f, "{ROOT}/x/{}", bundle.to_hex()),
        }
    }
}

impl FromStr for Topic {
    type Err = UnknownTopic;
    fn from_str(text: &str) -> Result<Self, UnknownTopic> {
        parse(text).ok_or_else(|| UnknownTopic(text.chars().take(200).collect()))
    }
}

fn parse(text: &str) -> Option<Topic> {
    let rest = text.strip_prefix(ROOT)?.strip_prefix('/')?;
    let (kind, rest) = rest.split_once('/')?;
    match kind {
        "d" => {
            let (device, channel) = rest.split_once('/')?;
            let channel = Channel::ALL.into_iter().find(|c| c.as_str() == channel)?;
            Some(Topic::Device(device.parse().ok()?, channel))
        }
        "x" => Some(Topic::Shared(Digest::from_hex(rest).ok()?)),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_reads_back() {
        let device: DeviceId = "dev-1".parse().unwrap();
        let mut topics = vec![Topic::Shared(Digest::of(b"bundle"))];
        topics.extend(Channel::ALL.map(|channel| Topic::Device(device.clone(), channel)));
        for topic in topics {
            assert_eq!(topic.to_string().parse::<Topic>().unwrap(), topic);
        }
    }

    #[test]
    fn wildcards_and_strangers_are_no_topics() {
        for text in [
            "",
            "#",
            "skerry/v1/#",
            "skerry/v1/d/+/desired",
            "skerry/v1/d/dev-1",
            "skerry/v1/d/dev-1/x",
            "skerry/v1/d/dev-1/desired/x",
            "skerry/v2/d/dev-1/desired",
            "skerry/v1/x/00",
            "$SYS/broker",
        ] {
            assert!(text.parse::<Topic>().is_err(), "{text}");
        }
    }
}
