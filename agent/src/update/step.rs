//! The pure half of the update: which state follows, and what to do then. Every effect may be repeated.

use skerry_shared::desired::{Desired, ReportedError};

use super::{CANDIDATE_BOOTS_MAX, Job, State};
use crate::record::Record;

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// There is something to bring here.
    Wanted(Job),
    /// The intent has changed: the job under way is not wanted any more.
    Superseded,
    /// The agent has started.
    Started,
    /// The effect of the state is done.
    Done,
    /// The effect of the state, or the candidate in probation, has failed.
    Failed(ReportedError),
    /// The effect has failed for a reason that may pass by itself: metadata that is late, or a control plane that lags. It is
    /// tried again after a pause, which is not this machine's business.
    Postponed(ReportedError),
}

/// What to do, after the state is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing: wait for a new intent.
    Rest,
    /// Bring the metadata and the chunk index up to date.
    Sync(Job),
    /// Fetch what is missing.
    Download(Job),
    /// Check the complete bundle.
    Verify(Job),
    /// Load the candidate, prove it, let it serve.
    Install(Job),
    /// Watch it serve.
    Watch(Job),
    /// Make it the current slot.
    Commit(Job),
    /// Let the current slot serve again.
    RollBack(Job),
    /// Write the failure down.
    Record {
        job: Job,
        error: ReportedError,
        rolled_back: bool,
    },
}

/// The next state and its effect.
pub(crate) fn step(state: State, event: Event) -> (State, Effect) {
    let next = match (state, event) {
        (State::Idle, Event::Wanted(job)) => State::Sync { job },
        (State::Idle, Event::Superseded | Event::Started | Event::Done | Event::Failed(_) | Event::Postponed(_)) => {
            State::Idle
        }

        // Nothing on the device has changed yet: drop it, start again, or fail.
        (State::Sync { .. } | State::Download { .. } | State::Verify { .. }, Event::Superseded) => State::Idle,
        (State::Sync { job } | State::Download { job } | State::Verify { job }, Event::Failed(error)) => {
            State::Failure {
                job,
                error,
                rolled_back: false,
            }
        }
        // From the beginning: what the metadata says is asked anew. The candidate of an Install was not loaded.
        (
            State::Sync { job } | State::Download { job } | State::Verify { job } | State::Install { job, .. },
            Event::Postponed(_),
        ) => State::Sync { job },
        (State::Sync { job }, Event::Done) => State::Download { job },
        (State::Download { job }, Event::Done) => State::Verify { job },
        (State::Verify { job }, Event::Done) => State::Install { job, boots: 0 },

        (State::Install { job, .. }, Event::Done) => State::Probation { job, boots: 0 },
        (State::Install { job, .. }, Event::Failed(error))
        | (State::Probation { job, .. }, Event::Failed(error) | Event::Postponed(error)) => {
            State::Rollback { job, error }
        }
        (State::Probation { job, .. }, Event::Done) => State::Commit { job },
        // The candidate was loading or served, and the agent started anew: it may be the candidate that ends it.
        (State::Install { job, boots }, Event::Started) => match crash_loop(boots + 1) {
            Some(error) => State::Rollback { job, error },
            None => State::Install { job, boots: boots + 1 },
        },
        (State::Probation { job, boots }, Event::Started) => match crash_loop(boots + 1) {
            Some(error) => State::Rollback { job, error },
            None => State::Probation { job, boots: boots + 1 },
        },
        (State::Probation { job, .. }, Event::Superseded) => State::Rollback {
            job,
            error: ReportedError {
                code: "superseded".to_owned(),
                message: "the bundle was not wanted any more before its probation had ended".to_owned(),
            },
        },

        (State::Commit { .. }, Event::Done) => State::Idle,
        // The slots are as before, so the old bundle serves again: the candidate must serve before it may be committed.
        (State::Commit { job }, Event::Started) => State::Probation { job, boots: 1 },
        // The slots are as before; the candidate proved itself. Commit is one write: only a broken disk fails it.
        (State::Commit { job }, Event::Failed(error) | Event::Postponed(error)) => State::Rollback { job, error },
        (State::Rollback { job, error }, Event::Done | Event::Failed(_) | Event::Postponed(_)) => State::Failure {
            job,
            error,
            rolled_back: true,
        },
        (State::Failure { .. }, Event::Done | Event::Failed(_) | Event::Postponed(_)) => State::Idle,

        // Started: the effect is repeated. Wanted and Superseded: first things first, the intent is looked at again when idle.
        (
            state @ (State::Sync { .. } | State::Download { .. } | State::Verify { .. }),
            Event::Wanted(_) | Event::Started,
        ) => state,
        (
            state @ (State::Rollback { .. } | State::Failure { .. }),
            Event::Wanted(_) | Event::Superseded | Event::Started,
        ) => state,
        (state @ State::Commit { .. }, Event::Wanted(_) | Event::Superseded) => state,
        (state @ State::Install { .. }, Event::Wanted(_) | Event::Superseded) => state,
        (state @ State::Probation { .. }, Event::Wanted(_)) => state,
    };
    let effect = effect_of(&next);
    (next, effect)
}

