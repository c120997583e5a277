//! The writing half of the update: each decision is one change of the record, durable before anything is done about it.
//!
//! No network, no models, no tasks: the loop in `agent` calls these in answer to what happens. Invariant: after an error
//! the decision was not made.

use skerry_shared::{
    desired::{Desired, Outcome, OutcomeResult, ReportedError},
    id::{Generation, ModelName, ModelVersion},
};

use super::{
    Effect, Event, Job, State,
    step::{next_job, step},
};
use crate::{
    clock::Clock,
    disk::DiskError,
    record::{Installed, Keeper, Record},
    report,
    store::Store,
    verify::{SignedDesired, Trust, VerifyError},
};

/// By how much the clocks of device and control plane may differ without a question: no clock is exact.
const SKEW_MS: u64 = 60_000;

/// What an update has cost on the link.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) wire_bytes: u64,
    pub(crate) resumed: u32,
}

/// One turn of the machine: the next state is on disk when its effect is returned.
pub(crate) fn advance(keeper: &Keeper, event: Event) -> Result<Effect, DiskError> {
    let (next, effect) = step(keeper.get().update.clone(), event);
    keeper.change(|record| record.update = next)?;
    Ok(effect)
}

/// True for an intent newer than the known one. A generation that a stolen key has signed holds nothing back once root has
/// taken that key away.
pub(crate) fn is_news(record: &Record, trust: &Trust, signed: &SignedDesired) -> bool {
    let Some(known) = &record.desired else { return true };
    signed.desired.generation > known.generation || !trust.still_assigns(&record.desired_by)
}

/// True when a newer intent contradicts what is known of the time: it was signed later than now, or earlier than the one
/// before it. It cannot say what time it is, but somebody must be asked: the control plane's clock may have been corrected.
pub(crate) fn contradicts_the_time(record: &Record, clock: &Clock, desired: &Desired) -> bool {
    let before = record.desired.as_ref();
    let earlier = before.is_some_and(|before| desired.issued_at_ms < before.issued_at_ms);
    earlier || desired.issued_at_ms > clock.now().ms.saturating_add(SKEW_MS)
}

/// Takes a newer intent, and the time when it was signed.
pub(crate) fn accept(
    keeper: &Keeper,
    clock: &Clock,
    SignedDesired { desired, signed_by }: SignedDesired,
) -> Result<(), DiskError> {
    clock.learn_intent(desired.issued_at_ms);
    let floor_ms = clock.floor_ms();
    keeper.change(|record| {
        record.desired_by = signed_by;
        record.time_floor_ms = floor_ms;
        record.desired = Some(desired);
    })
}

/// Idle: forgets the slots of models that the intent does not list and says which, cleans up, and gives the next job.
pub(crate) fn rest(
    keeper: &Keeper,
    store: &Store,
    desired: &Desired,
) -> Result<(Vec<ModelName>, Option<Job>), DiskError> {
    let wanted = |model: &ModelName| desired.bundles.iter().any(|assignment| assignment.model == *model);
    let record = keeper.get();
    let dropped = record.slots.keys().filter(|model| !wanted(model)).cloned().collect();
    keeper.change(|record| record.slots.retain(|model, _| wanted(model)))?;
    let record = keeper.get();
    let job = next_job(desired, &record);
    // Before it begins: what nobody needs any more must not take its room.
    let candidate = job.as_ref().map(|job| job.assignment.index);
    if let Err(error) = store.collect_garbage(&record, candidate) {
        tracing::warn!(%error, "cannot clean the store up");
    }
    Ok((dropped, job))
}

/// The end of an installed bundle that no update has asked for.
fn gone(generation: Generation, model: &ModelName, version: ModelVersion, error: ReportedError) -> Outcome {
    Outcome {
        generation,
        model: model.clone(),
        version,
        rollout: None,
        result: OutcomeResult::Failed(error),
        wire_bytes: 0,
        resumed_downloads: 0,
    }
}

