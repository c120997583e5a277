//! How much anybody may ask: requests a second by token and by address, requests and streams at once, time.
//!
//! The defaults are far above what people, the command line and a fleet that enrols need; they stop a loop that went wild and
//! somebody who wants the control plane to do nothing else. Invariant: what is remembered of tokens and addresses is bounded.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Credential, Network};

/// Tokens and addresses that are remembered: a few dozen bytes each.
const KEYS_MAX: usize = 20_000;

/// Requests over time: a bucket of `burst` that fills with `per_second`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests a second in the long run.
    pub per_second: NonZeroU32,
    /// Requests in a row.
    pub burst: NonZeroU32,
}

/// How much anybody may ask of the API and the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// For one token or signed-in user.
    pub per_token: Rate,
    /// For one address, as long as nobody has signed in: enrolment, metadata, sign-in. Many devices may share one.
    pub per_address: Rate,
    /// Requests that are answered at once, streams not counted.
    pub requests_at_once: NonZeroU32,
    /// Event streams and followed logs at once.
    pub streams_at_once: NonZeroU32,
    /// The longest that a request without an upload may take, in seconds.
    pub request_seconds: NonZeroU32,
    /// The longest that an upload may take, in seconds.
    pub upload_seconds: NonZeroU32,
}

impl Default for RequestLimits {
    fn default() -> RequestLimits {
        const fn number(n: u32) -> NonZeroU32 {
            NonZeroU32::new(n).expect("limits are not zero")
        }
        RequestLimits {
            // A publisher uploads a bundle chunk by chunk: some thousand calls as fast as they go.
            per_token: Rate {
                per_second: number(500),
                burst: number(20_000),
            },
            // A thousand devices behind one address enrol at once and fetch metadata.
            per_address: Rate {
                per_second: number(100),
                burst: number(5000),
            },
            requests_at_once: number(512),
            streams_at_once: number(512),
            request_seconds: number(60),
            // 256 MiB over 3 Mbit/s.
            upload_seconds: number(900),
        }
    }
}

/// What is asked at the moment.
pub(crate) struct Load {
    by_credential: DefaultKeyedRateLimiter<Credential>,
    by_network: DefaultKeyedRateLimiter<Network>,
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

impl Load {
    pub(super) fn new(limits: &RequestLimits) -> Load {
        let quota = |rate: Rate| Quota::per_second(rate.per_second).allow_burst(rate.burst);
        let permits = |count: NonZeroU32| Arc::new(Semaphore::new(count.get() as usize));
        Load {
            by_credential: RateLimiter::keyed(quota(limits.per_token)),
            by_network: RateLimiter::keyed(quota(limits.per_address)),
            requests: permits(limits.requests_at_once),
            streams: permits(limits.streams_at_once),
        }
    }

    /// Counts a request of somebody who has signed in.
    ///
    /// # Errors
    /// How long to wait.
    pub(crate) fn count_credential(&self, credential: &Credential) -> Result<(), Duration> {
        count(&self.by_credential, credential)
    }

    /// Counts a request of whoever is at this address.
    ///
    /// # Errors
    /// How long to wait.
    pub(crate) fn count_network(&self, network: Network) -> Result<(), Duration> {
        count(&self.by_network, &network)
    }

    /// A place for a request, for as long as it is being answered; none when all are taken.
    pub(crate) fn request(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.requests).try_acquire_owned().ok()
    }

    /// A place for a stream, for as long as it goes on; none when all are taken.
    pub(crate) fn stream(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.streams).try_acquire_owned().ok()
    }
}

fn count<K: Clone + Eq + std::hash::Hash>(limiter: &DefaultKeyedRateLimiter<K>, key: &K) -> Result<(), Duration> {
    if limiter.len() >= KEYS_MAX {
        // Whose bucket is full again need not be remembered.
        limiter.retain_recent();
        limiter.shrink_to_fit();
    }
    if limiter.len() >= KEYS_MAX {
        // So many at once are no customers. Those that come now wait until some are forgotten.
        return Err(Duration::from_secs(1));
    }
    limiter
        .check_key(key)
        .map_err(|until| until.wait_time_from(DefaultClock::default().now()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn load(burst: u32) -> Load {
        let rate = Rate {
            per_second: NonZeroU32::MIN,
            burst: NonZeroU32::new(burst).unwrap(),
        };
        Load::new(&RequestLimits {
            per_token: rate,
            per_address: rate,
            requests_at_once: NonZeroU32::MIN,
            ..RequestLimits::default()
        })
    }

    fn network(n: u32) -> Network {
        IpAddr::V4(std::net::Ipv4Addr::from_bits(n)).into()
    }

    #[test]
    fn each_address_and_token_has_a_bucket_of_its_own() {
        let load = load(3);
        for _ in 0..3 {
            load.count_network(network(1)).unwrap();
        }
        let wait = load.count_network(network(1)).unwrap_err();
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        load.count_network(network(2)).unwrap();
        let token = |id: &str| Credential::Token(id.parse().unwrap());
        for _ in 0..3 {
            load.count_credential(&token("0123456789abcdef")).unwrap();
        }
        load.count_credential(&token("0123456789abcdef")).unwrap_err();
        load.count_credential(&token("fedcba9876543210")).unwrap();
    }

    #[test]
    fn a_flood_of_addresses_is_not_remembered_without_end() {
        let load = load(1);
        let counted = (0..2 * KEYS_MAX as u32).filter(|n| load.count_network(network(*n)).is_ok());
        assert!(counted.count() >= KEYS_MAX);
        assert!(load.by_network.len() <= KEYS_MAX);
    }

    #[test]
    fn a_place_is_free_again_when_its_request_has_ended() {
        let load = load(1);
        let first = load.request().unwrap();
        assert!(load.request().is_none());
        drop(first);
        assert!(load.request().is_some());
    }
}
