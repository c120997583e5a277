//! The rules of the embedded broker, and whom it has let in.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use skerry_broker::{Access, Authentication, Connect, Hooks, Identity, Refusal};
use skerry_shared::{digest::Digest, id::DeviceId, topic::Topic};

use super::CONTROL_PLANE;
use crate::{db::Db, devices::store};

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

/// The embedded broker's rules: a device uses its own topics, the control plane all of ours.
pub(crate) struct BrokerHooks {
    db: Db,
    own_password: Digest,
    admitted: Arc<Admitted>,
}

impl BrokerHooks {
    pub(crate) fn new(db: Db, own_password: Digest) -> BrokerHooks {
        BrokerHooks {
            db,
            own_password,
            admitted: Arc::default(),
        }
    }

    /// Whom these rules let in.
    pub(crate) fn admitted(&self) -> Arc<Admitted> {
        Arc::clone(&self.admitted)
    }

    async fn identify(&self, connect: Connect<'_>) -> Result<Identity, Refusal> {
        let (Some(user), Some(password)) = (connect.user_name, connect.password) else {
            return Err(Refusal::NotAuthorized);
        };
        if user != connect.client_id {
            return Err(Refusal::NotAuthorized);
        }
        let got = Digest::of(password);
        if user == CONTROL_PLANE {
            let same = got == self.own_password;
            return if same {
                Ok(Identity::new(user))
            } else {
                Err(Refusal::NotAuthorized)
            };
        }
        let device: DeviceId = user.parse().map_err(|_| Refusal::NotAuthorized)?;
        let id = device.clone();
        // Both sides are digests of high-entropy secrets: a comparison that stops early tells nothing.
        match self.db.read(move |conn| store::secret_hash(conn, &id)).await {
            Ok(Some(hash)) if hash == *got.as_bytes() => {
                self.admitted.add(device);
                Ok(Identity::new(user))
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
