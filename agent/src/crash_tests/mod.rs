//! Power cuts at every call that changes the disk, full disks and failed syncs, on a simulated disk; and clocks that are
//! wrong by years.
//!
//! The functions are the agent's own; only the disk and the network are not. Each history runs once, its states are kept,
//! and a device starts from all that a cut at any moment may have left (see `disk::sim`). Run with `--nocapture` to see
//! how many that were.

pub(crate) mod device;
mod enrolment;
mod install;
mod late;
mod plane;
mod refresh;
mod revoked;
mod wrong_clock;
