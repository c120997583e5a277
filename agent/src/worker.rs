//! What an update does that takes time: fetching, verifying, loading, watching, returning.
//!
//! The worker owns the store, the trusted metadata and the fetching side of the link, and does one thing at a time. It never
//! decides what its result means, and writes nothing into the state record but the floors of the metadata versions: it says
//! how its work has ended, and the loop in `agent` decides.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use skerry_inference::{LoadedBundle, Runtime, host_platform};
use skerry_shared::{
    bundle::{MANIFEST_NAME, Resource},
    chunk::{ChunkIndex, FileEntry},
    desired::{BundleAssignment, ReportedError},
    digest::Digest,
    id::ModelName,
};
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    fetch::Fetcher,
    loading::Loading,
    record::{Installed, Keeper, Record, Slots},
    serving::Serving,
    store::{Sources, Store},
    update::{Event, Job, decide::Left},
    verify::{self, Trust, VerifiedBundle, VerifyError},
};

/// Bytes of the download under way and the state of the metadata, for reports.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) have: AtomicU64,
    pub(crate) total: AtomicU64,
    pub(crate) resumed: AtomicU64,
    pub(crate) wire: AtomicU64,
    /// True while what comes as the newest metadata has expired. The control plane renews it hours before that.
    pub(crate) stale: AtomicBool,
}

impl Progress {
    /// Another update: what an earlier one has counted is not its own.
    pub(crate) fn begin(&self) {
        for count in [&self.have, &self.total, &self.resumed, &self.wire] {
            count.store(0, Ordering::Relaxed);
        }
    }
}

/// What comes over the link.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fetch {
    Metadata,
    Bundle,
}

/// What a worker is asked to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    Fetch(Fetch),
    Verify,
    Install,
    Watch,
    RollBack,
}

/// The longest probation, whatever the control plane says: a candidate that proves itself for a day is proved, and until it
/// is committed every new start of the device counts against it.
const PROBATION_MAX: Duration = Duration::from_secs(24 * 3600);

/// How work ended badly.
#[derive(Debug)]
enum Trouble {
    /// It may pass by itself.
    Passing(ReportedError),
    /// The same bundle is not tried again under this generation.
    Final(ReportedError),
}

impl From<VerifyError> for Trouble {
    fn from(error: VerifyError) -> Trouble {
        match error.may_pass() {
            true => Trouble::Passing(error.report()),
            false => Trouble::Final(error.report()),
        }
    }
}

impl From<ReportedError> for Trouble {
    fn from(error: ReportedError) -> Trouble {
        Trouble::Final(error)
    }
}

/// Does the effects that take time. It owns the disk store, the trusted metadata and the fetching side of the link.
pub(crate) struct Worker {
    pub(crate) store: Store,
    pub(crate) trust: Trust,
    pub(crate) fetcher: Fetcher,
    pub(crate) runtime: Runtime,
    pub(crate) loading: Loading,
    pub(crate) serving: Arc<Serving>,
    pub(crate) progress: Arc<Progress>,
    /// True until the first download after a start of the agent in the middle of one.
    pub(crate) resuming: bool,
    /// For the metadata versions that must never go back: they are written before the files. It decides nothing else.
    pub(crate) keeper: Keeper,
    pub(crate) clock: Clock,
}

impl Worker {
    /// Does one thing to its end, or until it is not wanted any more.
    pub(crate) async fn work(&mut self, work: Work, job: &Job, record: &Record, cancel: &CancellationToken) -> Event {
        let before = self.fetcher.wire_bytes;
        let done = async {
            match work {
                Work::Fetch(fetch) => Ok(self.fetch_patiently(fetch, job, record).await?),
                Work::Verify => block_in_place(|| {
                    self.still_permitted(job)?;
                    Ok(self.verified(job).map(|_| ())?)
                }),
                Work::Install => block_in_place(|| {
                    self.still_permitted(job)?;
                    Ok(self.install(job)?)
                }),
                Work::Watch => Ok(self.watch(job).await?),
                Work::RollBack => block_in_place(|| Ok(self.roll_back(job, record)?)),
            }
        };
        let event = tokio::select! {
            result = done => match result {
                Ok(()) => Event::Done,
                Err(Trouble::Passing(error)) => Event::Postponed(error),
                Err(Trouble::Final(error)) => Event::Failed(error),
            },
            () = cancel.cancelled() => Event::Superseded,
        };
        let received = self.fetcher.wire_bytes - before;
        self.progress.wire.fetch_add(received, Ordering::Relaxed);
        event
    }

