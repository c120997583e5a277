//! The harness of the end-to-end tests: a real control plane and real agents as processes, on loopback, in a temporary
//! folder, on ports that the system chooses.
//!
//! Nothing here sleeps: whoever waits is woken by the control plane's stream of changes. Every process that was started is
//! ended, by its id, when its handle goes.

pub mod device;
pub mod faults;
pub mod fixtures;
pub mod fleet;
pub mod grpc;
pub mod measure;
pub mod process;
pub mod protobuf;

pub use device::Device;
pub use fleet::{Fleet, FleetConfig};
pub use process::Process;
