//! Four eyes on real users, tokens and devices.

use super::{
    super::{
        approval::{Approval, Policy, approve},
        *,
    },
    NOW, World,
};
use crate::access::{Actor, Role};

/// Devices `d0`, `d2`, … have the label `site=a`: it means production here.
async fn world(devices: usize) -> World {
    let mut world = World::new(devices).await;
    world.policy = Policy {
        production: Some("site=a".parse().unwrap()),
    };
    world
}

/// A user, signed in by password or with a token.
fn actor(name: &str) -> Actor {
    let person = crate::access::person_of(name);
    Actor {
        name: name.to_owned(),
        role: Role::Operator,
        user: (name == person || name.contains('/')).then(|| person.parse().unwrap()),
        person: person.to_owned(),
    }
}

async fn approved(world: &World, id: RolloutId, by: &str) -> Result<Rollout, RolloutError> {
    approve(&world.db, &world.policy, id, &actor(by), NOW).await
}

async fn label(world: &World, device: &str, value: Option<&str>) {
    let changes = [("site".to_owned(), value.map(str::to_owned))].into();
    let id = device.parse().unwrap();
    devices::set_labels(&world.db, &id, changes, None, By::new("eve", NOW))
        .await
        .unwrap();
}

fn untold(rollout: &Rollout) -> bool {
    rollout.devices().all(|device| device.detail.assigned.is_none())
}

#[tokio::test]
async fn a_rollout_to_production_waits_for_a_second_person_and_begins_with_its_word() {
    let world = world(2).await;
    let rollout = world.create(&["rest"]).await;
    assert_eq!(rollout.state, RolloutState::Draft);
    assert_eq!(rollout.approval, Approval::Needed { starts: true });
    let rollout = world.settle(rollout.id, NOW).await;
    assert!(untold(&rollout));
    let resumed = resume(&world.db, &world.policy, rollout.id, By::new("bob", NOW)).await;
    assert!(matches!(resumed, Err(RolloutError::Unapproved(_))), "{resumed:?}");

    let rollout = approved(&world, rollout.id, "bob").await.unwrap();
    assert_eq!(rollout.state, RolloutState::Ready);
    let by = "bob".to_owned();
    assert_eq!(rollout.approval, Approval::Given { by, at_ms: NOW });
    let rollout = world.settle(rollout.id, NOW).await;
    assert_eq!(rollout.state, RolloutState::Running);
    assert!(!untold(&rollout));
}

#[tokio::test]
async fn the_author_is_no_second_person_whatever_it_signs_in_with() {
    let world = world(2).await;
    // `ada` made it: see `World`.
    let rollout = world.create(&["rest"]).await;
    for own in ["ada", "ada/laptop", "ada/second"] {
        let refused = approved(&world, rollout.id, own).await;
        assert!(matches!(refused, Err(RolloutError::Author(_))), "{own}: {refused:?}");
    }
    for nobody in ["token:first", "ada:ci", "bob:ci"] {
        let refused = approved(&world, rollout.id, nobody).await;
        assert!(
            matches!(refused, Err(RolloutError::NotAPerson(_))),
            "{nobody}: {refused:?}"
        );
    }
    let after = get(&world.db, rollout.id).await.unwrap();
    assert_eq!((after.state, &after.approval), (rollout.state, &rollout.approval));
    approved(&world, rollout.id, "bob/laptop").await.unwrap();
}

#[tokio::test]
async fn who_made_the_token_that_made_the_rollout_is_its_author() {
    let world = world(2).await;
    let new = NewRollout {
        model: "m".parse().unwrap(),
        version: ModelVersion(2),
        selector: Selector::default(),
        groups: vec![GroupRule {
            size: group::GroupSize::Rest,
            success_percent: 100,
            error_percent: 0,
        }],
        probation_ms: None,
        allow_downgrade: false,
        silent_after_ms: None,
        start: true,
    };
    let by = By::new("ada:ci", NOW);
    let rollout = create(&world.db, &world.policy, new, by).await.unwrap();
    let refused = approved(&world, rollout.id, "ada").await;
    assert!(matches!(refused, Err(RolloutError::Author(_))), "{refused:?}");
}

