//! Whoever sits in the control plane's place: he answers every want of a device from a repository of his own making, and signs
//! with the keys that a test has given him.
//!
//! The scene before each attack: version 1 serves on `dev-1`, version 2 is released and signed, `dev-2` is enrolled and has
//! never been started. Then the control plane is gone and the impostor is there. [`Scene::update_succeeds`] is every attack's
//! control case: with the true repository the same steps install version 2.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use rumqttc::{Event, Incoming, QoS};
use serde_json::{Value, json};
use skerry_control_plane::signing::{
    key_file,
    online::{OnlineKeys, SigningFolder},
};
use skerry_shared::{
    desired::{BundleAssignment, Desired, Outcome, OutcomeResult, Reported, ReportedError},
    digest::Digest,
    id::{Generation, ModelVersion},
    schema::{Envelope, SchemaVersion},
    transfer::{Object, PART_BYTES, Part, PartContent, Want},
};
use skerry_system_tests::{
    Device, Fleet,
    faults::files_in,
    fixtures::{MODEL, test_windows},
    process::PATIENCE,
};
use skerry_tuf::{MetaFile, SigningKey, UnixTime, new_snapshot, new_timestamp, sign_metadata, to_canonical_json};

use crate::taken_broker::TakenBroker;

/// What the impostor hands out.
#[derive(Clone, Default)]
pub(crate) struct Repository {
    /// Metadata by file name.
    pub(crate) metadata: HashMap<String, Vec<u8>>,
    /// Chunk indexes by digest.
    pub(crate) indexes: HashMap<Digest, Vec<u8>>,
    /// The wire forms of a bundle's chunks, in order, by the digest of its index.
    pub(crate) chunks: HashMap<Digest, Vec<Vec<u8>>>,
}

impl Repository {
    fn metadata_version(&self, role: &str) -> u64 {
        let timestamp = version_in(&self.metadata["timestamp.json"], "snapshot.json");
        match role {
            "snapshot" => timestamp,
            _ => version_in(&self.metadata[&format!("{timestamp}.snapshot.json")], "targets.json"),
        }
    }

    /// The name of the newest file of a role.
    pub(crate) fn newest(&self, role: &str) -> String {
        match role {
            "timestamp" => "timestamp.json".to_owned(),
            _ => format!("{}.{role}.json", self.metadata_version(role)),
        }
    }

    /// The newest file of a role.
    pub(crate) fn newest_file(&self, role: &str) -> &[u8] {
        &self.metadata[&self.newest(role)]
    }

    fn answer(&self, want: &Want) -> Vec<Vec<u8>> {
        let slices = |file: Option<&Vec<u8>>| file.map(|file| file.chunks(PART_BYTES).map(<[u8]>::to_vec).collect());
        let pieces: Option<Vec<Vec<u8>>> = match &want.object {
            Object::Metadata(name) => slices(self.metadata.get(name)),
            Object::Blob(digest) => slices(self.indexes.get(digest)),
            Object::Chunks(index) => self.chunks.get(index).cloned(),
        };
        let message = |part: u32, parts: u32, content: PartContent<'_>| {
            Part {
                request: want.request,
                part,
                parts,
                content,
            }
            .to_bytes()
        };
        match pieces {
            None => vec![message(0, 0, PartContent::NotFound)],
            Some(pieces) => {
                let parts = pieces.len() as u32;
                let piece = |part: &u32| Some(message(*part, parts, PartContent::Data(pieces.get(*part as usize)?)));
                want.parts.iter().filter_map(piece).collect()
            }
        }
    }
}

fn version_in(file: &[u8], name: &str) -> u64 {
    let file: Value = serde_json::from_slice(file).unwrap();
    file["signed"]["meta"][name]["version"].as_u64().unwrap()
}

/// The keys of every role. A test uses those that its attacker has.
pub(crate) struct Keys {
    pub(crate) root: SigningKey,
    pub(crate) targets: SigningKey,
    pub(crate) snapshot: SigningKey,
    pub(crate) timestamp: SigningKey,
    pub(crate) online: OnlineKeys,
    /// Nobody trusts it.
    pub(crate) stranger: SigningKey,
}

/// A metadata file with other content, signed by these keys.
pub(crate) fn edited(file: &[u8], keys: &[&SigningKey], edit: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut file: Value = serde_json::from_slice(file).unwrap();
    edit(&mut file["signed"]);
    let canonical = to_canonical_json(&file["signed"]).unwrap();
    let signature =
        |key: &&SigningKey| json!({"keyid": key.id().as_str(), "sig": hex::encode(key.sign_bytes(&canonical))});
    file["signatures"] = keys.iter().map(signature).collect();
    serde_json::to_vec(&file).unwrap()
}

