//! Notices two agents with one identity: a copied disk image, or a stolen key.
//!
//! Every start of an agent has a boot id of its own, and a device cannot go back to an earlier start. So a birth message of a
//! start that another one has followed comes from a second machine. A lost connection that comes back has the same boot id, and a
//! last will is no birth: neither is taken for it.

use std::collections::HashMap;

use skerry_shared::id::{BootId, DeviceId};

/// Starts remembered for each device: two machines that take turns are seen at the third birth, more machines later.
const BOOTS_KEPT: usize = 4;

/// The newest starts of each device that has said something since this control plane started.
#[derive(Default)]
pub(super) struct Identities(HashMap<DeviceId, Vec<BootId>>);

impl Identities {
    /// Notes a birth. True when the start it names was already followed by another one.
    pub(super) fn born(&mut self, device: &DeviceId, boot: &BootId) -> bool {
        let boots = self.0.entry(device.clone()).or_default();
        if boots.last() == Some(boot) {
            return false;
        }
        let earlier = boots.iter().position(|known| known == boot);
        if let Some(position) = earlier {
            boots.remove(position);
        }
        boots.push(boot.clone());
        if boots.len() > BOOTS_KEPT {
            boots.remove(0);
        }
        earlier.is_some()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn boot(n: u8) -> BootId {
        hex::encode([n; 16]).parse().unwrap()
    }

    fn seen(births: &[u8]) -> Vec<bool> {
        let mut identities = Identities::default();
        let device = "dev-1".parse().unwrap();
        births.iter().map(|n| identities.born(&device, &boot(*n))).collect()
    }

    #[test]
    fn a_start_that_speaks_after_the_next_one_is_a_second_machine() {
        assert_eq!(seen(&[1, 2, 1]), [false, false, true]);
        assert_eq!(seen(&[1, 2, 1, 2, 1]), [false, false, true, true, true]);
        assert_eq!(seen(&[1, 2, 3, 1]), [false, false, false, true]);
    }

    #[test]
    fn starting_and_connecting_again_is_not() {
        assert_eq!(seen(&[1, 1, 1, 2, 2, 3, 4, 5, 6]), [false; 9]);
    }

    #[test]
    fn devices_do_not_count_for_each_other() {
        let mut identities = Identities::default();
        for (device, n) in [("a", 1), ("b", 2), ("a", 1), ("b", 2)] {
            assert!(!identities.born(&device.parse().unwrap(), &boot(n)));
        }
    }
}