#[tokio::test]
async fn a_rollout_beside_production_needs_nobody() {
    let mut world = world(2).await;
    world.policy.production = Some("site=elsewhere".parse().unwrap());
    let rollout = world.create(&["rest"]).await;
    assert_eq!(
        (rollout.state, &rollout.approval),
        (RolloutState::Ready, &Approval::NotNeeded)
    );
    let refused = approved(&world, rollout.id, "bob").await;
    assert!(matches!(refused, Err(RolloutError::NothingToApprove(_))), "{refused:?}");
}

#[tokio::test]
async fn a_device_that_comes_into_production_later_is_told_nothing_before_the_approval() {
    let world = world(4).await;
    for device in ["d0", "d2"] {
        label(&world, device, None).await;
    }
    let rollout = world.create(&["1", "rest"]).await;
    assert_eq!(rollout.state, RolloutState::Ready);
    let rollout = world.settle(rollout.id, NOW).await;
    let first = rollout.groups[0].devices[0].device.clone();
    let late = rollout.groups[1].devices[0].device.clone();
    label(&world, late.as_str(), Some("a")).await;
    world.succeed(&first, NOW + 1).await;
    let rollout = world.settle(rollout.id, NOW + 1).await;
    assert_eq!(rollout.state, RolloutState::Paused, "{}", rollout.reason);
    assert!(rollout.reason.contains(late.as_str()), "{}", rollout.reason);
    assert!(rollout.groups[1].devices.iter().all(|d| d.detail.assigned.is_none()));
    let resumed = resume(&world.db, &world.policy, rollout.id, By::new("bob", NOW)).await;
    assert!(matches!(resumed, Err(RolloutError::Unapproved(_))), "{resumed:?}");
    assert!(matches!(
        approved(&world, rollout.id, "ada").await,
        Err(RolloutError::Author(_))
    ));
    approved(&world, rollout.id, "bob").await.unwrap();
    let rollout = world.settle(rollout.id, NOW + 2).await;
    assert_eq!(rollout.state, RolloutState::Running);
    assert!(rollout.groups[1].devices.iter().all(|d| d.detail.assigned.is_some()));
}

#[tokio::test]
async fn a_draft_whose_device_comes_into_production_cannot_be_started_alone() {
    let world = world(2).await;
    label(&world, "d0", None).await;
    let rule = GroupRule {
        size: group::GroupSize::Rest,
        success_percent: 100,
        error_percent: 0,
    };
    let draft = world.create_with(vec![rule], false).await.unwrap();
    assert_eq!(draft.approval, Approval::NotNeeded);
    label(&world, "d0", Some("a")).await;
    let resumed = resume(&world.db, &world.policy, draft.id, By::new("ada", NOW)).await;
    assert!(matches!(resumed, Err(RolloutError::Unapproved(_))), "{resumed:?}");
    // Approved, it is still a draft that its author starts.
    let draft = approved(&world, draft.id, "bob").await.unwrap();
    assert_eq!(draft.state, RolloutState::Draft);
    let started = resume(&world.db, &world.policy, draft.id, By::new("ada", NOW))
        .await
        .unwrap();
    assert_eq!(started.state, RolloutState::Ready);
}

#[tokio::test]
async fn a_rollout_that_is_over_cannot_be_approved_back_to_life() {
    let world = world(2).await;
    let rollout = world.create(&["rest"]).await;
    abort(&world.db, rollout.id, By::new("ada", NOW)).await.unwrap();
    let refused = approved(&world, rollout.id, "bob").await;
    assert!(matches!(refused, Err(RolloutError::State { .. })), "{refused:?}");
    let rollout = world.settle(rollout.id, NOW).await;
    assert_eq!(rollout.state, RolloutState::Stopped);
    assert!(untold(&rollout));
}

#[tokio::test]
async fn production_labels_stay_when_they_must() {
    let world = world(2).await;
    let id = "d0".parse().unwrap();
    let change = async |value: Option<&str>| {
        let changes = [("site".to_owned(), value.map(str::to_owned))].into();
        let kept = world.policy.production.clone();
        devices::set_labels(&world.db, &id, changes, kept, By::new("eve", NOW)).await
    };
    for value in [None, Some("b")] {
        let refused = change(value).await;
        assert!(matches!(refused, Err(DeviceError::Kept(_))), "{refused:?}");
    }
    assert_eq!(world.device(&id).await.labels["site"], "a");
    change(Some("a")).await.unwrap();
}