/// A device, the impostor, and what he has.
pub(crate) struct Scene {
    /// Its folder goes with it.
    _fleet: Fleet,
    pub(crate) device: Device,
    /// Enrolled and never started.
    pub(crate) fresh: Device,
    pub(crate) broker: TakenBroker,
    pub(crate) keys: Keys,
    /// The true repository with version 1 only.
    pub(crate) before: Repository,
    /// The true repository with version 2.
    pub(crate) after: Repository,
    serves: Arc<Mutex<Repository>>,
    reports: mpsc::Receiver<Reported>,
    generation: u64,
    version: Cell<u64>,
}

impl Scene {
    pub(crate) fn set() -> Scene {
        let broker = TakenBroker::start();
        let mut fleet = broker.fleet();
        let device = fleet.devices(&["dev-1"]).unwrap().remove(0);
        fleet.release(1).unwrap();
        fleet.deploy(1).unwrap();
        // After the rollout, which would wait for it.
        let fresh = fleet.enroll("dev-2").unwrap();
        let before = repository(&fleet, &[1]);
        fleet.release(2).unwrap();
        let after = repository(&fleet, &[1, 2]);
        let generation = device.status().unwrap()["generation"].as_u64().unwrap();
        fleet.kill_server().unwrap();

        let read = |name: &str| {
            let path = fleet.path("keys").join(name);
            key_file::read(&path, || panic!("the test's keys have no passphrase")).unwrap()
        };
        let keys = Keys {
            root: read("root.key"),
            targets: read("targets.key"),
            snapshot: read("online/snapshot.key"),
            timestamp: read("online/timestamp.key"),
            online: OnlineKeys::read(SigningFolder::plain(fleet.path("keys/online")), None).unwrap(),
            stranger: SigningKey::from_seed(&[66; 32]),
        };
        let serves = Arc::new(Mutex::new(Repository::default()));
        let reports = answer_wants(&broker, Arc::clone(&serves));
        Scene {
            _fleet: fleet,
            device,
            fresh,
            broker,
            keys,
            before,
            after,
            serves,
            reports,
            generation,
            version: Cell::new(100),
        }
    }

    /// A metadata version above all that have been there.
    pub(crate) fn next_version(&self) -> u64 {
        self.version.replace(self.version.get() + 1)
    }

    /// What devices get from now on.
    pub(crate) fn serve(&self, repository: Repository) {
        *self.serves.lock().unwrap() = repository;
    }

    /// The desired state that asks a device for one version of the model, one generation on.
    pub(crate) fn desired(&mut self, device: &str, version: u64) -> Desired {
        self.generation += 1;
        Desired {
            schema: SchemaVersion::CURRENT,
            device: device.parse().unwrap(),
            generation: Generation(self.generation),
            issued_at_ms: now().as_millis() as u64,
            bundles: vec![BundleAssignment {
                model: MODEL.parse().unwrap(),
                version: ModelVersion(version),
                index: self.index_of(version),
                target: format!("{MODEL}/{version}/index"),
                rollout: None,
                probation_ms: 1,
                allow_downgrade: false,
            }],
        }
    }

    /// The digest of a released version's chunk index.
    pub(crate) fn index_of(&self, version: u64) -> Digest {
        target_digest(self.after.newest_file("targets"), &format!("{MODEL}/{version}/index"))
    }

    /// Assigns by the stolen assignment key, and waits for the end of that update.
    pub(crate) fn assign(&self, desired: &Desired) -> Outcome {
        match self.end_or_wait(desired) {
            Ok(outcome) => outcome,
            Err(error) => panic!("the update waits: {error:?}"),
        }
    }

    /// Assigns, and says for what word the update waits: nothing has failed, and nothing is installed.
    pub(crate) fn waits_for(&self, desired: &Desired) -> String {
        match self.end_or_wait(desired) {
            Ok(outcome) => panic!("the update has ended: {outcome:?}"),
            Err(error) => error.code,
        }
    }

    /// Assigns, and waits for the end of that update, or for why it waits.
    fn end_or_wait(&self, desired: &Desired) -> Result<Outcome, ReportedError> {
        let topic = format!("skerry/v1/d/{}/desired", desired.device.as_str());
        self.broker
            .publish(&topic, true, self.keys.online.sign_desired(desired));
        self.wait_for_report("the update to end", |reported| {
            if reported.device != desired.device {
                return None;
            }
            let mut outcomes = reported.outcomes.iter();
            let ended = outcomes.find(|outcome| outcome.generation == desired.generation);
            let waits = reported.update.waits.as_ref();
            let waits = waits.filter(|_| reported.generation == desired.generation);
            ended.cloned().map(Ok).or_else(|| waits.cloned().map(Err))
        })
    }

