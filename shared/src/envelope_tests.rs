//! Every envelope and topic: it reads back, it ignores what a newer minor version adds, and refuses another major version.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, num::NonZeroU32};

use proptest::{collection::vec, option, prelude::*};
use serde_json::Value;

use crate::{
    bundle::{
        Approval, Edge, Golden, Lineage, Manifest, Pipeline, Port, Registration, Resource, ResourceKind, Stage,
        StageKind, StepLimits, Tolerance,
    },
    desired::{
        Ack, AgentInfo, BundleAssignment, Desired, FrameId, InstalledBundle, Outcome, OutcomeResult, Reported,
        ReportedError, Slot, Status, UpdateState, UpdateStatus,
    },
    digest::Digest,
    id::{BootId, DeviceId, Generation, ModelName, ModelVersion, Platform, ResourceName, RolloutId, RunId},
    oip::{Datatype, TensorMetadata},
    otlp::{FrameError, TelemetryFrame},
    schema::{Envelope, EnvelopeError, SchemaVersion},
    topic::{Channel, Topic},
    transfer::{Object, Part, PartContent, PartError, Want},
};

const SCHEMA: SchemaVersion = SchemaVersion::CURRENT;

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest::from_bytes)
}

fn device() -> impl Strategy<Value = DeviceId> {
    "[a-z0-9][a-z0-9_-]{0,63}".prop_map(|text| text.parse().unwrap())
}

fn model() -> impl Strategy<Value = ModelName> {
    "[A-Za-z0-9][A-Za-z0-9_-]{0,20}".prop_map(|text| text.parse().unwrap())
}

fn resource_name() -> impl Strategy<Value = ResourceName> {
    "[A-Za-z0-9][A-Za-z0-9_-]{0,20}".prop_map(|text| text.parse().unwrap())
}

fn platform() -> impl Strategy<Value = Platform> {
    "[a-z0-9][a-z0-9_-]{0,20}".prop_map(|text| text.parse().unwrap())
}

fn boot() -> impl Strategy<Value = BootId> {
    "[0-9a-f]{32}".prop_map(|text| text.parse().unwrap())
}

fn run() -> impl Strategy<Value = RunId> {
    "[0-9a-f]{32}".prop_map(|text| text.parse().unwrap())
}

fn assignment() -> impl Strategy<Value = BundleAssignment> {
    (
        model(),
        any::<u64>(),
        ".{0,40}",
        digest(),
        option::of(any::<u64>()),
        any::<u32>(),
        any::<bool>(),
    )
        .prop_map(
            |(model, version, target, index, rollout, probation_ms, allow_downgrade)| BundleAssignment {
                model,
                version: ModelVersion(version),
                target,
                index,
                rollout: rollout.map(RolloutId),
                probation_ms,
                allow_downgrade,
            },
        )
}

fn desired() -> impl Strategy<Value = Desired> {
    (device(), any::<u64>(), any::<u64>(), vec(assignment(), 0..4)).prop_map(
        |(device, generation, issued_at_ms, bundles)| Desired {
            schema: SCHEMA,
            device,
            generation: Generation(generation),
            issued_at_ms,
            bundles,
        },
    )
}

fn error() -> impl Strategy<Value = ReportedError> {
    (".{0,20}", ".{0,60}").prop_map(|(code, message)| ReportedError { code, message })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let result = prop_oneof![
        Just(OutcomeResult::Succeeded),
        error().prop_map(OutcomeResult::RolledBack),
        error().prop_map(OutcomeResult::Failed),
    ];
    (
        any::<u64>(),
        model(),
        any::<u64>(),
        option::of(any::<u64>()),
        result,
        any::<u64>(),
        any::<u32>(),
    )
        .prop_map(
            |(generation, model, version, rollout, result, wire_bytes, resumed_downloads)| Outcome {
                generation: Generation(generation),
                model,
                version: ModelVersion(version),
                rollout: rollout.map(RolloutId),
                result,
                wire_bytes,
                resumed_downloads,
            },
        )
}

