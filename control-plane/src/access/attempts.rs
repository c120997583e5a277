//! Back-off of failed sign-ins, by account and by network. In memory: a restart forgives.
//!
//! Whoever guesses one account's password from many addresses waits for the account; whoever tries many accounts waits for the
//! address. Invariant: an attempt counts before its password is looked at, so that a hundred at once are not a hundred free
//! ones, and an attempt that had to wait does not count, so that nobody is kept out for ever.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Where a request comes from, as far as limits are concerned: an IPv4 address, or the /64 that one customer has in IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(IpAddr);

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Network {
        Network(skerry_broker::network_of(address))
    }
}

impl Network {
    /// Its address, for what counts by addresses.
    #[cfg(feature = "oidc")]
    pub(super) fn address(self) -> IpAddr {
        self.0
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// How patient the control plane is with one account or one network.
struct Patience {
    /// Failures without a wait: a person mistypes.
    free: u32,
    /// The longest wait.
    longest_ms: u64,
}

/// A minute at most: anybody can make an account wait, and its owner must get in between.
const ACCOUNT: Patience = Patience {
    free: 5,
    longest_ms: 60_000,
};
/// Many people share an address, and none of them needs twenty attempts in a row.
const NETWORK: Patience = Patience {
    free: 20,
    longest_ms: 15 * 60_000,
};
/// After the first free attempts; it doubles from there.
const FIRST_WAIT_MS: u64 = 1000;
/// Failures are forgotten when none has been added for so long.
const FORGET_AFTER_MS: u64 = 30 * 60_000;
/// Accounts and networks that are remembered: some 100 bytes each.
const KEYS_MAX: usize = 10_000;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Account(String),
    Network(Network),
}

#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    count: u32,
    last_ms: u64,
}

impl Failures {
    /// How long to wait from `now_ms` on; 0 when an attempt may be made.
    fn wait_ms(self, patience: &Patience, now_ms: u64) -> u64 {
        let Some(beyond) = self.count.checked_sub(patience.free) else {
            return 0;
        };
        let wait = FIRST_WAIT_MS.checked_shl(beyond.min(30)).unwrap_or(u64::MAX);
        let until = self.last_ms.saturating_add(wait.min(patience.longest_ms));
        until.saturating_sub(now_ms)
    }
}

/// The failures that are remembered.
#[derive(Default)]
pub(super) struct Attempts(Mutex<HashMap<Key, Failures>>);

impl Attempts {
    /// Counts an attempt as failed until [`Attempts::succeeded`] says otherwise. Without an account only the network counts.
    ///
    /// # Errors
    /// How many milliseconds to wait; the attempt is not counted then.
    pub(super) fn begin(&self, account: Option<&str>, network: Network, now_ms: u64) -> Result<(), u64> {
        let mut known = self.lock();
        let account = account.map(|account| (Key::Account(account.to_owned()), ACCOUNT));
        let keys: Vec<_> = account.into_iter().chain([(Key::Network(network), NETWORK)]).collect();
        let waits = keys.iter().filter_map(|(key, patience)| {
            let failures = known.get(key).filter(|f| !is_forgotten(f, now_ms))?;
            Some(failures.wait_ms(patience, now_ms))
        });
        match waits.max() {
            Some(wait_ms) if wait_ms > 0 => return Err(wait_ms),
            _ => {}
        }
        for (key, _) in keys {
            make_room(&mut known, now_ms);
            let failures = known.entry(key).or_default();
            if is_forgotten(failures, now_ms) {
                failures.count = 0;
            }
            failures.count = failures.count.saturating_add(1);
            failures.last_ms = now_ms;
        }
        Ok(())
    }