    /// Waits for a report that says something.
    pub(crate) fn wait_for_report<T>(&self, what: &str, mut find: impl FnMut(&Reported) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left) {
                Ok(reported) => {
                    if let Some(found) = find(&reported) {
                        return found;
                    }
                }
                Err(_) => panic!("waited in vain for {what}; the device's log:\n{}", self.device.log()),
            }
        }
    }

    /// The attack: `dev-1` is told to run version 2 and gets it from `repository`. It refuses with `code`; the targets that it
    /// trusts are the ones from before, nothing has a lower version, and version 1 goes on answering.
    pub(crate) fn refuses(&mut self, repository: Repository, code: &str) {
        let before = self.trusted_files();
        let outcome = self.attempt(repository);
        assert_eq!(error_code(&outcome), Some(code), "{outcome:?}");
        assert!(matches!(outcome.result, OutcomeResult::Failed(_)), "{outcome:?}");
        self.trusts_nothing_newer_than(&before);
    }

    /// The same for an attack that cannot be told from a control plane that lags: the device waits, and says with `code` why.
    pub(crate) fn holds_off(&mut self, repository: Repository, code: &str) {
        let before = self.trusted_files();
        self.serve(repository);
        let desired = self.desired("dev-1", 2);
        assert_eq!(self.waits_for(&desired), code);
        self.trusts_nothing_newer_than(&before);
    }

    fn trusts_nothing_newer_than(&self, before: &BTreeMap<String, Vec<u8>>) {
        let after = self.trusted_files();
        assert_eq!(after["targets.json"], before["targets.json"]);
        for (name, file) in before {
            assert!(version_of(&after[name]) >= version_of(file), "{name}");
        }
        self.still_serves(1);
    }

    /// Tells `dev-1` to run version 2, which it gets from `repository`.
    pub(crate) fn attempt(&mut self, repository: Repository) -> Outcome {
        self.serve(repository);
        let desired = self.desired("dev-1", 2);
        self.assign(&desired)
    }

    /// The control case: with these bytes the same steps install version 2.
    pub(crate) fn accepts(&mut self, repository: Repository) {
        let outcome = self.attempt(repository);
        assert_eq!(outcome.result, OutcomeResult::Succeeded, "{outcome:?}");
        self.still_serves(2);
    }

    /// The control case of a rollback: a device that has seen nothing takes version 1 from `repository`.
    pub(crate) fn fresh_device_accepts(&mut self, repository: Repository) {
        self.serve(repository);
        self.fresh.start().unwrap();
        let desired = self.desired("dev-2", 1);
        let outcome = self.assign(&desired);
        assert_eq!(outcome.result, OutcomeResult::Succeeded, "{outcome:?}");
        assert_eq!(self.fresh.serves().unwrap(), Some(1));
    }

    /// A real request is answered by this version.
    pub(crate) fn still_serves(&self, version: u64) {
        assert_eq!(self.device.serves().unwrap(), Some(version));
        let (answered_by, _) = self.device.infer(&test_windows().unwrap()[0]).unwrap();
        assert_eq!(answered_by, version);
    }

    /// The most memory that the agent of `dev-1` has had, in kB.
    pub(crate) fn peak_kb(&self) -> u64 {
        self.device.process().unwrap().peak_kb().unwrap()
    }

    /// The metadata that `dev-1` trusts.
    pub(crate) fn trusted_files(&self) -> BTreeMap<String, Vec<u8>> {
        let folder = self.device.state_dir.join("trust");
        let file = |path: &Path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        };
        files_in(&folder).unwrap().iter().map(|path| file(path)).collect()
    }

    /// A repository around another targets file, with a snapshot and a timestamp that list it: what a thief of the online keys
    /// can make.
    pub(crate) fn around_targets(&self, repository: &Repository, targets: Vec<u8>) -> Repository {
        let version = version_of(&targets);
        let mut new = repository.clone();
        let snapshot = new_snapshot(self.next_version(), in_a_day(), MetaFile::describe(version, &targets));
        let snapshot = sign_metadata(&snapshot, [&self.keys.snapshot]).unwrap();
        new.metadata.insert(format!("{version}.targets.json"), targets);
        self.around_snapshot(&new, snapshot)
    }

    /// A repository around another snapshot, with a timestamp that lists it.
    pub(crate) fn around_snapshot(&self, repository: &Repository, snapshot: Vec<u8>) -> Repository {
        let version = version_of(&snapshot);
        let mut new = repository.clone();
        let timestamp = new_timestamp(self.next_version(), in_a_day(), MetaFile::describe(version, &snapshot));
        let timestamp = sign_metadata(&timestamp, [&self.keys.timestamp]).unwrap();
        new.metadata.insert(format!("{version}.snapshot.json"), snapshot);
        new.metadata.insert("timestamp.json".to_owned(), timestamp);
        new
    }

    /// A repository in which version 2 is another chunk index, signed by the real targets key: a publisher's mistake, or his
    /// stolen key. Returns the digest of that index too.
    pub(crate) fn with_index(&self, index: Vec<u8>, chunks: Vec<Vec<u8>>) -> (Repository, Digest) {
        let digest = Digest::of(&index);
        let targets = edited(self.after.newest_file("targets"), &[&self.keys.targets], |signed| {
            signed["version"] = json!(self.next_version());
            let target = &mut signed["targets"][format!("{MODEL}/2/index")];
            target["length"] = json!(index.len());
            target["hashes"] = json!({"sha256": digest.to_hex()});
        });
        let mut repository = self.around_targets(&self.after, targets);
        repository.indexes.insert(digest, index);
        repository.chunks.insert(digest, chunks);
        (repository, digest)
    }
}

