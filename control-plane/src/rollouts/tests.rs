#![allow(clippy::unwrap_used)]

mod four_eyes;

use std::collections::BTreeMap;

use proptest::prelude::*;
use rusqlite::params;
use skerry_shared::{
    desired::{
        AgentInfo, InstalledBundle, Outcome, OutcomeResult, Reported, ReportedError, Slot, UpdateState, UpdateStatus,
    },
    digest::Digest,
    id::{DeviceId, Generation, ModelName, ModelVersion},
    schema::SchemaVersion,
};

use super::{group::GroupSize, *};
use crate::{
    app::CORE_MIGRATIONS,
    db::Durability,
    devices::{Device, Heard},
};

const NOW: u64 = 1_000_000;
const SILENT_AFTER_MS: u64 = 60_000;

fn by() -> By {
    By::new("ada", NOW)
}

fn index() -> Digest {
    Digest::of(b"index of v2")
}

fn model() -> ModelName {
    "m".parse().unwrap()
}

/// A database with a published bundle (version 2 of `m`) and devices `d0`, `d1`, … of which the even ones have `site=a`.
struct World {
    db: Db,
    policy: Policy,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new(devices: usize) -> World {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("core.db"), Durability::Normal, CORE_MIGRATIONS).unwrap();
        let insert = move |conn: &Connection| -> Result<(), DbError> {
            conn.execute_batch(
                "INSERT INTO models VALUES ('m', '', '{}', 0);
                 INSERT INTO model_versions (model, version, digest, size_bytes, description, tags, inputs, outputs, created_at_ms)
                 VALUES ('m', 2, 'x', 1, '', '{}', '[]', '[]', 0);",
            )?;
            conn.execute(
                "INSERT INTO bundles VALUES ('m', 2, 'm/2/index', ?1, 1, 1, 1, 0)",
                [index().to_string()],
            )?;
            for n in 0..devices {
                let labels = if n % 2 == 0 { r#"{"site":"a"}"# } else { "{}" };
                conn.execute(
                    "INSERT INTO devices (id, labels, platform, agent_version, public_key, enrolled_at_ms)
                     VALUES (?1, ?2, 'pulley64', '0', ?1, 0)",
                    params![format!("d{n}"), labels],
                )?;
            }
            Ok(())
        };
        db.write(insert).await.unwrap();
        World {
            db,
            policy: Policy::default(),
            _folder: folder,
        }
    }

    async fn create(&self, sizes: &[&str]) -> Rollout {
        self.try_create(sizes).await.unwrap()
    }

    async fn try_create(&self, sizes: &[&str]) -> Result<Rollout, RolloutError> {
        let rule = |size: &&str| GroupRule {
            size: size.parse().unwrap(),
            success_percent: 100,
            error_percent: 0,
        };
        self.create_with(sizes.iter().map(rule).collect(), true).await
    }

    async fn create_with_patience(&self, silent_after_ms: u64) -> Result<Rollout, RolloutError> {
        let new = NewRollout {
            model: model(),
            version: ModelVersion(2),
            selector: Selector::default(),
            groups: vec![GroupRule {
                size: GroupSize::Rest,
                success_percent: 100,
                error_percent: 0,
            }],
            probation_ms: None,
            allow_downgrade: false,
            silent_after_ms: Some(silent_after_ms),
            start: true,
        };
        create(&self.db, &self.policy, new, by()).await
    }

    async fn create_with(&self, groups: Vec<GroupRule>, start: bool) -> Result<Rollout, RolloutError> {
        let new = NewRollout {
            model: model(),
            version: ModelVersion(2),
            selector: Selector::default(),
            groups,
            probation_ms: Some(0),
            allow_downgrade: false,
            silent_after_ms: Some(SILENT_AFTER_MS),
            start,
        };
        create(&self.db, &self.policy, new, by()).await
    }

    /// Evaluates until nothing changes, as the driver does.
    async fn settle(&self, id: RolloutId, now_ms: u64) -> Rollout {
        while evaluate(&self.db, &self.policy, id, now_ms).await.unwrap().changed {}
        get(&self.db, id).await.unwrap()
    }

    async fn succeed(&self, id: &DeviceId, now_ms: u64) {
        let succeeded = Some(OutcomeResult::Succeeded);
        self.report(id, UpdateState::Idle, succeeded, now_ms).await;
    }

