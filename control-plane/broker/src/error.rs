//! Why a broker did not start. Once it runs, a failure concerns one connection and is logged there.

use std::{error::Error, io, net::SocketAddr, path::PathBuf};

/// The broker could not be started; nothing is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// The address is taken, not ours, or not allowed.
    #[error("cannot listen for MQTT on {address}")]
    Bind {
        /// The address that was asked for.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// A limit is below the least value with which the broker works.
    #[error("broker limit {name} is {value}, but must be at least {at_least}")]
    Limit {
        /// The field of [`Limits`](crate::Limits).
        name: &'static str,
        /// The value it was given.
        value: usize,
        /// The least value allowed.
        at_least: usize,
    },
    /// The storage path is empty, which would mean the working directory.
    #[error("the path of the broker's storage is empty")]
    EmptyStoragePath,
    /// The storage folder cannot be created or read, or another broker uses it.
    #[error("cannot open the broker's storage in {}", path.display())]
    OpenStorage {
        /// The folder.
        path: PathBuf,
        /// What the store said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The storage is open but what it holds cannot be loaded.
    #[error("cannot load the broker's stored sessions and retained messages")]
    Restore {
        /// What the store said.
        source: Box<dyn Error + Send + Sync>,
    },
}
