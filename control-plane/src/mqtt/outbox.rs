//! What the control plane says, and over which connection.
//!
//! rumqttc keeps requests of an outage in its queue, where they would wait for hours and keep newer ones out. Invariant:
//! nothing is queued, and nobody waits, while there is no connection.

use rumqttc::{AsyncClient, QoS};
use skerry_shared::topic::Topic;
use tokio::sync::watch;

/// Tells one connection to the broker from the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ConnectionId(u64);

impl ConnectionId {
    /// The id of the connection after this one.
    pub(super) fn next(self) -> ConnectionId {
        ConnectionId(self.0 + 1)
    }
}

/// A message to a device.
pub(super) struct Message {
    pub(super) topic: Topic,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    pub(super) payload: Vec<u8>,
}

/// The connection is gone, and the message with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// The sending side of the edge; cheap to clone.
#[derive(Clone)]
pub(super) struct Outbox {
    client: AsyncClient,
    connection: watch::Receiver<Option<ConnectionId>>,
}

impl Outbox {
    pub(super) fn new(client: AsyncClient, connection: watch::Receiver<Option<ConnectionId>>) -> Outbox {
        Outbox { client, connection }
    }

    /// The connection that lives now.
    pub(super) fn connection(&self) -> Option<ConnectionId> {
        *self.connection.borrow()
    }

    /// Hands a message to a connection; waits while it is slow.
    ///
    /// # Errors
    /// [`Gone`]: that connection does not live any more.
    pub(super) async fn publish(&mut self, on: ConnectionId, message: Message) -> Result<(), Gone> {
        let Message {
            topic,
            qos,
            retain,
            payload,
        } = message;
        tokio::select! {
            biased;
            _ = self.connection.wait_for(|connection| *connection != Some(on)) => Err(Gone),
            sent = self.client.publish(topic.to_string(), qos, retain, payload) => sent.map_err(|_| Gone),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::task::Poll;

    use rumqttc::MqttOptions;
    use skerry_shared::topic::Channel;

    use super::*;

    fn message() -> Message {
        Message {
            topic: Topic::Device("d-1".parse().unwrap(), Channel::Chunk),
            qos: QoS::AtMostOnce,
            retain: false,
            payload: Vec::new(),
        }
    }

    #[tokio::test]
    async fn whoever_waits_for_a_connection_that_ends_is_told_and_leaves_nothing_behind() {
        let first = ConnectionId::default().next();
        let (client, _events) = AsyncClient::new(MqttOptions::new("c", "127.0.0.1", 1), 1);
        let (state, watched) = watch::channel(Some(first));
        let mut outbox = Outbox::new(client.clone(), watched);
        assert_eq!(outbox.publish(first, message()).await, Ok(()));
        {
            let mut waits = std::pin::pin!(outbox.publish(first, message()));
            assert_eq!(futures_util::poll!(&mut waits), Poll::Pending);
            state.send_replace(None);
            assert_eq!(waits.await, Err(Gone));
        }
        state.send_replace(Some(first.next()));
        assert_eq!(outbox.publish(first, message()).await, Err(Gone));
    }
}