    async fn device(&self, id: &DeviceId) -> Device {
        devices::get(&self.db, id).await.unwrap()
    }

    /// The device reports that it has accepted its newest generation, with this update state and this end.
    async fn report(&self, id: &DeviceId, state: UpdateState, result: Option<OutcomeResult>, now_ms: u64) {
        let device = self.device(id).await;
        let assignment = device.desired.first().cloned();
        let seq = device.reported.as_ref().map_or(1, |reported| reported.seq + 1);
        let succeeded = result == Some(OutcomeResult::Succeeded);
        let outcome = |result| {
            let assignment = assignment.as_ref().unwrap();
            Outcome {
                generation: device.generation,
                model: assignment.model.clone(),
                version: assignment.version,
                rollout: assignment.rollout,
                result,
                wire_bytes: 7,
                resumed_downloads: 0,
            }
        };
        let busy = state != UpdateState::Idle;
        let reported = Reported {
            schema: SchemaVersion::CURRENT,
            device: id.clone(),
            boot_id: "0".repeat(32).parse().unwrap(),
            seq,
            device_time_ms: 0,
            generation: device.generation,
            agent: AgentInfo {
                version: "0".to_owned(),
                platform: "pulley64".parse().unwrap(),
                inference_address: None,
            },
            update: UpdateStatus {
                state,
                model: busy.then(model),
                version: None,
                rollout: assignment.as_ref().filter(|_| busy).and_then(|a| a.rollout),
                have_bytes: 0,
                total_bytes: 0,
                waits: (state == UpdateState::Sync).then(late),
            },
            bundles: (succeeded.then_some(&assignment).into_iter().flatten())
                .map(|assignment| InstalledBundle {
                    model: model(),
                    version: assignment.version,
                    slot: Slot::Current,
                    index: assignment.index,
                })
                .collect(),
            outcomes: result.map(outcome).into_iter().collect(),
            refused: None,
            alarms: Vec::new(),
        };
        devices::record_reported(&self.db, reported, Heard::At(now_ms))
            .await
            .unwrap();
    }
}

fn ids(group: &Group) -> Vec<DeviceId> {
    group.devices.iter().map(|progress| progress.device.clone()).collect()
}

fn late() -> ReportedError {
    ReportedError {
        code: "expired".to_owned(),
        message: "the timestamp is of yesterday".to_owned(),
    }
}

#[tokio::test]
async fn a_device_that_waits_says_why_and_has_not_failed() {
    let world = World::new(1).await;
    let rollout = world.create(&["rest"]).await;
    let device = ids(&rollout.groups[0])[0].clone();
    let progress = |rollout: &Rollout| rollout.groups[0].devices[0].clone();
    world.settle(rollout.id, NOW).await;
    world.report(&device, UpdateState::Sync, None, NOW).await;
    let waits = progress(&world.settle(rollout.id, NOW).await);
    assert_eq!(
        (waits.state, waits.detail.error),
        (DeviceState::Downloading, Some(late()))
    );
    world.report(&device, UpdateState::Download, None, NOW).await;
    let goes_on = progress(&world.settle(rollout.id, NOW).await);
    assert_eq!((goes_on.state, goes_on.detail.error), (DeviceState::Downloading, None));
    world.succeed(&device, NOW).await;
    assert_eq!(world.settle(rollout.id, NOW).await.state, RolloutState::Finished);
}

fn rolled_back() -> OutcomeResult {
    OutcomeResult::RolledBack(ReportedError {
        code: "golden_mismatch".to_owned(),
        message: "vector 1 differs".to_owned(),
    })
}

