//! The `skerry-agent` binary.
fn main() {}
