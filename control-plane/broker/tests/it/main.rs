//! The broker as clients see it: real MQTT 3.1.1 clients on loopback, a real broker on a free port.
//!
//! Nothing here waits by the clock. "It was not delivered" is shown by a later message that arrives first.

#![allow(clippy::unwrap_used)]

mod access;
mod client;
mod delivery;
mod lifecycle;
mod limits;
mod tls;

use client::Client;
use skerry_broker::{Access, Authentication, Broker, BrokerConfig, Connect, Hooks, Identity, Limits, Refusal};
use std::{future::ready, sync::Arc, time::Duration};
use tokio::time::{error::Elapsed, timeout};

/// Long enough for a loaded machine; reached only when a test fails.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    let outcome: Result<T, Elapsed> = timeout(Duration::from_secs(20), future).await;
    outcome.expect("this should have happened long ago")
}

/// Every client's user name is its client id and its password `password-<id>`. `control` may do everything, any other
/// only use its own four topics.
struct Rules;

impl Hooks for Rules {
    fn authenticate<'a>(&'a self, connect: Connect<'a>) -> Authentication<'a> {
        let expected = format!("password-{}", connect.client_id);
        Box::pin(ready(if connect.client_id == "unlucky" {
            Err(Refusal::Unavailable)
        } else if connect.user_name == Some(connect.client_id) && connect.password == Some(expected.as_bytes()) {
            Ok(Identity::new(connect.client_id).into())
        } else {
            Err(Refusal::NotAuthorized)
        }))
    }

    fn authorize(&self, identity: &Identity, access: Access, topic: &str) -> bool {
        let own = |leaves: [&str; 2]| leaves.iter().any(|leaf| topic == format!("d/{identity}/{leaf}"));
        identity.as_str() == "control"
            || match access {
                Access::Publish => own(["reported", "status"]),
                Access::Subscribe => own(["desired", "chunk"]),
            }
    }
}

fn config(limits: Limits) -> BrokerConfig {
    BrokerConfig {
        bind: "127.0.0.1:0".parse().unwrap(),
        storage: None,
        tls: None,
        limits,
    }
}

async fn start(config: BrokerConfig) -> Broker {
    Broker::start(config, Arc::new(Rules)).await.unwrap()
}

async fn start_default() -> Broker {
    start(config(Limits::default())).await
}

async fn connect(broker: &Broker, id: &str) -> Client {
    Client::connect(client::options(broker, id)).await.unwrap()
}