#[tokio::test]
async fn the_second_group_begins_when_the_first_has_succeeded() {
    let world = World::new(5).await;
    let rollout = world.create(&["1", "rest"]).await;
    let (first, rest) = (ids(&rollout.groups[0]), ids(&rollout.groups[1]));
    assert_eq!((first.len(), rest.len()), (1, 4));
    world.settle(rollout.id, NOW).await;
    assert_eq!(world.device(&first[0]).await.generation, Generation(1));
    assert_eq!(world.device(&rest[0]).await.generation, Generation(0), "not its turn");

    world.report(&first[0], UpdateState::Probation, None, NOW).await;
    let on_probation = world.settle(rollout.id, NOW).await;
    assert_eq!(on_probation.groups[0].devices[0].state, DeviceState::Probation);
    assert_eq!(on_probation.groups[0].devices[0].detail.serving_at_ms, Some(NOW));

    world
        .report(&first[0], UpdateState::Idle, Some(OutcomeResult::Succeeded), NOW)
        .await;
    world.settle(rollout.id, NOW).await;
    for device in &rest {
        assert_eq!(
            world.device(device).await.desired_version(&model()),
            Some(ModelVersion(2))
        );
        world
            .report(device, UpdateState::Idle, Some(OutcomeResult::Succeeded), NOW)
            .await;
    }
    let finished = world.settle(rollout.id, NOW).await;
    assert_eq!(
        (finished.state, finished.ended_at_ms),
        (RolloutState::Finished, Some(NOW))
    );
    assert!(finished.devices().all(|d| d.detail.wire_bytes == 7));
}

#[tokio::test]
async fn a_failed_first_group_stops_the_rollout_and_nobody_else_sees_it() {
    let world = World::new(5).await;
    let rollout = world.create(&["1", "rest"]).await;
    let first = ids(&rollout.groups[0]).remove(0);
    world.settle(rollout.id, NOW).await;
    world.report(&first, UpdateState::Idle, Some(rolled_back()), NOW).await;
    let stopped = world.settle(rollout.id, NOW).await;
    assert_eq!(stopped.state, RolloutState::Stopped);
    assert!(stopped.reason.contains("golden_mismatch"), "{}", stopped.reason);
    let states: Vec<DeviceState> = stopped.devices().map(|d| d.state).collect();
    assert_eq!(states[0], DeviceState::RolledBack);
    assert!(states[1..].iter().all(|state| *state == DeviceState::Pending));
    for device in ids(&stopped.groups[1]) {
        assert_eq!(world.device(&device).await.generation, Generation(0));
    }
    // Its intent says again what it runs, so that no later generation tries the bad bundle.
    assert_eq!(world.device(&first).await.desired, []);
}

#[tokio::test]
async fn abort_returns_the_devices_under_way_and_leaves_the_others() {
    let world = World::new(3).await;
    let rollout = world.create(&["2", "rest"]).await;
    world.settle(rollout.id, NOW).await;
    let first = ids(&rollout.groups[0]);
    world
        .report(&first[0], UpdateState::Idle, Some(OutcomeResult::Succeeded), NOW)
        .await;
    world.report(&first[1], UpdateState::Download, None, NOW).await;
    world.settle(rollout.id, NOW).await;
    abort(&world.db, rollout.id, by()).await.unwrap();
    let stopping = world.settle(rollout.id, NOW).await;
    assert_eq!(stopping.state, RolloutState::Stopping);
    assert_eq!(
        world.device(&first[0]).await.desired_version(&model()),
        Some(ModelVersion(2))
    );
    assert_eq!(world.device(&first[1]).await.desired_version(&model()), None);
    world.report(&first[1], UpdateState::Idle, None, NOW).await;
    let stopped = world.settle(rollout.id, NOW).await;
    assert_eq!(stopped.state, RolloutState::Stopped);
    let mut states: Vec<DeviceState> = stopped.groups[0].devices.iter().map(|d| d.state).collect();
    states.sort();
    assert_eq!(states, [DeviceState::Succeeded, DeviceState::RolledBack]);
}

#[tokio::test]
async fn silence_is_inconclusive_and_pauses() {
    let world = World::new(2).await;
    let rollout = world.create(&["1", "rest"]).await;
    world.settle(rollout.id, NOW).await;
    let silent_at = NOW + SILENT_AFTER_MS;
    assert_eq!(
        evaluate(&world.db, &world.policy, rollout.id, NOW)
            .await
            .unwrap()
            .next_look_at_ms,
        Some(silent_at)
    );
    assert_eq!(
        world.settle(rollout.id, silent_at - 1).await.state,
        RolloutState::Running
    );
    let paused = world.settle(rollout.id, silent_at).await;
    assert_eq!(paused.state, RolloutState::Paused);
    assert_eq!(paused.groups[0].devices[0].state, DeviceState::Silent);

    // A person goes on: the next group begins, and the silent device may still come back.
    resume(&world.db, &world.policy, rollout.id, by()).await.unwrap();
    let going_on = world.settle(rollout.id, silent_at).await;
    assert!(going_on.groups[1].devices[0].detail.assigned.is_some());
    let late = &going_on.groups[0].devices[0].device;
    world
        .report(late, UpdateState::Idle, Some(OutcomeResult::Succeeded), silent_at)
        .await;
    let back = world.settle(rollout.id, silent_at).await;
    assert_eq!(back.groups[0].devices[0].state, DeviceState::Succeeded);
}

