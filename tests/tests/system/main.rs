//! End-to-end tests: real processes, real files, real broker. One program, since each more would be linked for itself.
//!
//! The arrows of the flow (docs/architecture.md) and the tests that walk them:
//!
//! | arrow | test |
//! |---|---|
//! | training → registry | `flow_a_run_becomes_a_model_version_with_its_lineage` |
//! | registry → signing → publish | `flow_a_registered_version_is_bundled_signed_and_published` |
//! | publish → rollouts | `flow_only_a_published_bundle_can_be_rolled_out` |
//! | rollouts → transfer ══ MQTT ══▶ link | `flow_a_rollout_becomes_a_desired_state_on_the_wire_and_wants_get_their_parts` |
//! | link → transfer → verify | `flow_a_second_version_reuses_what_the_device_has` |
//! | verify → install | `flow_a_bundle_that_fails_its_golden_vectors_is_refused_and_the_old_one_serves_on` |
//! | install → run | `flow_a_rollout_reaches_a_device_over_the_link_and_its_model_answers` |
//! | install → run, while clients ask | `flow_a_swap_under_load_refuses_nothing_and_mixes_nothing` |
//! | run → spool ══ MQTT ══▶ telemetry | `flow_what_a_device_counts_is_stored_once_and_can_be_asked_for` |
//! | run → back to the data set, offline | `flow_a_device_proves_offline_where_its_model_comes_from` |
//! | keys that change, and what is taken back | `flow_two_of_three_people_rotate_every_key_while_a_device_is_away`, `flow_a_blocked_version_is_left_and_cannot_be_rolled_out` |
//! | all of them | `flow_the_demo_holds_everything_it_claims` |
#![allow(clippy::unwrap_used)]

mod attack_bundle;
mod attack_metadata;
mod attack_transfer;
mod bad_input;
#[cfg(feature = "emulated")]
mod emulated;
mod flow_identity;
mod flow_keys;
mod flow_loop;
mod flow_provenance;
mod flow_publish;
mod flow_swap;
mod flow_telemetry;
mod flow_update;
mod impostor;
mod model_signing;
#[cfg(feature = "outside")]
mod outside;
#[cfg(feature = "outside")]
mod outside_install;
mod power_loss;
mod taken_broker;
mod telemetry_frames;
#[cfg(feature = "outside")]
mod tritonclient;

/// The program that the tests start.
const PROGRAM: &str = env!("CARGO_BIN_EXE_skerry-under-test");