/// The stable word of how an update ended badly.
pub(crate) fn error_code(outcome: &Outcome) -> Option<&str> {
    match &outcome.result {
        OutcomeResult::Succeeded => None,
        OutcomeResult::RolledBack(error) | OutcomeResult::Failed(error) => Some(&error.code),
    }
}

pub(crate) fn version_of(file: &[u8]) -> u64 {
    let file: Value = serde_json::from_slice(file).unwrap();
    file["signed"]["version"].as_u64().unwrap()
}

pub(crate) fn now() -> UnixTime {
    let since_1970 = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    UnixTime::from_seconds(since_1970.as_secs() as i64)
}

pub(crate) fn in_a_day() -> UnixTime {
    now().plus_days(1)
}

fn target_digest(targets: &[u8], name: &str) -> Digest {
    let targets: Value = serde_json::from_slice(targets).unwrap();
    let digest = targets["signed"]["targets"][name]["hashes"]["sha256"].as_str().unwrap();
    Digest::from_hex(digest).unwrap()
}

/// The repository of a control plane that runs, by its public routes and the folders of the bundles.
fn repository(fleet: &Fleet, versions: &[u64]) -> Repository {
    let mut repository = Repository::default();
    let file = |name: &str| fleet.client().get_bytes(&format!("/tuf/{name}")).unwrap();
    for name in ["1.root.json", "timestamp.json"] {
        repository.metadata.insert(name.to_owned(), file(name));
    }
    for role in ["snapshot", "targets"] {
        let name = repository.newest(role);
        repository.metadata.insert(name.clone(), file(&name));
    }
    for version in versions {
        let folder = fleet.path(&format!("bundle-v{version}"));
        let index = fs::read(folder.join("index.skci")).unwrap();
        let parsed = skerry_shared::chunk::ChunkIndex::from_bytes(&index).unwrap();
        let chunk =
            |chunk: &skerry_shared::chunk::Chunk| fs::read(folder.join("chunks").join(chunk.wire.to_hex())).unwrap();
        let digest = Digest::of(&index);
        repository
            .chunks
            .insert(digest, parsed.chunks().iter().map(chunk).collect());
        repository.indexes.insert(digest, index);
    }
    repository
}

/// Answers every want from what `serves` holds at that moment, and hands on what devices report.
fn answer_wants(broker: &TakenBroker, serves: Arc<Mutex<Repository>>) -> mpsc::Receiver<Reported> {
    let (client, mut events) = broker.connect("impostor");
    let (sender, reports) = mpsc::channel();
    let ready = Arc::new(tokio::sync::Notify::new());
    let is_ready = Arc::clone(&ready);
    broker.runtime.spawn(async move {
        let topics = ["skerry/v1/d/+/want", "skerry/v1/d/+/reported"];
        for topic in topics {
            client.subscribe(topic, QoS::AtLeastOnce).await.unwrap();
        }
        let mut subscribed = 0;
        while let Ok(event) = events.poll().await {
            match event {
                Event::Incoming(Incoming::SubAck(_)) => {
                    subscribed += 1;
                    if subscribed == topics.len() {
                        is_ready.notify_one();
                    }
                }
                Event::Incoming(Incoming::Publish(publish)) if publish.topic.ends_with("/reported") => {
                    if let Ok(reported) = Reported::from_json(&publish.payload) {
                        let _ = sender.send(reported);
                    }
                }
                Event::Incoming(Incoming::Publish(publish)) => {
                    let want = Want::from_json(&publish.payload).unwrap();
                    let chunk = publish.topic.replace("/want", "/chunk");
                    let answers = serves.lock().unwrap().answer(&want);
                    for answer in answers {
                        client.try_publish(&chunk, QoS::AtMostOnce, false, answer).unwrap();
                    }
                }
                _ => {}
            }
        }
    });
    broker.runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(30), ready.notified())
            .await
            .unwrap();
    });
    reports
}