#[tokio::test]
async fn pause_holds_the_next_group() {
    let world = World::new(2).await;
    let rollout = world.create(&["1", "rest"]).await;
    world.settle(rollout.id, NOW).await;
    pause(&world.db, rollout.id, by()).await.unwrap();
    let first = ids(&rollout.groups[0]).remove(0);
    world
        .report(&first, UpdateState::Idle, Some(OutcomeResult::Succeeded), NOW)
        .await;
    let paused = world.settle(rollout.id, NOW).await;
    assert!(paused.groups[1].devices[0].detail.assigned.is_none());
    resume(&world.db, &world.policy, rollout.id, by()).await.unwrap();
    let resumed = world.settle(rollout.id, NOW).await;
    assert!(resumed.groups[1].devices[0].detail.assigned.is_some());
    assert!(!resumed.groups[0].accepted, "it had proved itself");
}

#[tokio::test]
async fn a_failure_within_the_tolerance_goes_on_and_the_device_returns() {
    let world = World::new(4).await;
    let rule = GroupRule {
        size: GroupSize::Rest,
        success_percent: 75,
        error_percent: 25,
    };
    let rollout = world.create_with(vec![rule], true).await.unwrap();
    world.settle(rollout.id, NOW).await;
    let devices = ids(&rollout.groups[0]);
    world
        .report(&devices[0], UpdateState::Idle, Some(rolled_back()), NOW)
        .await;
    for device in &devices[1..] {
        world
            .report(device, UpdateState::Idle, Some(OutcomeResult::Succeeded), NOW)
            .await;
    }
    assert_eq!(world.settle(rollout.id, NOW).await.state, RolloutState::Finished);
    assert_eq!(world.device(&devices[0]).await.desired, []);
}

#[tokio::test]
async fn a_draft_touches_nothing_until_it_is_started() {
    let world = World::new(1).await;
    let rule = GroupRule {
        size: GroupSize::Rest,
        success_percent: 100,
        error_percent: 0,
    };
    let draft = world.create_with(vec![rule.clone()], false).await.unwrap();
    assert_eq!(world.settle(draft.id, NOW).await.state, RolloutState::Draft);
    assert!(matches!(
        pause(&world.db, draft.id, by()).await,
        Err(RolloutError::State { .. })
    ));
    resume(&world.db, &world.policy, draft.id, by()).await.unwrap();
    assert_eq!(world.settle(draft.id, NOW).await.state, RolloutState::Running);
    // One rollout of a model at a time on a device.
    assert!(matches!(
        world.create_with(vec![rule], true).await,
        Err(RolloutError::Overlap { other, .. }) if other == draft.id
    ));
}

#[tokio::test]
async fn groups_take_counts_shares_labels_and_the_rest() {
    let world = World::new(10).await;
    let rollout = world.create(&["label:site=a", "20%", "1", "rest"]).await;
    let sizes: Vec<usize> = rollout.groups.iter().map(|group| group.devices.len()).collect();
    assert_eq!(sizes, [5, 2, 1, 2]);
    assert!(matches!(
        world.try_create(&["label:site=nowhere"]).await,
        Err(RolloutError::NoDevices(_))
    ));
    assert!(matches!(
        World::new(0).await.try_create(&["rest"]).await,
        Err(RolloutError::NoDevices(_))
    ));
}

