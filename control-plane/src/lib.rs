//! The server role and the operator's command line of Skerry.
//!
//! The list below is the reading order: a module uses modules above it, never below. `app` wires them, the edges (`mqtt`,
//! `api`, `cli`) call in from outside.

pub mod blob;
pub mod config;
pub mod db;

mod openapi;

pub mod signing;

pub mod audit;

pub mod access;
pub mod ca;

pub mod agent_package;
pub mod devices;
pub mod registry;
pub mod training;

pub mod bundle;
pub mod publish;
pub mod rollouts;
pub mod transfer;

pub mod telemetry;

mod https;

pub mod app;

mod api;
mod mqtt;
mod web;

pub mod cli;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod test_server;
