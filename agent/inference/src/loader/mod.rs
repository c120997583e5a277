//! Loading in a process of its own: a model is foreign though it is signed, and what it does to its loader it shall not do to
//! whoever serves.
//!
//! [`Loader`] is the parent's side: it starts the same program anew with a hidden word, gives it what it asks for, and says how it
//! ended. [`run_child`] is the other side: it limits itself, loads, answers the golden vectors, and says what that cost. One
//! engine a process, so that one that crashes over a model is not chosen, and another may be. Invariant: the parent neither waits
//! longer than the limit nor takes more of the child's words than it must.

mod child;
mod parent;
mod wire;

pub use child::run_child;
pub use parent::{Loader, LoaderError, LoaderLimits};