#[tokio::test]
async fn an_unpublished_version_cannot_be_rolled_out() {
    let world = World::new(1).await;
    let new = NewRollout {
        model: model(),
        version: ModelVersion(3),
        selector: Selector::default(),
        groups: vec![],
        probation_ms: None,
        allow_downgrade: false,
        silent_after_ms: None,
        start: true,
    };
    assert!(matches!(
        create(&world.db, &world.policy, new.clone(), by()).await,
        Err(RolloutError::Invalid(_))
    ));
    let rule = GroupRule {
        size: GroupSize::Rest,
        success_percent: 100,
        error_percent: 0,
    };
    let new = NewRollout {
        groups: vec![rule],
        ..new
    };
    assert!(matches!(
        create(&world.db, &world.policy, new, by()).await,
        Err(RolloutError::Publish(_))
    ));
}

#[tokio::test]
async fn a_device_that_has_the_bundle_already_has_succeeded() {
    let world = World::new(1).await;
    let rollout = world.create(&["rest"]).await;
    world.settle(rollout.id, NOW).await;
    let device = ids(&rollout.groups[0]).remove(0);
    world
        .report(&device, UpdateState::Idle, Some(OutcomeResult::Succeeded), NOW)
        .await;
    world.settle(rollout.id, NOW).await;
    let again = world.create(&["rest"]).await;
    world.settle(again.id, NOW).await;
    // It answers the new generation with what it runs, and an outcome of the old rollout.
    let mut reported = world.device(&device).await.reported.unwrap();
    reported.generation = world.device(&device).await.generation;
    reported.seq += 1;
    devices::record_reported(&world.db, reported, Heard::At(NOW))
        .await
        .unwrap();
    assert_eq!(world.settle(again.id, NOW).await.state, RolloutState::Finished);
}

#[tokio::test]
async fn the_patience_with_a_silent_device_has_an_end() {
    let world = World::new(1).await;
    for refused in [SILENT_AFTER_MAX_MS + 1, u64::MAX] {
        let refused = world.create_with_patience(refused).await;
        assert!(matches!(refused, Err(RolloutError::Invalid(_))), "{refused:?}");
    }
    world.create_with_patience(SILENT_AFTER_MAX_MS).await.unwrap();
}

#[test]
fn a_stored_patience_without_end_does_not_overflow() {
    let mut rollout = planned(1, 100, 0);
    (rollout.silent_after_ms, rollout.probation_ms) = (u64::MAX, 1);
    let mut progress = rollout.devices().next().unwrap().clone();
    progress.detail.assigned = Some(Assigned {
        generation: Generation(1),
        at_ms: NOW,
        previous: None,
    });
    let silent_at_ms = plan::observe(&rollout, &mut progress, &silent_device(0), NOW);
    assert_eq!(silent_at_ms, Some(u64::MAX));
}

fn any_result() -> impl Strategy<Value = Option<DeviceState>> {
    prop_oneof![
        Just(None),
        Just(Some(DeviceState::Succeeded)),
        Just(Some(DeviceState::RolledBack)),
        Just(Some(DeviceState::Silent)),
    ]
}

proptest! {
    /// The blast radius: whatever devices answer, no device of a group is told before the groups before it have passed.
    #[test]
    fn no_group_begins_before_the_one_before_it_has_passed(
        results in prop::collection::vec(any_result(), 12), success in 1..=100_u8, error in 0..=100_u8
    ) {
        let mut rollout = planned(12, success, error);
        for turn in 0..30_u64 {
            let actions = plan::decide(&mut rollout, turn);
            for action in actions {
                if let plan::Action::Assign(id) = action {
                    let group = rollout.groups.iter().position(|g| g.devices.iter().any(|d| d.device == id)).unwrap();
                    for earlier in &rollout.groups[..group] {
                        let succeeded = earlier.devices.iter().filter(|d| d.state == DeviceState::Succeeded).count();
                        prop_assert!(succeeded * 100 >= usize::from(success) * earlier.devices.len());
                    }
                    let progress = rollout.groups.iter_mut().flat_map(|g| &mut g.devices).find(|d| d.device == id);
                    progress.unwrap().detail.assigned = Some(Assigned { generation: Generation(1), at_ms: 0, previous: None });
                }
            }
            // One device a turn answers.
            let told = rollout.groups.iter_mut().flat_map(|g| &mut g.devices).filter(|d| d.detail.assigned.is_some());
            if let Some((n, device)) = told.enumerate().find(|(_, d)| d.state == DeviceState::Pending) {
                device.state = results[n % results.len()].unwrap_or(DeviceState::Pending);
            }
        }
        let passes = |group: &Group| {
            let succeeded = group.devices.iter().filter(|d| d.state == DeviceState::Succeeded).count();
            succeeded * 100 >= usize::from(success) * group.devices.len()
        };
        prop_assert!(rollout.state != RolloutState::Finished || rollout.groups.iter().all(passes));
    }
}

