//! The rules of the embedded broker, and whom it has let in.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use skerry_broker::{Access, Admission, Authentication, Connect, Hooks, Identity, Refusal};
use skerry_shared::{id::DeviceId, topic::Topic};

use crate::{
    ca::{
        CONTROL_PLANE,
        certificate::{ClientCertificate, ClientIdentity},
    },
    db::Db,
    devices::store,
};

/// The devices that the embedded broker has let in since it started. It was told of the end of their connections, unlike
/// of those that a crash of this process ended: their retained word that they are online may be a lie.
#[derive(Default)]
pub(crate) struct Admitted(Mutex<HashSet<DeviceId>>);

impl Admitted {
    pub(super) fn add(&self, device: DeviceId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(device);
    }

    /// True when the device has connected since the broker started.
    pub(super) fn contains(&self, device: &DeviceId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(device)
    }
}

/// The embedded broker's rules: a device uses its own topics, the control plane all of ours. Who a client is, its
/// certificate says.
pub(crate) struct BrokerHooks {
    db: Db,
    proof: Proof,
    admitted: Arc<Admitted>,
}

/// What a client must show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// A certificate of the fleet's authority.
    Certificate,
    /// Nothing: whoever is on this machine is believed. For measurements.
    None,
}

impl BrokerHooks {
    pub(crate) fn new(db: Db, proof: Proof) -> BrokerHooks {
        BrokerHooks {
            db,
            proof,
            admitted: Arc::default(),
        }
    }

    /// Whom these rules let in.
    pub(crate) fn admitted(&self) -> Arc<Admitted> {
        Arc::clone(&self.admitted)
    }

    async fn identify(&self, connect: Connect<'_>) -> Result<Admission, Refusal> {
        let id = connect.client_id;
        let shown = connect.certificate.and_then(ClientCertificate::read);
        let key = match (&shown, self.proof) {
            (Some(shown), _) => {
                // The client id belongs to the certificate: with another one it would take over somebody's session.
                let named = match &shown.identity {
                    ClientIdentity::ControlPlane => CONTROL_PLANE,
                    ClientIdentity::Device(device) => device.as_str(),
                };
                if named != id {
                    return Err(Refusal::NotAuthorized);
                }
                Some(&shown.public_key)
            }
            (None, Proof::None) => None,
            (None, Proof::Certificate) => return Err(Refusal::NotAuthorized),
        };
        // A connection is worth what its certificate is: whoever has a renewed one connects again.
        let not_after = shown.as_ref().map(|shown| Duration::from_millis(shown.not_after_ms));
        let admitted = Admission {
            identity: Identity::new(id),
            until: not_after.and_then(|not_after| UNIX_EPOCH.checked_add(not_after)),
        };
        if id == CONTROL_PLANE {
            return Ok(admitted);
        }
        let device: DeviceId = id.parse().map_err(|_| Refusal::NotAuthorized)?;
        let asked = device.clone();
        match self.db.read(move |conn| store::admission(conn, &asked)).await {
            // The key, too: an id that was given to another device later is not the old one's.
            Ok(Some(known)) if !known.revoked && key.is_none_or(|key| *key == known.public_key) => {
                self.admitted.add(device);
                Ok(admitted)
            }
            Ok(_) => Err(Refusal::NotAuthorized),
            Err(_) => Err(Refusal::Unavailable),
        }
    }
}

impl Hooks for BrokerHooks {
    fn authenticate<'a>(&'a self, connect: Connect<'a>) -> Authentication<'a> {
        Box::pin(self.identify(connect))
    }

    fn authorize(&self, identity: &Identity, access: Access, topic: &str) -> bool {
        if identity.as_str() == CONTROL_PLANE {
            return topic.starts_with("skerry/v1/");
        }
        match (topic.parse::<Topic>(), access) {
            (Ok(Topic::Device(device, channel)), access) => {
                device.as_str() == identity.as_str() && channel.is_up() == (access == Access::Publish)
            }
            (Ok(Topic::Shared(_)), access) => access == Access::Subscribe,
            (Err(_), _) => false,
        }
    }
}
