//! A client that does one thing after the other and keeps what arrives in between.

use crate::soon;
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, Incoming, MqttOptions, Outgoing, Publish, QoS, SubscribeReasonCode,
};
use skerry_broker::Broker;
use std::collections::VecDeque;

/// Larger than the broker's limit, so that it is the broker that refuses.
const MAX_PACKET_BYTES: usize = 1024 * 1024;

pub(crate) fn options(broker: &Broker, id: &str) -> MqttOptions {
    let address = broker.local_addr();
    let mut options = MqttOptions::new(id, address.ip().to_string(), address.port());
    options.set_credentials(id, format!("password-{id}"));
    options.set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES);
    options
}

pub(crate) struct Client {
    requests: AsyncClient,
    events: EventLoop,
    arrived: VecDeque<Publish>,
    pub(crate) session_present: bool,
}

impl Client {
    pub(crate) async fn connect(options: MqttOptions) -> Result<Self, ConnectionError> {
        let (requests, mut events) = AsyncClient::new(options, 1024);
        loop {
            if let Event::Incoming(Incoming::ConnAck(ack)) = soon(events.poll()).await? {
                let session_present = ack.session_present;
                return Ok(Self {
                    requests,
                    events,
                    arrived: VecDeque::new(),
                    session_present,
                });
            }
        }
    }

    /// Returns whether the broker granted the filter.
    pub(crate) async fn subscribe(&mut self, filter: &str) -> bool {
        self.requests.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        loop {
            if let Event::Incoming(Incoming::SubAck(ack)) = self.event().await.unwrap() {
                return matches!(ack.return_codes[..], [SubscribeReasonCode::Success(_)]);
            }
        }
    }

    /// Publishes at QoS 1 and waits for the acknowledgement.
    pub(crate) async fn publish(&mut self, topic: &str, payload: impl Into<Vec<u8>>) -> Result<(), ConnectionError> {
        self.send(topic, QoS::AtLeastOnce, false, payload.into()).await
    }

    /// Like [`publish`](Self::publish), retained.
    pub(crate) async fn retain(&mut self, topic: &str, payload: impl Into<Vec<u8>>) -> Result<(), ConnectionError> {
        self.send(topic, QoS::AtLeastOnce, true, payload.into()).await
    }

    /// Publishes at QoS 0 and waits until it is written to the socket.
    pub(crate) async fn publish_qos0(&mut self, topic: &str, payload: Vec<u8>) -> Result<(), ConnectionError> {
        self.send(topic, QoS::AtMostOnce, false, payload).await
    }

    async fn send(&mut self, topic: &str, qos: QoS, retain: bool, payload: Vec<u8>) -> Result<(), ConnectionError> {
        self.requests.publish(topic, qos, retain, payload).await.unwrap();
        loop {
            match (qos, self.event().await?) {
                (QoS::AtMostOnce, Event::Outgoing(Outgoing::Publish(_))) => return Ok(()),
                (QoS::AtLeastOnce, Event::Incoming(Incoming::PubAck(_))) => return Ok(()),
                _ => {}
            }
        }
    }

    /// Returns the next message.
    pub(crate) async fn message(&mut self) -> Publish {
        loop {
            if let Some(publish) = self.arrived.pop_front() {
                return publish;
            }
            self.event().await.unwrap();
        }
    }

    /// Returns the next message's payload as text.
    pub(crate) async fn text(&mut self) -> String {
        String::from_utf8(self.message().await.payload.to_vec()).unwrap()
    }

    /// Waits until the broker has closed the connection.
    pub(crate) async fn closed(mut self) {
        while self.event().await.is_ok() {}
    }

    /// Says goodbye, so that no last will is sent, and waits until the broker has closed the connection.
    pub(crate) async fn disconnect(self) {
        self.requests.disconnect().await.unwrap();
        self.closed().await;
    }

    async fn event(&mut self) -> Result<Event, ConnectionError> {
        let event = soon(self.events.poll()).await?;
        if let Event::Incoming(Incoming::Publish(publish)) = &event {
            self.arrived.push_back(publish.clone());
        }
        Ok(event)
    }
}
