//! An embedded MQTT 3.1.1 and 5 broker behind two hooks: who is it, and may it use this topic?
//!
//! It wraps the `mqtt5` crate, whose types appear nowhere in the public API, and sets every default of it that an
//! open network turns against us. It knows nothing of devices, models or topic layouts: the owner of the [`Hooks`]
//! does. With TLS every client shows a certificate, which the owner's configuration verifies and its hooks read.
//!
//! Invariant: nothing is delivered to or taken from a connection before [`Hooks::authenticate`] named its identity,
//! and memory per connection, per session and in total is bounded by [`Limits`].

mod accept;
mod auth;
mod broker;
mod connections;
mod error;
mod hooks;
mod limits;
mod shares;

pub use broker::{Broker, BrokerConfig, Disconnect};
pub use error::BrokerError;
pub use hooks::{Access, Admission, Authentication, Connect, Hooks, Identity, Refusal};
pub use limits::{Limits, limit_writes};
pub use shares::{Share, Shares, network_of};