fn update() -> impl Strategy<Value = UpdateStatus> {
    let state = prop::sample::select(vec![
        UpdateState::Idle,
        UpdateState::Sync,
        UpdateState::Download,
        UpdateState::Verify,
        UpdateState::Install,
        UpdateState::Probation,
        UpdateState::Commit,
        UpdateState::Rollback,
        UpdateState::Failure,
    ]);
    (
        state,
        option::of(model()),
        option::of(any::<u64>()),
        any::<u64>(),
        any::<u64>(),
        option::of(error()),
    )
        .prop_map(|(state, model, number, have_bytes, total_bytes, waits)| UpdateStatus {
            state,
            model,
            version: number.map(ModelVersion),
            rollout: number.map(RolloutId),
            have_bytes,
            total_bytes,
            waits,
        })
}

fn installed() -> impl Strategy<Value = InstalledBundle> {
    let slot = prop::sample::select(vec![Slot::Current, Slot::Previous]);
    (model(), any::<u64>(), slot, digest()).prop_map(|(model, version, slot, index)| InstalledBundle {
        model,
        version: ModelVersion(version),
        slot,
        index,
    })
}

fn reported() -> impl Strategy<Value = Reported> {
    let agent = (".{0,10}", platform(), option::of(".{0,20}"));
    let agent = agent.prop_map(|(version, platform, inference_address)| AgentInfo {
        version,
        platform,
        inference_address,
    });
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>());
    let lists = (vec(installed(), 0..4), vec(outcome(), 0..4), option::of(error()));
    (device(), boot(), numbers, agent, update(), lists).prop_map(
        |(device, boot_id, (seq, device_time_ms, generation), agent, update, (bundles, outcomes, refused))| Reported {
            schema: SCHEMA,
            device,
            boot_id,
            seq,
            device_time_ms,
            generation: Generation(generation),
            agent,
            update,
            bundles,
            outcomes,
            alarms: refused.iter().cloned().collect(),
            refused,
        },
    )
}

fn status() -> impl Strategy<Value = Status> {
    (boot(), any::<bool>()).prop_map(|(boot_id, online)| Status {
        schema: SCHEMA,
        boot_id,
        online,
    })
}

fn ack() -> impl Strategy<Value = Ack> {
    let frame = (boot(), any::<u64>()).prop_map(|(boot_id, seq)| FrameId { boot_id, seq });
    vec(frame, 0..10).prop_map(|frames| Ack { schema: SCHEMA, frames })
}

fn want() -> impl Strategy<Value = Want> {
    let object = prop_oneof![
        ".{0,30}".prop_map(Object::Metadata),
        digest().prop_map(Object::Blob),
        digest().prop_map(Object::Chunks),
    ];
    (any::<u64>(), object, vec(any::<u32>(), 0..32)).prop_map(|(request, object, parts)| Want {
        schema: SCHEMA,
        request,
        object,
        parts,
    })
}

fn tensor() -> impl Strategy<Value = TensorMetadata> {
    let datatype = prop::sample::select(vec![Datatype::Fp32, Datatype::Int8, Datatype::Bytes, Datatype::Bool]);
    (".{1,10}", datatype, vec(-1..100_i64, 0..4)).prop_map(|(name, datatype, shape)| TensorMetadata {
        name,
        datatype,
        shape,
    })
}

fn resource() -> impl Strategy<Value = Resource> {
    let kind = prop_oneof![
        Just(ResourceKind::OnnxModel),
        Just(ResourceKind::Component),
        Just(ResourceKind::GoldenVectors),
        Just(ResourceKind::Document),
        (resource_name(), platform(), ".{0,10}").prop_map(|(component, platform, wasmtime)| {
            ResourceKind::CompiledComponent {
                component,
                platform,
                wasmtime,
            }
        }),
    ];
    (resource_name(), digest(), any::<u64>(), kind).prop_map(|(name, digest, size_bytes, kind)| Resource {
        name,
        digest,
        size_bytes,
        kind,
    })
}