    /// Repeats what stalled: a device that is cut off for days goes on where it was.
    async fn fetch_patiently(&mut self, fetch: Fetch, job: &Job, record: &Record) -> Result<(), VerifyError> {
        loop {
            let result = match fetch {
                Fetch::Metadata => self.sync(job).await,
                Fetch::Bundle => self.download(job, record).await,
            };
            match result {
                Err(error) if error.is_stalled() => tracing::warn!(%error, "nothing comes from the control plane"),
                result => return result,
            }
        }
    }

    async fn sync(&mut self, job: &Job) -> Result<(), VerifyError> {
        let now = self.clock.now().ms;
        self.refresh(now).await?;
        let bytes = self.trust.fetch_index(&mut self.fetcher, &job.assignment, now).await?;
        Ok(self.store.put_index(job.assignment.index, &bytes)?)
    }

    /// Brings the metadata up to date while there is nothing else to do, or until there is: what was blocked is learned, and
    /// whoever holds the metadata back is noticed.
    pub(crate) async fn look_again(&mut self, cancel: &CancellationToken) -> Result<(), ReportedError> {
        let now_ms = self.clock.now().ms;
        tokio::select! {
            result = self.refresh(now_ms) => result.map_err(|error| error.report()),
            () = cancel.cancelled() => Err(ReportedError {
                code: "superseded".to_owned(),
                message: "there is something else to do".to_owned(),
            }),
        }
    }

    /// Lets what is left of a model serve after a bundle was blocked. What else serves by now, a candidate for example, stays.
    pub(crate) fn serve_instead(&mut self, left: &Left) {
        let serves = self.serving.get(&left.model).map(|model| model.version);
        if serves != Some(left.blocked.version) {
            return;
        }
        // First: nothing else may keep it there.
        self.serving.remove(&left.model);
        if let Some(instead) = &left.instead
            && let Err(error) = self.serve_installed(&left.model, instead)
        {
            tracing::error!(model.name = %left.model, code = error.code, error = error.message, "cannot serve the previous bundle");
        }
    }

    /// Brings the metadata up to date.
    pub(crate) async fn refresh(&mut self, now_ms: u64) -> Result<(), VerifyError> {
        let keeper = self.keeper.clone();
        let keep = move |floors| keeper.change(|record| record.floors = floors);
        let refreshed = self.trust.refresh(&mut self.fetcher, now_ms, keep).await;
        match &refreshed {
            Ok(()) => self.progress.stale.store(false, Ordering::Relaxed),
            Err(error) if error.is_stale() => self.progress.stale.store(true, Ordering::Relaxed),
            Err(_) => {}
        }
        refreshed
    }

    /// Asks the newest metadata on this device whether the bundle may be installed: since it was fetched, it may have been
    /// blocked, and the metadata that listed it may have expired.
    fn still_permitted(&self, job: &Job) -> Result<(), Trouble> {
        let permitted = self.trust.permits(&job.assignment, self.clock.now().ms);
        permitted.map(|_| ()).map_err(|error| match error {
            // Expired, or a look at the metadata broke off half-way: a Sync finds out what is wrong with it, if anything is.
            VerifyError::Metadata(_) => Trouble::Passing(error.report()),
            error => error.into(),
        })
    }

