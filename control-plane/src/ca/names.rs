//! The names under which the control plane is found: what its certificate must say.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::config::is_host_name;

/// Host names and addresses, in text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerNames(BTreeSet<String>);

impl ServerNames {
    /// Those of this machine, loopback among them, and `more`.
    pub fn of_this_machine<'a>(more: impl IntoIterator<Item = &'a str>) -> ServerNames {
        let mut names: BTreeSet<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy().to_lowercase();
        names.extend(is_host_name(&host).then_some(host));
        // Linux's own tables. Elsewhere there are none, and names come from the configuration.
        let v4 = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
        let v6 = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
        let addresses = ipv4_addresses(&v4).into_iter().map(IpAddr::from);
        let addresses = addresses.chain(ipv6_addresses(&v6).into_iter().map(IpAddr::from));
        names.extend(addresses.map(|address| address.to_string()));
        names.extend(more.into_iter().map(str::to_owned));
        ServerNames(names)
    }

    /// Those alone.
    pub fn of(names: &[String]) -> ServerNames {
        ServerNames(names.iter().cloned().collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

/// The local addresses in the kernel's routing trie: a line with an address, then `/32 host LOCAL`.
fn ipv4_addresses(fib_trie: &str) -> BTreeSet<Ipv4Addr> {
    let mut addresses = BTreeSet::new();
    let mut last = None;
    for line in fib_trie.lines() {
        if let Some((_, address)) = line.split_once("|-- ") {
            last = address.trim().parse().ok();
        } else if line.contains("/32 host LOCAL")
            && let Some(address) = last.take()
        {
            addresses.insert(address);
        }
    }
    addresses
}

/// The addresses of the interfaces: 32 hex digits, then four fields. Those of one link only need a zone, which no
/// certificate has.
fn ipv6_addresses(if_inet6: &str) -> BTreeSet<Ipv6Addr> {
    let addresses = if_inet6.lines().filter_map(|line| line.split(' ').next());
    let addresses = addresses.filter_map(|hex| u128::from_str_radix(hex, 16).ok().map(Ipv6Addr::from));
    addresses.filter(|address| !address.is_unicast_link_local()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_give_the_addresses_of_the_interfaces() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     +-- 192.0.2.0/24 2 0 2\n        \
                    |-- 192.0.2.0\n           /24 link UNICAST\n        |-- 192.0.2.7\n           /32 host LOCAL\n        \
                    |-- 192.0.2.255\n           /32 link BROADCAST\n";
        assert_eq!(ipv4_addresses(trie), BTreeSet::from([Ipv4Addr::new(192, 0, 2, 7)]));
        let table = "fe80000000000000504400fffe000001 02 40 20 80     eth0\n20010db8000000000000000000000001 02 40 00 80 eth0\n";
        assert_eq!(ipv6_addresses(table), BTreeSet::from(["2001:db8::1".parse().unwrap()]));
        assert!(ipv4_addresses("what is this").is_empty());
        assert!(ipv6_addresses("what is this").is_empty());
    }

    #[test]
    fn a_machine_is_at_least_localhost() {
        let names = ServerNames::of_this_machine(["broker.example"]);
        for name in ["localhost", "127.0.0.1", "::1", "broker.example"] {
            assert!(names.iter().any(|other| other == name), "{name}");
        }
    }
}
