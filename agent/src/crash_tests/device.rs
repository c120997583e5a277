//! A device on a simulated disk: what the agent does at its start and in its loop, without tasks and without a network.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use skerry_inference::Runtime;
use skerry_shared::id::ModelVersion;
use tokio_util::sync::CancellationToken;

use super::plane::{Plane, device, model};
use crate::{
    agent::open_state,
    clock::{Clock, Reading},
    disk::{
        Access,
        sim::{Left, SimFs},
    },
    loading::Loading,
    record::{Keeper, Record},
    serving::Serving,
    update::{
        Effect, Event, Job,
        decide::{self, Cost},
    },
    worker::{Fetch, Progress, Work, Worker},
};

/// Years after everything that was signed, and centuries before it expires.
pub(crate) const NOW_MS: u64 = 2_000_000_000_000;

pub(crate) fn state_dir() -> PathBuf {
    PathBuf::from("/state")
}

/// A disk on which enrolment has left its root.
pub(crate) fn enrolled(root: &[u8]) -> SimFs {
    let fs = SimFs::new(&state_dir());
    let trust = state_dir().join("trust");
    fs.disk().make_folder(&trust).unwrap();
    fs.disk()
        .write(&trust.join("root.json"), root, Access::Everybody)
        .unwrap();
    fs
}

/// What every run of the tests shares.
pub(crate) struct Rig {
    pub(crate) plane: Plane,
    /// What the clocks of the machine say at every start.
    pub(crate) machine: Reading,
    pub(crate) runtime: Runtime,
    pub(crate) tokio: tokio::runtime::Runtime,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        let tokio = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        Rig {
            plane: Plane::default(),
            machine: Reading {
                system_ms: NOW_MS,
                monotonic_ms: 0,
            },
            runtime: Runtime::new().unwrap(),
            tokio: tokio.unwrap(),
        }
    }

    /// Starts the agent on this disk.
    pub(crate) fn boot(&self, fs: &SimFs) -> anyhow::Result<Device<'_>> {
        let (keeper, store, trust) = open_state(&fs.disk(), &state_dir(), None)?;
        let machine = self.machine;
        let clock = Clock::new(Arc::new(move || machine), keeper.get().time_floor_ms);
        let serving = Arc::new(Serving::default());
        let mut worker = Worker {
            store,
            trust,
            fetcher: self.plane.fetcher(),
            runtime: self.runtime.clone(),
            loading: Loading::Here,
            serving: Arc::clone(&serving),
            progress: Arc::new(Progress::default()),
            resuming: false,
            keeper: keeper.clone(),
            clock: clock.clone(),
        };
        let unusable = worker.serve_slots(&keeper.get().slots);
        for (model, error) in unusable {
            decide::give_up_current(&keeper, &model, error)?;
        }
        let rig = self;
        Ok(Device {
            rig,
            keeper,
            clock,
            worker,
            serving,
        })
    }
}

/// The agent.
pub(crate) struct Device<'a> {
    rig: &'a Rig,
    pub(crate) keeper: Keeper,
    pub(crate) clock: Clock,
    pub(crate) worker: Worker,
    serving: Arc<Serving>,
}