    async fn download(&mut self, job: &Job, record: &Record) -> Result<(), VerifyError> {
        self.trust.not_forbidden(&job.assignment)?;
        let digest = job.assignment.index;
        let index = self
            .store
            .index(digest)?
            .ok_or_else(|| VerifyError::File("the chunk index".to_owned()))?;
        if std::mem::take(&mut self.resuming) && self.store.has_staged(&index)? {
            self.progress.resumed.fetch_add(1, Ordering::Relaxed);
        }
        let sources = self.store.sources(record)?;
        // The manifest first: it says what else this device needs.
        let manifest_file = index.file(MANIFEST_NAME).ok_or(VerifyError::Manifest(None))?;
        let lacking = self.lacking(&[manifest_file])?;
        self.fetch((digest, &index), &lacking, &sources).await?;
        let manifest = verify::manifest(&self.store, &index)?;
        let files = verify::needed_files(&index, &manifest, &host_platform())?;
        let lacking = self.lacking(&files)?;
        let needed_bytes = self.store.bytes_to_write(&index, &lacking)?;
        let free_bytes = self.store.room_bytes()?;
        if free_bytes < needed_bytes {
            return Err(VerifyError::DiskFull {
                free_bytes,
                needed_bytes,
            });
        }
        self.fetch((digest, &index), &lacking, &sources).await
    }

