//! The server role and the operator's command line of Skerry.
//!
//! The list below is the reading order: a module uses modules above it, never below.

pub mod blob;
pub mod config;
pub mod db;

pub mod signing;

pub mod bundle;
pub mod cli;