fn stage() -> impl Strategy<Value = Stage> {
    let parameters = prop::collection::btree_map("[a-z]{1,8}", ".{0,20}", 0..3);
    let step = (resource_name(), parameters, any::<u64>(), any::<u32>());
    let kind = prop_oneof![
        resource_name().prop_map(|resource| StageKind::Model { resource }),
        step.prop_map(
            |(component, parameters, memory_bytes, timeout_ms): (_, BTreeMap<_, _>, _, _)| StageKind::Step {
                component,
                parameters,
                limits: StepLimits {
                    memory_bytes,
                    timeout_ms
                },
            }
        ),
    ];
    let batch = option::of(1_u32..).prop_map(|rows| rows.and_then(NonZeroU32::new));
    (resource_name(), kind, batch).prop_map(|(name, kind, batch)| Stage { name, kind, batch })
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let port = || (resource_name(), ".{1,10}").prop_map(|(stage, tensor)| Port { stage, tensor });
    let edge = (port(), port()).prop_map(|(from, to)| Edge { from, to });
    let pipeline = (
        vec(tensor(), 0..3),
        vec(tensor(), 0..3),
        vec(stage(), 0..4),
        vec(edge, 0..4),
    );
    let pipeline = pipeline.prop_map(|(inputs, outputs, stages, edges)| Pipeline {
        inputs,
        outputs,
        stages,
        edges,
    });
    let golden = (resource_name(), 0.0..1.0_f64).prop_map(|(resource, absolute)| Golden {
        resource,
        tolerance: Tolerance {
            absolute,
            relative: 0.5,
        },
    });
    let approval = (".{0,20}", any::<u64>()).prop_map(|(by, at_ms)| Approval { by, at_ms });
    let registration = (model(), any::<u64>(), ".{0,20}", any::<u64>()).prop_map(|(model, version, by, at_ms)| {
        let version = ModelVersion(version);
        Registration {
            model,
            version,
            by,
            at_ms,
        }
    });
    let lineage = (
        option::of(run()),
        option::of(digest()),
        option::of(registration),
        option::of(approval),
    );
    let lineage = lineage.prop_map(|(run_id, dataset, registered, approved)| Lineage {
        run_id,
        dataset,
        code: dataset,
        onnx: dataset,
        registered,
        approved,
    });
    let names = (model(), any::<u64>(), any::<u64>());
    (names, vec(resource(), 0..4), pipeline, option::of(golden), lineage).prop_map(
        |((model, version, created_at_ms), resources, pipeline, golden, lineage)| Manifest {
            schema: pipeline.schema(),
            model,
            version: ModelVersion(version),
            created_at_ms,
            resources,
            pipeline,
            golden,
            lineage,
        },
    )
}

/// What every envelope promises.
fn check<T: Envelope + PartialEq + std::fmt::Debug>(envelope: &T) -> Result<(), TestCaseError> {
    let json = envelope.to_json();
    let read = T::from_json(&json).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(&read, envelope);

    let mut newer: Value = serde_json::from_slice(&json).unwrap();
    newer["schema"] = "1.7".into();
    newer["added_in_1_7"] = serde_json::json!({"a": [1, 2]});
    let newer = serde_json::to_vec(&newer).unwrap();
    prop_assert!(T::from_json(&newer).is_ok(), "unknown fields are ignored");

    let mut other: Value = serde_json::from_slice(&json).unwrap();
    other["schema"] = format!("{}.0", T::MAJOR + 1).into();
    let other = T::from_json(&serde_json::to_vec(&other).unwrap());
    prop_assert!(
        matches!(other, Err(EnvelopeError::UnknownMajor { .. })),
        "another major version is refused"
    );

    let cut = T::from_json(&json[..json.len() - 1]);
    prop_assert!(
        matches!(cut, Err(EnvelopeError::Parse { .. })),
        "a torn envelope is refused"
    );
    let mut long = json;
    long.resize(T::LIMIT_BYTES + 1, b' ');
    let long = T::from_json(&long);
    prop_assert!(matches!(long, Err(EnvelopeError::TooLarge { .. })), "the limit holds");
    Ok(())
}

/// Bytes to put in place of others, each at a share of the length.
fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    // Half of it is what means something in JSON.
    let byte = prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\",:0-e\\u".to_vec())];
    vec((any::<prop::sample::Index>(), byte), 1..6)
}