    /// Which of these files must come. Their size together is what progress is measured against.
    fn lacking<'a>(&self, files: &[&'a FileEntry]) -> Result<Vec<&'a FileEntry>, VerifyError> {
        let total: u64 = files.iter().map(|file| file.size_bytes).sum();
        self.progress.total.store(total, Ordering::Relaxed);
        Ok(block_in_place(|| self.store.lacking(files))?)
    }

    async fn fetch(
        &mut self,
        (digest, index): (Digest, &ChunkIndex),
        lacking: &[&FileEntry],
        sources: &Sources,
    ) -> Result<(), VerifyError> {
        let missing = block_in_place(|| self.store.missing_chunks(index, lacking, sources))?;
        let missing_bytes: u64 = missing
            .iter()
            .map(|part| u64::from(index.chunks()[*part as usize].raw_len))
            .sum();
        let total = self.progress.total.load(Ordering::Relaxed);
        self.progress.have.store(total - missing_bytes, Ordering::Relaxed);
        let (store, progress) = (&self.store, &self.progress);
        self.fetcher
            .chunks((digest, index), missing, |chunk, raw| {
                progress.have.fetch_add(raw.len() as u64, Ordering::Relaxed);
                store.stage(chunk.raw, raw)
            })
            .await?;
        block_in_place(|| {
            for file in lacking {
                if !self.store.assemble(index, file)? {
                    return Err(VerifyError::File(file.name.to_string()));
                }
            }
            Ok(())
        })
    }

    fn verified(&self, job: &Job) -> Result<VerifiedBundle, VerifyError> {
        let assigned = (&job.assignment.model, job.assignment.version);
        verify::bundle(&self.store, job.assignment.index, assigned, &host_platform())
    }

    fn install(&mut self, job: &Job) -> Result<(), ReportedError> {
        let verified = self.verified(job).map_err(|error| error.report())?;
        let model = self.load(&verified, job.assignment.index)?;
        self.serving
            .replace(job.assignment.model.clone(), job.assignment.version, model);
        Ok(())
    }

    /// Loads a bundle and proves it on its golden vectors, beside whatever serves.
    fn load(&mut self, verified: &VerifiedBundle, index: Digest) -> Result<LoadedBundle, ReportedError> {
        let (manifest, store) = (verified.manifest(), &self.store);
        let mut read = |resource: &Resource| {
            let content = store.object(resource.digest).map_err(std::io::Error::other)?;
            content.ok_or_else(|| std::io::ErrorKind::NotFound.into())
        };
        self.loading.load(&self.runtime, manifest, index, &mut read)
    }

    /// Lets the candidate serve for its probation; its own failures end it at once.
    async fn watch(&mut self, job: &Job) -> Result<(), ReportedError> {
        // A look at the metadata may have come in between.
        let allowed = self.trust.not_forbidden(&job.assignment);
        allowed.map_err(|error| error.report())?;
        let candidate = match self.serving.get(&job.assignment.model) {
            Some(model) if model.version == job.assignment.version => model,
            // The agent started anew while it was on probation.
            _ => {
                block_in_place(|| self.install(job))?;
                self.serving.get(&job.assignment.model).ok_or_else(|| ReportedError {
                    code: "load".to_owned(),
                    message: "the candidate does not serve".to_owned(),
                })?
            }
        };
        let probation = probation(&job.assignment);
        tokio::select! {
            // A failure that was before this is remembered by the notification.
            () = candidate.failed.notified() => {
                let (errors, requests) = (&candidate.errors, &candidate.requests);
                let message = format!(
                    "{} of {} requests failed on probation",
                    errors.load(Ordering::Relaxed),
                    requests.load(Ordering::Relaxed)
                );
                Err(ReportedError {
                    code: "probation_errors".to_owned(),
                    message,
                })
            }
            () = tokio::time::sleep_until(candidate.since + probation) => Ok(()),
        }
    }

    /// Lets the bundle of the slots serve again, or nothing if there is none. Needs no network. The candidate is gone in any
    /// case, even if nothing can take its place.
    fn roll_back(&mut self, job: &Job, record: &Record) -> Result<(), ReportedError> {
        let model = &job.assignment.model;
        let slots = record.slots.get(model).cloned().unwrap_or_default();
        let serves = self.serving.get(model).map(|model| model.version);
        if serves.is_some() && serves == slots.current.as_ref().map(|current| current.version) {
            return Ok(());
        }
        let (serves, error) = self.serve_slots_of(model, &slots);
        if !serves {
            self.serving.remove(model);
        }
        error.map_or(Ok(()), Err)
    }

    /// Lets what the slots say serve, and says which current bundles cannot.
    pub(crate) fn serve_slots(&mut self, slots: &BTreeMap<ModelName, Slots>) -> Vec<(ModelName, ReportedError)> {
        let mut unusable = Vec::new();
        for (model, slots) in slots {
            let (_, error) = self.serve_slots_of(model, slots);
            unusable.extend(error.map(|error| (model.clone(), error)));
        }
        unusable
    }

    /// Lets the current bundle of a model serve, or the previous one if there is no other and the device may return to it.
    /// Says whether one does, and why the first that was tried does not.
    fn serve_slots_of(&mut self, model: &ModelName, slots: &Slots) -> (bool, Option<ReportedError>) {
        let previous = slots.previous.as_ref();
        let previous = previous.filter(|previous| self.trust.may_return_to(model, previous));
        let mut first_error = None;
        for installed in slots.current.as_ref().into_iter().chain(previous) {
            match self.serve_installed(model, installed) {
                Ok(()) => return (true, first_error),
                Err(error) => {
                    tracing::error!(
                        model.name = %model, model.version = installed.version.0, code = error.code, error = error.message,
                        "cannot serve an installed bundle"
                    );
                    first_error.get_or_insert(error);
                }
            }
        }
        (false, first_error)
    }

    /// Lets an installed bundle serve. Not a blocked one: on a disk that takes nothing more the slots may still name it.
    fn serve_installed(&mut self, model: &ModelName, installed: &Installed) -> Result<(), ReportedError> {
        if let Some(error) = self.trust.blocked(installed) {
            return Err(error);
        }
        let assigned = (model, installed.version);
        let verified = verify::bundle(&self.store, installed.index, assigned, &host_platform());
        let bundle = self.load(&verified.map_err(|error| error.report())?, installed.index)?;
        self.serving.replace(model.clone(), installed.version, bundle);
        Ok(())
    }
}

/// How long a candidate serves before it is committed.
fn probation(assignment: &BundleAssignment) -> Duration {
    Duration::from_millis(u64::from(assignment.probation_ms)).min(PROBATION_MAX)
}

#[cfg(test)]
mod tests {
    use skerry_shared::id::ModelVersion;

    use super::*;

    #[test]
    fn a_probation_ends_after_a_day_whatever_the_control_plane_says() {
        let asked = |probation_ms| BundleAssignment {
            model: "m".parse().expect("a model's name"),
            version: ModelVersion(1),
            target: String::new(),
            index: Digest::of(b""),
            rollout: None,
            probation_ms,
            allow_downgrade: false,
        };
        assert_eq!(probation(&asked(10_000)), Duration::from_secs(10));
        assert_eq!(probation(&asked(u32::MAX)), Duration::from_secs(24 * 3600));
    }
}