impl Device<'_> {
    pub(crate) fn record(&self) -> Arc<Record> {
        self.keeper.get()
    }

    pub(crate) fn serves(&self) -> Option<ModelVersion> {
        self.serving.get(&model()).map(|model| model.version)
    }

    /// A signed intent arrives.
    pub(crate) fn desired(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let signed = self.worker.trust.desired(bytes, &device())?;
        if decide::is_news(&self.record(), &self.worker.trust, &signed) {
            decide::accept(&self.keeper, &self.clock, signed)?;
        }
        Ok(())
    }

    /// Runs the update machine from where it is until there is nothing to do. It is an error, by its code, if the update waits
    /// for something that may pass.
    pub(crate) fn run(&mut self) -> anyhow::Result<()> {
        let mut event = Event::Started;
        loop {
            let effect = decide::advance(&self.keeper, event)?;
            event = match effect {
                Effect::Rest => {
                    let Some(desired) = self.record().desired.clone() else {
                        return Ok(());
                    };
                    let (dropped, job) = decide::rest(&self.keeper, &self.worker.store, &desired)?;
                    for model in dropped {
                        self.serving.remove(&model);
                    }
                    match job {
                        Some(job) => Event::Wanted(job),
                        None => return Ok(()),
                    }
                }
                Effect::Commit(job) => decide::commit(&self.keeper, &job, Cost::default()),
                Effect::Record {
                    job,
                    error,
                    rolled_back,
                } => decide::write_failure(&self.keeper, &job, error, rolled_back, Cost::default()),
                Effect::Sync(job) => self.work(Work::Fetch(Fetch::Metadata), &job),
                Effect::Download(job) => self.work(Work::Fetch(Fetch::Bundle), &job),
                Effect::Verify(job) => self.work(Work::Verify, &job),
                Effect::Install(job) => self.work(Work::Install, &job),
                Effect::Watch(job) => self.work(Work::Watch, &job),
                Effect::RollBack(job) => self.work(Work::RollBack, &job),
            };
            if let Event::Postponed(error) = &event {
                let code = error.code.clone();
                decide::advance(&self.keeper, event)?;
                anyhow::bail!(code);
            }
        }
    }

    /// Brings the metadata up to date from this control plane.
    pub(crate) fn refresh(&mut self, plane: &Plane) -> anyhow::Result<()> {
        self.worker.fetcher = plane.fetcher();
        let refreshed = self.worker.refresh(self.clock.now().ms);
        Ok(self.rig.tokio.block_on(refreshed)?)
    }

    /// Obeys what the metadata has come to block.
    pub(crate) fn leave_blocked(&mut self) -> anyhow::Result<()> {
        let (left, written) = decide::leave_blocked(&self.keeper, &self.worker.trust);
        for left in &left {
            self.worker.serve_instead(left);
        }
        Ok(written?)
    }

    /// Fetches all of what a job needs, and nothing more.
    pub(crate) fn fetch(&mut self, job: &Job) {
        for fetch in [Fetch::Metadata, Fetch::Bundle] {
            assert_eq!(self.work(Work::Fetch(fetch), job), Event::Done);
        }
    }

    fn work(&mut self, work: Work, job: &Job) -> Event {
        let record = self.record();
        let cancel = CancellationToken::new();
        let worked = self.worker.work(work, job, &record, &cancel);
        self.rig.tokio.block_on(worked)
    }
}

/// What a cut may leave, for one moment. A seed apart from the others for each moment.
pub(crate) fn lefts(moment: usize) -> Vec<Left> {
    let mut lefts = vec![
        Left::Nothing,
        Left::Everything,
        Left::Names,
        Left::Contents,
        Left::AllButATornWrite,
    ];
    lefts.extend((0..SEEDS).map(|seed| Left::Some(moment as u64 * SEEDS + seed)));
    lefts
}

const SEEDS: u64 = 12;

/// Calls `check` with every disk that a cut at any moment of the history may leave, each different one once.
pub(crate) fn for_every_cut(name: &str, fs: &SimFs, mut check: impl FnMut(usize, &SimFs, &str)) -> usize {
    let history = fs.history();
    let (mut cuts, mut tried) = (0, BTreeSet::new());
    for (moment, state) in history.iter().enumerate() {
        for left in lefts(moment) {
            cuts += 1;
            let after = state.after_cut(left);
            // The same disk at another moment may not be older than what was decided until then.
            if tried.insert((moment, after.state().fingerprint())) {
                let next = fs.calls().get(moment).copied();
                check(
                    moment,
                    &after,
                    &format!("{name}: cut before call {moment} ({next:?}), left {left:?}"),
                );
            }
        }
    }
    let (calls, disks) = (history.len() - 1, tried.len());
    println!("{name}: {calls} calls that change the disk, {cuts} cuts, {disks} different disks");
    cuts
}

/// The bytes in all files below the state folder.
pub(crate) fn stored_bytes(fs: &SimFs) -> usize {
    fs.state().fingerprint().iter().map(|(_, bytes)| bytes.len()).sum()
}

/// The names of the files in a folder of the state folder.
pub(crate) fn names(fs: &SimFs, folder: &str) -> BTreeSet<String> {
    let names = fs.disk().list(&state_dir().join(Path::new(folder))).unwrap();
    names.into_iter().collect()
}
