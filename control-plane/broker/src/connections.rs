//! The open connections: who each of them claims to be, who it is, and how to end it.
//!
//! Invariant: an entry lives exactly as long as the task that serves its socket.

use crate::{Identity, Share};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{Notify, broadcast},
    time::sleep,
};

/// How often the clock is looked at while an end is far away: it may be set meanwhile, and a sleep would not notice.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(600);

/// One open socket.
pub(crate) struct Connection {
    claimed_client_id: OnceLock<String>,
    admitted: OnceLock<(Identity, Option<SystemTime>)>,
    /// Told once, when the client is identified.
    identified: Notify,
    /// What the socket holds of its network's share until then.
    share: Mutex<Option<Share>>,
    stop: broadcast::Sender<()>,
}

impl Connection {
    /// Notes the client id of CONNECT. Called before the hook is asked, so that a client which is disconnected
    /// while the hook decides does not slip through.
    pub(crate) fn claim(&self, client_id: &str) {
        self.claimed_client_id.get_or_init(|| client_id.to_owned());
    }

    /// Notes who the client is and until when that counts. Only the first answer counts; MQTT allows only one CONNECT.
    pub(crate) fn identify(&self, identity: Identity, until: Option<SystemTime>) {
        self.admitted.get_or_init(|| (identity, until));
        drop(self.share.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.identified.notify_one();
    }

    /// Returns who the client is, once the hook has said so.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.admitted.get().map(|(identity, _)| identity)
    }

    /// Ends the connection when what its client has shown ends. For one caller, which drops this with the connection.
    pub(crate) async fn stop_in_time(&self) {
        self.identified.notified().await;
        let Some((_, Some(until))) = self.admitted.get() else {
            return std::future::pending().await;
        };
        while let Ok(left) = until.duration_since(SystemTime::now())
            && !left.is_zero()
        {
            sleep(left.min(LOOK_AT_CLOCK)).await;
        }
        self.stop();
        std::future::pending().await
    }

    /// Returns a receiver that gets one message when the connection must end.
    pub(crate) fn stopped(&self) -> broadcast::Receiver<()> {
        self.stop.subscribe()
    }

    fn stop(&self) {
        // An error means that nobody listens any more: the connection has just ended by itself.
        let _ = self.stop.send(());
    }
}

/// All open sockets.
#[derive(Default)]
pub(crate) struct Connections {
    open: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next_key: u64,
    by_key: HashMap<u64, Arc<Connection>>,
}

impl Connections {
    /// Adds a connection; it is removed when the returned guard is dropped.
    pub(crate) fn open(self: &Arc<Self>, share: Share) -> OpenConnection {
        let connection = Arc::new(Connection {
            claimed_client_id: OnceLock::new(),
            admitted: OnceLock::new(),
            identified: Notify::new(),
            share: Mutex::new(Some(share)),
            stop: broadcast::channel(1).0,
        });
        let mut table = self.table();
        let key = table.next_key;
        table.next_key += 1;
        table.by_key.insert(key, Arc::clone(&connection));
        OpenConnection {
            key,
            connection,
            connections: Arc::clone(self),
        }
    }

    /// Ends every connection that claims this client id.
    pub(crate) fn stop_client(&self, client_id: &str) {
        self.table()
            .by_key
            .values()
            .filter(|connection| connection.claimed_client_id.get().is_some_and(|id| id == client_id))
            .for_each(|connection| connection.stop());
    }

    /// Ends every connection.
    pub(crate) fn stop_all(&self) {
        self.table().by_key.values().for_each(|connection| connection.stop());
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No code panics while it holds the lock, and the table is whole after every statement.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a connection in the table.
pub(crate) struct OpenConnection {
    key: u64,
    pub(crate) connection: Arc<Connection>,
    connections: Arc<Connections>,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.connections.table().by_key.remove(&self.key);
    }
}
