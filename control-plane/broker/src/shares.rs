//! How much of something each network may hold at once, so that one address cannot take it from all others.
//!
//! A network is an IPv4 address, or a /64 of IPv6: whoever has one address there has all of them. Invariant: what is remembered is
//! one number for each network that holds something.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Counts what each network holds.
#[derive(Debug)]
pub struct Shares {
    each: usize,
    held: Mutex<HashMap<IpAddr, usize>>,
}

impl Shares {
    /// Each network may hold `each`.
    pub fn new(each: usize) -> Arc<Shares> {
        Arc::new(Shares {
            each,
            held: Mutex::default(),
        })
    }

    /// Takes one more for whoever is at this address, until the value is dropped; `None` when its network holds its share.
    pub fn take(self: &Arc<Shares>, address: IpAddr) -> Option<Share> {
        let network = network_of(address);
        let mut held = self.held();
        let count = held.entry(network).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        drop(held);
        Some(Share {
            shares: Arc::clone(self),
            network,
        })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // No code panics while it holds the lock, and each number is whole after every statement.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of a network's share.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    network: IpAddr,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held();
        if let Some(count) = held.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.network);
            }
        }
    }
}

/// The network of an address: itself, or the /64 that one customer has in IPv6.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_network_holds_its_share_and_nothing_of_the_others() {
        let shares = Shares::new(2);
        let take = |address: &str| shares.take(address.parse().unwrap());
        let (first, second) = (take("192.0.2.1"), take("::ffff:192.0.2.1"));
        assert!(first.is_some() && second.is_some());
        assert!(take("192.0.2.1").is_none());
        assert!(take("192.0.2.2").is_some());
        drop(first);
        assert!(take("192.0.2.1").is_some());
        let (third, fourth) = (take("2001:db8::1"), take("2001:db8::2"));
        assert!(third.is_some() && fourth.is_some());
        assert!(take("2001:db8::3").is_none(), "it is the same network");
        assert!(take("2001:db8:0:1::1").is_some());
    }

    #[test]
    fn who_holds_nothing_is_forgotten() {
        let shares = Shares::new(1);
        drop(shares.take("192.0.2.1".parse().unwrap()));
        assert!(shares.take("192.0.2.1".parse().unwrap()).is_some());
        assert!(shares.held().is_empty());
    }
}