fn silent_device(n: usize) -> Device {
    Device {
        id: format!("d{n}").parse().unwrap(),
        labels: BTreeMap::new(),
        platform: "pulley64".parse().unwrap(),
        agent_version: String::new(),
        connected: false,
        enrolled_at_ms: 0,
        certificate_not_after_ms: None,
        revoked_at_ms: None,
        duplicate_seen_at_ms: None,
        last_seen_at_ms: None,
        generation: Generation(0),
        desired: Vec::new(),
        reported: None,
    }
}

fn planned(devices: usize, success_percent: u8, error_percent: u8) -> Rollout {
    let rule = |size| GroupRule {
        size,
        success_percent,
        error_percent,
    };
    let rules = [
        rule(GroupSize::Count(2)),
        rule(GroupSize::Percent(50)),
        rule(GroupSize::Rest),
    ];
    Rollout {
        id: RolloutId(1),
        model: model(),
        version: ModelVersion(2),
        target: String::new(),
        index: index(),
        probation_ms: 0,
        allow_downgrade: false,
        silent_after_ms: 0,
        selector: Selector::default(),
        state: RolloutState::Ready,
        reason: String::new(),
        groups: plan::groups(RolloutId(1), &rules, (0..devices).map(silent_device).collect()).unwrap(),
        author: String::new(),
        approval: Approval::NotNeeded,
        created_at_ms: 0,
        ended_at_ms: None,
    }
}

fn forbid(code: &'static str) -> impl FnOnce(&Connection) -> Result<(), DbError> {
    move |conn| {
        let sql = "INSERT INTO bundle_refusals VALUES ('m/2/index', ?1, 'it sees cats everywhere')";
        conn.execute(sql, [code])?;
        Ok(())
    }
}

#[tokio::test]
async fn a_forbidden_bundle_is_not_rolled_out() {
    let world = World::new(1).await;
    world.db.write(forbid("blocked")).await.unwrap();
    let error = world.try_create(&["rest"]).await.unwrap_err();
    assert!(matches!(&error, RolloutError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("cats everywhere"), "{error}");
}

#[tokio::test]
async fn only_a_rollout_that_says_so_goes_below_the_lowest_version() {
    let world = World::new(1).await;
    world.db.write(forbid("min_release")).await.unwrap();
    assert!(matches!(
        world.try_create(&["rest"]).await,
        Err(RolloutError::Refused { .. })
    ));
    let new = NewRollout {
        model: model(),
        version: ModelVersion(2),
        selector: Selector::default(),
        groups: vec![GroupRule {
            size: GroupSize::Rest,
            success_percent: 100,
            error_percent: 0,
        }],
        probation_ms: None,
        allow_downgrade: true,
        silent_after_ms: None,
        start: true,
    };
    let rollout = create(&world.db, &world.policy, new, by()).await.unwrap();
    evaluate(&world.db, &world.policy, rollout.id, NOW).await.unwrap();
    let device = devices::get(&world.db, &"d0".parse().unwrap()).await.unwrap();
    assert!(device.desired[0].allow_downgrade);
}

#[tokio::test]
async fn a_rollout_whose_bundle_is_blocked_on_the_way_stops_and_takes_it_back() {
    let world = World::new(1).await;
    let rollout = world.create(&["rest"]).await;
    evaluate(&world.db, &world.policy, rollout.id, NOW).await.unwrap();
    world.db.write(forbid("blocked")).await.unwrap();
    evaluate(&world.db, &world.policy, rollout.id, NOW).await.unwrap();
    let after = get(&world.db, rollout.id).await.unwrap();
    assert_eq!(after.state, RolloutState::Stopping);
    assert!(after.reason.contains("cats everywhere"), "{}", after.reason);
    let device = devices::get(&world.db, &"d0".parse().unwrap()).await.unwrap();
    assert_eq!(device.desired, []);
}
