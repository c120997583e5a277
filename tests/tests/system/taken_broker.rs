//! A broker that was taken over: it lets everybody in, everybody may say everything, and one of them is the intruder.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rumqttc::{AsyncClient, EventLoop, MqttOptions, QoS};
use skerry_broker::{Access, Authentication, Broker, BrokerConfig, Connect, Hooks, Identity, Limits};
use skerry_system_tests::{Fleet, FleetConfig};

use crate::PROGRAM;

#[derive(Default)]
pub(crate) struct Everybody {
    /// Once set, the control plane's own parts are dropped.
    pub(crate) drops_parts: AtomicBool,
}

impl Hooks for Everybody {
    fn authenticate<'a>(&'a self, connect: Connect<'a>) -> Authentication<'a> {
        let identity = Identity::new(connect.client_id);
        Box::pin(async move { Ok(identity.into()) })
    }

    fn authorize(&self, identity: &Identity, access: Access, topic: &str) -> bool {
        let is_real_part =
            access == Access::Publish && topic.ends_with("/chunk") && identity.as_str() == "skerry-control-plane";
        !(is_real_part && self.drops_parts.load(Ordering::SeqCst))
    }
}

/// The taken-over broker, and the one who took it.
pub(crate) struct TakenBroker {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) hooks: Arc<Everybody>,
    broker: Option<Broker>,
    client: AsyncClient,
}

impl TakenBroker {
    pub(crate) fn start() -> TakenBroker {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let config = BrokerConfig {
            bind: ([127, 0, 0, 1], 0).into(),
            storage: None,
            tls: None,
            limits: Limits::default(),
        };
        let hooks = Arc::new(Everybody::default());
        let broker = runtime.block_on(Broker::start(config, hooks.clone())).unwrap();
        let (client, mut events) = connect(&broker, "intruder");
        runtime.spawn(async move { while events.poll().await.is_ok() {} });
        TakenBroker {
            runtime,
            hooks,
            broker: Some(broker),
            client,
        }
    }

    /// A fleet whose control plane and devices use this broker, and do not know.
    pub(crate) fn fleet(&self) -> Fleet {
        let address = self.broker.as_ref().unwrap().local_addr();
        let config = FleetConfig {
            external_broker: Some(format!("mqtt://skerry-control-plane:x@{address}")),
            ..FleetConfig::default()
        };
        Fleet::start_with(PROGRAM, config).unwrap()
    }

    /// One more connection of the intruder.
    pub(crate) fn connect(&self, client_id: &str) -> (AsyncClient, EventLoop) {
        connect(self.broker.as_ref().unwrap(), client_id)
    }

    pub(crate) fn publish(&self, topic: &str, retain: bool, payload: impl Into<Vec<u8>>) {
        let sent = self.client.publish(topic, QoS::AtLeastOnce, retain, payload.into());
        self.runtime.block_on(sent).unwrap();
    }
}

fn connect(broker: &Broker, client_id: &str) -> (AsyncClient, EventLoop) {
    let address = broker.local_addr();
    let mut options = MqttOptions::new(client_id, address.ip().to_string(), address.port());
    options.set_credentials(client_id, "x");
    options.set_max_packet_size(256 * 1024, 256 * 1024);
    AsyncClient::new(options, 256)
}

impl Drop for TakenBroker {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.take() {
            self.runtime.block_on(broker.shutdown());
        }
    }
}