/// The end of a candidate under which the agent has started this often.
fn crash_loop(boots: u32) -> Option<ReportedError> {
    (boots >= CANDIDATE_BOOTS_MAX).then(|| ReportedError {
        code: "crash_loop".to_owned(),
        message: format!("the agent started {boots} times while it tried the bundle"),
    })
}

/// What a state does.
pub(crate) fn effect_of(state: &State) -> Effect {
    match state.clone() {
        State::Idle => Effect::Rest,
        State::Sync { job } => Effect::Sync(job),
        State::Download { job } => Effect::Download(job),
        State::Verify { job } => Effect::Verify(job),
        State::Install { job, .. } => Effect::Install(job),
        State::Probation { job, .. } => Effect::Watch(job),
        State::Commit { job } => Effect::Commit(job),
        State::Rollback { job, .. } => Effect::RollBack(job),
        State::Failure {
            job,
            error,
            rolled_back,
        } => Effect::Record {
            job,
            error,
            rolled_back,
        },
    }
}

/// The first thing that the intent asks for and the device does not have. A bundle that failed is not tried again under
/// the same generation.
pub(crate) fn next_job(desired: &Desired, record: &Record) -> Option<Job> {
    let lacking = desired.bundles.iter().find(|assignment| {
        let current = record
            .slots
            .get(&assignment.model)
            .and_then(|slots| slots.current.as_ref());
        let has = current.is_some_and(|installed| installed.index == assignment.index);
        let failed = record.failed.get(&assignment.model) == Some(&(assignment.index, desired.generation));
        !has && !failed
    });
    lacking.map(|assignment| Job {
        generation: desired.generation,
        assignment: assignment.clone(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use skerry_shared::{
        desired::BundleAssignment,
        digest::Digest,
        id::{Generation, ModelVersion},
    };

    use super::*;

    fn job(n: u64) -> Job {
        let assignment = BundleAssignment {
            model: "m".parse().unwrap(),
            version: ModelVersion(n),
            target: format!("m/{n}/index"),
            index: Digest::of(&n.to_le_bytes()),
            rollout: None,
            probation_ms: 0,
            allow_downgrade: false,
        };
        Job {
            generation: Generation(n),
            assignment,
        }
    }

    fn error() -> ReportedError {
        ReportedError {
            code: "golden_mismatch".to_owned(),
            message: "no".to_owned(),
        }
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1..4_u64).prop_map(|n| Event::Wanted(job(n))),
            Just(Event::Superseded),
            Just(Event::Started),
            Just(Event::Done),
            Just(Event::Failed(error())),
            Just(Event::Postponed(error())),
        ]
    }

    #[test]
    fn a_good_bundle_goes_all_the_way() {
        let mut state = step(State::Idle, Event::Wanted(job(1))).0;
        let mut seen = vec![state.clone()];
        for _ in 0..6 {
            state = step(state, Event::Done).0;
            seen.push(state.clone());
        }
        assert!(matches!(seen[4], State::Probation { .. }) && matches!(seen[5], State::Commit { .. }));
        assert_eq!(seen[6], State::Idle);
    }

    #[test]
    fn a_failure_before_install_touches_nothing() {
        let (state, _) = step(State::Download { job: job(1) }, Event::Failed(error()));
        assert_eq!(
            state,
            State::Failure {
                job: job(1),
                error: error(),
                rolled_back: false
            }
        );
    }

    #[test]
    fn what_may_pass_begins_again_and_is_no_failure() {
        for state in [
            State::Sync { job: job(1) },
            State::Download { job: job(1) },
            State::Verify { job: job(1) },
            State::Install { job: job(1), boots: 2 },
        ] {
            let (state, effect) = step(state, Event::Postponed(error()));
            assert_eq!((state, effect), (State::Sync { job: job(1) }, Effect::Sync(job(1))));
        }
    }

    #[test]
    fn a_failure_on_probation_rolls_back() {
        let (state, effect) = step(State::Probation { job: job(1), boots: 0 }, Event::Failed(error()));
        assert!(matches!(state, State::Rollback { .. }));
        assert_eq!(effect, Effect::RollBack(job(1)));
    }

    #[test]
    fn a_crash_loop_rolls_back_without_a_network() {
        for mut state in [
            State::Install { job: job(1), boots: 0 },
            State::Probation { job: job(1), boots: 0 },
        ] {
            for _ in 0..CANDIDATE_BOOTS_MAX {
                state = step(state, Event::Started).0;
            }
            assert!(matches!(state, State::Rollback { error, .. } if error.code == "crash_loop"));
        }
    }

    #[test]
    fn what_is_not_wanted_any_more_is_never_committed() {
        let (state, effect) = step(State::Probation { job: job(1), boots: 0 }, Event::Superseded);
        assert!(matches!(state, State::Rollback { error, .. } if error.code == "superseded"));
        assert_eq!(effect, Effect::RollBack(job(1)));
    }

    proptest! {
        #[test]
        fn starting_again_repeats_the_same_effect(events in prop::collection::vec(any_event(), 0..20)) {
            let (mut state, mut effect) = (State::Idle, Effect::Rest);
            for event in events {
                (state, effect) = step(state, event);
            }
            let (again, repeated) = step(state.clone(), Event::Started);
            match state {
                State::Install { .. } | State::Probation { .. } => {
                    let goes_on = matches!(again, State::Install { .. } | State::Probation { .. } | State::Rollback { .. });
                    prop_assert!(goes_on);
                }
                State::Commit { .. } => {
                    let watches = matches!(again, State::Probation { boots: 1, .. });
                    prop_assert!(watches);
                }
                _ => prop_assert_eq!((again, repeated), (state, effect)),
            }
        }

        #[test]
        fn commit_comes_only_out_of_probation(events in prop::collection::vec(any_event(), 0..40)) {
            let mut state = State::Idle;
            for event in events {
                let before = state.clone();
                state = step(state, event).0;
                let repeated = matches!(before, State::Probation { .. } | State::Commit { .. });
                let commits = matches!(state, State::Commit { .. });
                prop_assert!(!commits || repeated);
            }
        }

        #[test]
        fn every_state_ends_idle_when_effects_end(events in prop::collection::vec(any_event(), 0..20), fails in any::<bool>()) {
            let mut state = State::Idle;
            for event in events {
                state = step(state, event).0;
            }
            for _ in 0..8 {
                state = step(state, if fails { Event::Failed(error()) } else { Event::Done }).0;
            }
            prop_assert_eq!(state, State::Idle);
        }
    }
}
