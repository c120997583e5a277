//! What one connection, one session and the whole broker may use. Every value is enforced; none means "unlimited".

use crate::BrokerError;
use socket2::SockRef;
use std::{io, time::Duration};
use tokio::net::TcpStream;

/// The least packet limit with which a full transfer chunk and its envelope pass.
const MIN_PACKET_BYTES: usize = 192 * 1024;

/// Bounds on memory and time, each with its unit and the failure it stops.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Largest MQTT packet, in bytes, topic and header included; at least 192 KiB. Default 256 KiB.
    ///
    /// A connection's buffer keeps the size of the largest packet it carried, so this times `max_clients` is the
    /// worst case in memory. A larger packet closes the connection that sent it.
    pub max_packet_bytes: usize,
    /// Open sockets, including those that have not identified themselves yet. Default 10,000.
    ///
    /// Stops a flood of connections from using up memory and file descriptors: the next one is closed at once.
    pub max_clients: usize,
    /// How long a TLS handshake may take. Default 10 s.
    ///
    /// Stops sockets that say nothing from holding places.
    pub handshake_timeout: Duration,
    /// Open sockets of one network that have not identified themselves yet. Default 256.
    ///
    /// Stops one address from taking the places of all others. Whoever is identified does not count any more, so that a
    /// fleet behind one address connects as a whole, so many at a time.
    pub handshakes_per_network: usize,
    /// How long a client may take nothing of what is written to it. Default 60 s.
    ///
    /// Stops a client that does not read from holding its place, and what waits for it, for ever.
    pub write_timeout: Duration,
    /// Messages waiting in memory for one connected subscriber, for QoS 0 and for QoS 1–2 each. Default 64.
    ///
    /// When full, a QoS 0 message is dropped and a QoS 1–2 message waits at most 2 s, then goes to the session's
    /// queue. The large default of the wrapped broker let one stalled subscriber hold 676 MiB.
    pub client_channel_capacity: usize,
    /// Unacknowledged QoS 1–2 messages that a client may send. Default 64.
    ///
    /// Bounds what half-finished QoS 2 exchanges keep in memory.
    pub server_receive_maximum: u16,
    /// Unacknowledged QoS 1–2 messages sent to one client. Default 64.
    pub max_outbound_inflight: u16,
    /// Messages queued for one session, mostly while its client is away; then the oldest is dropped. Default 4,096.
    pub max_queued_messages: usize,
    /// Bytes queued for one session; then the oldest message is dropped. Default 16 MiB.
    pub max_queued_bytes: usize,
    /// Topic filters of one client. Default 64.
    ///
    /// Stops a client from filling the subscription table.
    pub max_subscriptions_per_client: usize,
    /// Retained messages in the whole broker. Default 100,000: some for each of `max_clients`.
    pub max_retained_messages: usize,
    /// How long a session and its queue outlive the connection, whatever the client asked for. Default 7 days.
    ///
    /// Stops the sessions of clients that never return from piling up.
    pub session_expiry: Duration,
    /// How often expired sessions are removed. Default 10 minutes.
    pub sweep_interval: Duration,
    /// How long a shutdown waits for connections to finish before it cuts them off. Default 5 s.
    pub shutdown_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_packet_bytes: 256 * 1024,
            max_clients: 10_000,
            handshake_timeout: Duration::from_secs(10),
            handshakes_per_network: 256,
            write_timeout: Duration::from_secs(60),
            client_channel_capacity: 64,
            server_receive_maximum: 64,
            max_outbound_inflight: 64,
            max_queued_messages: 4096,
            max_queued_bytes: 16 * 1024 * 1024,
            max_subscriptions_per_client: 64,
            max_retained_messages: 100_000,
            session_expiry: Duration::from_secs(7 * 24 * 60 * 60),
            sweep_interval: Duration::from_secs(10 * 60),
            shutdown_deadline: Duration::from_secs(5),
        }
    }
}

impl Limits {
    /// Refuses values with which nothing would work, or which the wrapped broker reads as "unlimited".
    pub(crate) fn validate(&self) -> Result<(), BrokerError> {
        let least = [
            ("max_packet_bytes", self.max_packet_bytes, MIN_PACKET_BYTES),
            ("max_clients", self.max_clients, 1),
            ("handshakes_per_network", self.handshakes_per_network, 1),
            ("write_timeout (ms)", millis(self.write_timeout), 1),
            ("client_channel_capacity", self.client_channel_capacity, 1),
            ("server_receive_maximum", self.server_receive_maximum.into(), 1),
            ("max_outbound_inflight", self.max_outbound_inflight.into(), 1),
            ("max_queued_messages", self.max_queued_messages, 1),
            ("max_queued_bytes", self.max_queued_bytes, self.max_packet_bytes),
            ("max_subscriptions_per_client", self.max_subscriptions_per_client, 1),
            ("max_retained_messages", self.max_retained_messages, 1),
            ("sweep_interval (ms)", millis(self.sweep_interval), 1),
        ];
        for (name, value, at_least) in least {
            if value < at_least {
                return Err(BrokerError::Limit { name, value, at_least });
            }
        }
        Ok(())
    }
}

/// Lets the system end a connection whose other side takes nothing of what was written for `timeout`: it acknowledges nothing, or
/// says all the time that it has no room (TCP_USER_TIMEOUT). Whoever writes, or waits to, then gets an error.
///
/// # Errors
///
/// The system's.
pub fn limit_writes(stream: &TcpStream, timeout: Duration) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(Some(timeout))
}

fn millis(duration: Duration) -> usize {
    usize::try_from(duration.as_millis()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn defaults_are_valid() {
        Limits::default().validate().unwrap();
    }

    #[test]
    fn too_small_a_packet_limit_is_named() {
        let limits = Limits {
            max_packet_bytes: 192 * 1024 - 1,
            ..Limits::default()
        };
        let error = limits.validate().unwrap_err().to_string();
        assert!(
            error.contains("max_packet_bytes") && error.contains("196608"),
            "{error}"
        );
    }

    #[test]
    fn zero_never_means_unlimited() {
        let limits = Limits {
            max_retained_messages: 0,
            ..Limits::default()
        };
        assert!(limits.validate().is_err());
        let limits = Limits {
            max_subscriptions_per_client: 0,
            ..Limits::default()
        };
        assert!(limits.validate().is_err());
    }
}