/// Whatever has become of the bytes, they are refused, or they are an envelope that reads back.
fn check_damaged<T: Envelope + PartialEq + std::fmt::Debug>(
    envelope: &T,
    damage: &[(prop::sample::Index, u8)],
) -> Result<(), TestCaseError> {
    let mut json = envelope.to_json();
    for (at, byte) in damage {
        let at = at.index(json.len());
        json[at] = *byte;
    }
    if let Ok(read) = T::from_json(&json) {
        prop_assert_eq!(T::from_json(&read.to_json()).ok(), Some(read));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_desired_state_keeps_its_promises(envelope in desired()) { check(&envelope)? }
    #[test]
    fn a_reported_state_keeps_its_promises(envelope in reported()) { check(&envelope)? }
    #[test]
    fn a_status_keeps_its_promises(envelope in status()) { check(&envelope)? }
    #[test]
    fn an_acknowledgement_keeps_its_promises(envelope in ack()) { check(&envelope)? }
    #[test]
    fn a_want_keeps_its_promises(envelope in want()) { check(&envelope)? }
    #[test]
    fn a_manifest_keeps_its_promises(envelope in manifest()) { check(&envelope)? }

    #[test]
    fn every_topic_reads_back(device in device(), channel in prop::sample::select(Channel::ALL.to_vec()), bundle in digest()) {
        for topic in [Topic::Device(device, channel), Topic::Shared(bundle)] {
            prop_assert_eq!(topic.to_string().parse::<Topic>().unwrap(), topic);
        }
    }

    #[test]
    fn a_part_keeps_its_promises(request in any::<u64>(), part in any::<u32>(), more in 1..9_u32, data in vec(any::<u8>(), 0..100)) {
        let parts = part.saturating_add(more);
        prop_assume!(part < parts);
        for content in [PartContent::Data(&data), PartContent::NotFound, PartContent::Busy] {
            let message = Part { request, part, parts, content }.to_bytes();
            prop_assert_eq!(Part::from_bytes(&message).unwrap(), Part { request, part, parts, content });
            let mut other = message.clone();
            other[0] = 2;
            prop_assert_eq!(Part::from_bytes(&other), Err(PartError::UnknownVersion(2)));
            prop_assert!(Part::from_bytes(&message[..17]).is_err(), "a torn header is refused");
        }
    }

    #[test]
    fn a_telemetry_frame_keeps_its_promises(boot_id in boot(), seq in any::<u64>(), raw_len in 0..=TelemetryFrame::RAW_LIMIT_BYTES, body in vec(any::<u8>(), 0..100)) {
        let frame = TelemetryFrame { id: FrameId { boot_id, seq }, raw_len, body: &body };
        let message = frame.to_bytes();
        prop_assert_eq!(TelemetryFrame::from_bytes(&message).unwrap(), frame);
        let mut other = message.clone();
        other[0] = 2;
        let refused = TelemetryFrame::from_bytes(&other);
        prop_assert!(matches!(refused, Err(FrameError::Unknown { version: 2, .. })), "another version is refused");
        prop_assert!(TelemetryFrame::from_bytes(&message[..29]).is_err(), "a torn header is refused");
    }

    #[test]
    fn a_damaged_status_is_a_status_or_an_error(envelope in status(), damage in damage()) { check_damaged(&envelope, &damage)? }
    #[test]
    fn a_damaged_acknowledgement_is_one_or_an_error(envelope in ack(), damage in damage()) { check_damaged(&envelope, &damage)? }
    #[test]
    fn a_damaged_report_is_a_report_or_an_error(envelope in reported(), damage in damage()) { check_damaged(&envelope, &damage)? }

    #[test]
    fn arbitrary_bytes_are_no_envelope_and_no_topic(bytes in vec(any::<u8>(), 0..200), text in ".{0,60}") {
        let _ = (Part::from_bytes(&bytes), TelemetryFrame::from_bytes(&bytes));
        let _ = (Desired::from_json(&bytes), Reported::from_json(&bytes), Manifest::from_json(&bytes), Want::from_json(&bytes));
        let _ = (Status::from_json(&bytes), Ack::from_json(&bytes));
        if let Ok(topic) = text.parse::<Topic>() {
            prop_assert_eq!(topic.to_string(), text);
        }
    }
}
