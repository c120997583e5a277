//! Puts the questions of the wrapped broker to our [`Hooks`], one adapter per connection.
//!
//! A connection's identity is what `authenticate` returned for it, kept here; what the wrapped broker passes back as
//! a user id is not read.

use crate::{Access, Admission, Connect, Hooks, Refusal, connections::Connection};
use mqtt5::{
    broker::{AuthProvider, AuthResult},
    packet::connect::ConnectPacket,
    protocol::v5::reason_codes::ReasonCode,
};
use rustls::pki_types::CertificateDer;
use std::{future::Future, net::SocketAddr, pin::Pin, sync::Arc};

/// The hooks, for one connection.
pub(crate) struct ConnectionAuth {
    pub(crate) hooks: Arc<dyn Hooks>,
    pub(crate) connection: Arc<Connection>,
    /// What TLS has verified.
    pub(crate) certificate: Option<CertificateDer<'static>>,
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl ConnectionAuth {
    async fn identify(&self, connect: &ConnectPacket, peer: SocketAddr) -> AuthResult {
        self.connection.claim(&connect.client_id);
        let asked = Connect {
            client_id: &connect.client_id,
            user_name: connect.username.as_deref(),
            password: connect.password.as_deref(),
            certificate: self.certificate.as_deref(),
            peer,
        };
        let Admission { identity, until } = match self.hooks.authenticate(asked).await {
            Ok(admission) => admission,
            Err(Refusal::NotAuthorized) => return AuthResult::fail(ReasonCode::NotAuthorized),
            Err(Refusal::Unavailable) => return AuthResult::fail(ReasonCode::ServerUnavailable),
        };
        // The wrapped broker would drop a forbidden will in silence when it is due; its owner should know now.
        if let Some(will) = &connect.will {
            let topic = &will.topic;
            let valid = mqtt5::is_valid_topic_name(topic);
            if !valid || !self.hooks.authorize(&identity, Access::Publish, topic) {
                tracing::warn!(client.id = connect.client_id, topic, "last will is not allowed");
                return AuthResult::fail(ReasonCode::NotAuthorized);
            }
        }
        // The user id makes the wrapped broker refuse to hand a stored session to another identity.
        let user = identity.as_str().to_owned();
        self.connection.identify(identity, until);
        AuthResult::success_with_user(user)
    }

    fn allows(&self, access: Access, topic: &str) -> bool {
        let Some(identity) = self.connection.identity() else {
            return false;
        };
        self.hooks.authorize(identity, access, topic)
    }

    fn allows_filter(&self, filter: &str) -> bool {
        let Some(shared) = filter.strip_prefix("$share/") else {
            return self.allows(Access::Subscribe, filter);
        };
        // The wrapped broker never forgets a share group: only a client that may use the prefix gets to name one.
        shared.split_once('/').is_some_and(|(_group, inner)| {
            self.allows(Access::Subscribe, inner) && self.allows(Access::Subscribe, filter)
        })
    }
}

impl AuthProvider for ConnectionAuth {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        client_addr: SocketAddr,
    ) -> Answer<'a, mqtt5::Result<AuthResult>> {
        Box::pin(async move { Ok(self.identify(connect, client_addr).await) })
    }

    fn authorize_publish<'a>(&'a self, _client_id: &str, _user: Option<&'a str>, topic: &'a str) -> Answer<'a, bool> {
        Box::pin(std::future::ready(self.allows(Access::Publish, topic)))
    }

    fn authorize_subscribe<'a>(
        &'a self,
        _client_id: &str,
        _user: Option<&'a str>,
        filter: &'a str,
    ) -> Answer<'a, bool> {
        Box::pin(std::future::ready(self.allows_filter(filter)))
    }
}