/// Empties the current slot of a model whose installed bundle does not load, so that it is fetched anew.
pub(crate) fn give_up_current(keeper: &Keeper, model: &ModelName, error: ReportedError) -> Result<(), DiskError> {
    keeper.change(|record| {
        let desired = record.desired.as_ref();
        let generation = desired.map(|desired| desired.generation).unwrap_or_default();
        let Some(current) = record.slots.get_mut(model).and_then(|slots| slots.current.take()) else {
            return;
        };
        let outcome = gone(generation, model, current.version, error);
        record.outcomes.insert(model.clone(), outcome);
    })
}

/// A bundle that signed metadata has come to block.
#[derive(Clone, Debug)]
pub(crate) struct Left {
    pub(crate) model: ModelName,
    pub(crate) blocked: Installed,
    /// What shall serve now: the bundle before it, if the device may return to it.
    pub(crate) instead: Option<Installed>,
}

/// Leaves what signed metadata has come to block, in the record. What comes back is decided whether it could be written or
/// not: a disk that takes nothing more must not let a blocked bundle serve on.
pub(crate) fn leave_blocked(keeper: &Keeper, trust: &Trust) -> (Vec<Left>, Result<(), DiskError>) {
    let mut left = Vec::new();
    let written = keeper.change(|record| left = take_blocked(record, trust));
    (left, written)
}

fn take_blocked(record: &mut Record, trust: &Trust) -> Vec<Left> {
    let mut left = Vec::new();
    let desired = record.desired.as_ref();
    let generation = desired.map(|desired| desired.generation).unwrap_or_default();
    for (model, slots) in &mut record.slots {
        // What is blocked is nothing to return to, now or after a later failure.
        slots.previous.take_if(|previous| trust.blocked(previous).is_some());
        let Some(current) = &slots.current else { continue };
        let Some(error) = trust.blocked(current) else { continue };
        let outcome = gone(generation, model, current.version, error);
        record.outcomes.insert(model.clone(), outcome);
        record.failed.insert(model.clone(), (current.index, generation));
        let previous = slots.previous.take();
        let instead = previous.filter(|previous| trust.may_return_to(model, previous));
        if let Some(blocked) = std::mem::replace(&mut slots.current, instead.clone()) {
            left.push(Left {
                model: model.clone(),
                blocked,
                instead,
            });
        }
    }
    left
}

/// Makes the candidate the current bundle. The update ends with the same write: a start in state Commit means that the slots
/// are as before.
pub(crate) fn commit(keeper: &Keeper, job: &Job, cost: Cost) -> Event {
    ended(keeper.change(|record| {
        let candidate = Installed {
            version: job.assignment.version,
            index: job.assignment.index,
        };
        let slots = record.slots.entry(job.assignment.model.clone()).or_default();
        if slots.current.as_ref() != Some(&candidate) {
            slots.previous = slots.current.replace(candidate);
        }
        record.update = State::Idle;
        let outcome = report::outcome(job, OutcomeResult::Succeeded, cost);
        record.outcomes.insert(job.assignment.model.clone(), outcome);
    }))
}

/// Writes down that an update failed: under this generation the bundle is not tried again.
pub(crate) fn write_failure(keeper: &Keeper, job: &Job, error: ReportedError, rolled_back: bool, cost: Cost) -> Event {
    ended(keeper.change(|record| {
        let model = job.assignment.model.clone();
        let failed = (job.assignment.index, job.generation);
        record.failed.insert(model.clone(), failed);
        let result = match rolled_back {
            true => OutcomeResult::RolledBack(error),
            false => OutcomeResult::Failed(error),
        };
        record.outcomes.insert(model, report::outcome(job, result, cost));
    }))
}

fn ended(changed: Result<(), DiskError>) -> Event {
    match changed {
        Ok(()) => Event::Done,
        Err(error) => Event::Failed(VerifyError::Disk(error).report()),
    }
}