    /// The attempt was right. The account begins anew; the network gets back what this attempt cost, and no more: who has an
    /// account of its own could wipe out all its guesses at others'.
    pub(super) fn succeeded(&self, account: &str, network: Network) {
        let mut known = self.lock();
        known.remove(&Key::Account(account.to_owned()));
        if let Some(failures) = known.get_mut(&Key::Network(network)) {
            failures.count = failures.count.saturating_sub(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Failures>> {
        // Each change leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_forgotten(failures: &Failures, now_ms: u64) -> bool {
    now_ms.saturating_sub(failures.last_ms) >= FORGET_AFTER_MS
}

fn make_room(known: &mut HashMap<Key, Failures>, now_ms: u64) {
    if known.len() < KEYS_MAX {
        return;
    }
    known.retain(|_, failures| !is_forgotten(failures, now_ms));
    if known.len() >= KEYS_MAX {
        // A tenth at once, so that a flood does not search the whole map for each of its attempts.
        let mut ages: Vec<u64> = known.values().map(|failures| failures.last_ms).collect();
        let (_, oldest, _) = ages.select_nth_unstable(KEYS_MAX / 10);
        let oldest = *oldest;
        known.retain(|_, failures| failures.last_ms > oldest);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn network(text: &str) -> Network {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn fail(attempts: &Attempts, account: &str, from: &str, times: u32) {
        for _ in 0..times {
            attempts.begin(Some(account), network(from), NOW).unwrap();
        }
    }

    #[test]
    fn an_account_waits_twice_as_long_after_each_failure_and_never_more_than_a_minute() {
        let attempts = Attempts::default();
        fail(&attempts, "alice", "192.0.2.1", 5);
        let mut now = NOW;
        let mut waits = Vec::new();
        for n in 0..9 {
            // Each from another address: the account is what waits.
            let from = network(&format!("198.51.100.{n}"));
            let wait = attempts.begin(Some("alice"), from, now).unwrap_err();
            waits.push(wait);
            attempts.begin(Some("bob"), from, now).unwrap();
            now += wait;
            attempts.begin(Some("alice"), from, now).unwrap();
        }
        assert_eq!(waits, [1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]);
    }

    #[test]
    fn whoever_tries_many_accounts_waits_for_the_address() {
        let attempts = Attempts::default();
        for n in 0..20 {
            fail(&attempts, &format!("user{n}"), "192.0.2.1", 1);
        }
        assert_eq!(attempts.begin(Some("alice"), network("192.0.2.1"), NOW), Err(1000));
        assert_eq!(attempts.begin(Some("alice"), network("192.0.2.2"), NOW), Ok(()));
    }

    #[test]
    fn an_attempt_that_had_to_wait_makes_the_wait_no_longer() {
        let attempts = Attempts::default();
        fail(&attempts, "alice", "192.0.2.1", 5);
        for _ in 0..1000 {
            assert_eq!(attempts.begin(Some("alice"), network("192.0.2.1"), NOW), Err(1000));
        }
        assert_eq!(attempts.begin(Some("alice"), network("192.0.2.1"), NOW + 1000), Ok(()));
    }

    #[test]
    fn a_right_password_forgives_the_account_and_not_the_address() {
        let attempts = Attempts::default();
        for n in 0..20 {
            fail(&attempts, &format!("user{n}"), "192.0.2.1", 1);
        }
        let later = NOW + 1000;
        attempts.begin(Some("mallory"), network("192.0.2.1"), later).unwrap();
        attempts.succeeded("mallory", network("192.0.2.1"));
        assert!(attempts.begin(Some("alice"), network("192.0.2.1"), later).is_err());

        fail(&attempts, "bob", "192.0.2.9", 5);
        attempts.succeeded("bob", network("192.0.2.9"));
        assert_eq!(attempts.begin(Some("bob"), network("192.0.2.9"), NOW), Ok(()));
    }

    #[test]
    fn half_an_hour_without_a_failure_is_a_new_beginning() {
        let attempts = Attempts::default();
        fail(&attempts, "alice", "192.0.2.1", 5);
        let later = NOW + FORGET_AFTER_MS;
        for _ in 0..5 {
            assert_eq!(attempts.begin(Some("alice"), network("192.0.2.1"), later), Ok(()));
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let attempts = Attempts::default();
        for n in 0..3 * KEYS_MAX as u64 {
            let from = IpAddr::V4(std::net::Ipv4Addr::from_bits(n as u32)).into();
            let _ = attempts.begin(Some(&format!("user{n}")), from, NOW + n);
        }
        assert!(attempts.lock().len() <= KEYS_MAX);
        let newest = format!("user{}", 3 * KEYS_MAX - 1);
        assert!(attempts.lock().contains_key(&Key::Account(newest)));
    }

    #[test]
    fn one_customers_ipv6_addresses_are_one_network() {
        assert_eq!(network("2001:db8:0:1::1"), network("2001:db8:0:1:ffff::2"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8:0:2::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }
}
