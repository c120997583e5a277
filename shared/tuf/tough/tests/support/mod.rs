//! A repository that tough's editor writes, one that we write, and tough's client over files.

#![allow(dead_code, reason = "the figures use only a part")]

use std::{
    collections::{BTreeMap, HashMap},
    num::{NonZeroU32, NonZeroU64},
    path::{Path, PathBuf},
    time::SystemTime,
};

use ed25519_dalek::pkcs8::EncodePrivateKey;
use jiff::Timestamp;
use skerry_tuf::{
    DelegatedPaths, Delegations, Expiry, KeySet, MetaFile, Metadata, NewRoot, PathPattern, RoleName, SearchOrder,
    SigningKey, TargetFile, TargetName, UnixTime, new_root, new_snapshot, new_targets, new_timestamp, sign_metadata,
};
use tempfile::TempDir;
use tough::{
    Repository, RepositoryLoader,
    editor::{RepositoryEditor, signed::SignedRole},
    key_source::{KeySource, LocalKeySource},
    schema::{KeyHolder, PathPattern as TheirPattern, PathSet, RoleKeys, RoleType, Root, Target},
};
use url::Url;

fn seconds() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

/// The machine's time: tough asks no other.
pub(crate) fn now() -> Expiry {
    Expiry::Enforce(UnixTime::from_seconds(seconds()))
}

fn expires() -> UnixTime {
    UnixTime::from_seconds(seconds()).plus_days(30)
}

/// The keys of a root: all of `root` must sign, `online` signs for everything else.
#[derive(Clone, Copy)]
pub(crate) struct Seeds<'a> {
    pub(crate) root: &'a [u8],
    pub(crate) online: u8,
}

/// In 30 days and in whole seconds, as the specification writes times; tough also writes fractions, which we refuse.
fn their_expiry() -> Timestamp {
    Timestamp::from_second(expires().as_seconds()).unwrap()
}

/// A repository of tough's editor, with ed25519 keys of fixed seeds.
pub(crate) struct TheirRepository {
    place: TempDir,
}

impl TheirRepository {
    pub(crate) async fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        for folder in ["keys", "metadata", "stray"] {
            std::fs::create_dir(place.path().join(folder)).unwrap();
        }
        let repository = Self { place };
        for (name, content) in [("model", "version 1"), ("camera-front", "version 1")] {
            let path = repository.place.path().join("targets").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        repository
    }

    pub(crate) fn metadata(&self) -> PathBuf {
        self.place.path().join("metadata")
    }

    /// A file that was written and not put into the repository.
    pub(crate) fn stray(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.place.path().join("stray").join(name)).unwrap()
    }

    fn keys(&self, seeds: &[u8]) -> Vec<Box<dyn KeySource>> {
        let source = |seed: &u8| -> Box<dyn KeySource> {
            let path = self.place.path().join(format!("keys/{seed}"));
            let key = ed25519_dalek::SigningKey::from_bytes(&[*seed; 32]);
            std::fs::write(&path, key.to_pkcs8_der().unwrap().as_bytes()).unwrap();
            Box::new(LocalKeySource { path })
        };
        seeds.iter().map(source).collect()
    }

    pub(crate) async fn root(&self, version: u64, seeds: Seeds<'_>, signers: &[u8]) {
        let mut keys = HashMap::new();
        let mut roles = HashMap::new();
        for role in [
            RoleType::Root,
            RoleType::Snapshot,
            RoleType::Targets,
            RoleType::Timestamp,
        ] {
            let of_role: &[u8] = if role == RoleType::Root {
                seeds.root
            } else {
                &[seeds.online]
            };
            let mut keyids = Vec::new();
            for source in self.keys(of_role) {
                let key = source.as_sign().await.unwrap().tuf_key();
                let id = key.key_id().unwrap();
                keys.insert(id.clone(), key);
                keyids.push(id);
            }
            let threshold = NonZeroU64::new(keyids.len() as u64).unwrap();
            let _extra = HashMap::new();
            roles.insert(
                role,
                RoleKeys {
                    keyids,
                    threshold,
                    _extra,
                },
            );
        }
        let root = Root {
            spec_version: "1.0.0".to_owned(),
            consistent_snapshot: true,
            version: NonZeroU64::new(version).unwrap(),
            expires: their_expiry(),
            keys,
            roles,
            _extra: HashMap::new(),
        };
        let random = aws_lc_rs::rand::SystemRandom::new();
        // By all signers: each holder is a root in which they are root keys.
        let mut signed = None;
        for signer in signers {
            let mut holder = root.clone();
            let source = self.keys(&[*signer]);
            let key = source[0].as_sign().await.unwrap().tuf_key();
            let id = key.key_id().unwrap();
            holder.roles.get_mut(&RoleType::Root).unwrap().keyids = vec![id.clone()];
            holder.keys.insert(id, key);
            let role = SignedRole::new(root.clone(), &KeyHolder::Root(holder), &source, &random)
                .await
                .unwrap();
            signed = Some(match signed {
                None => role,
                Some(earlier) => {
                    let earlier: SignedRole<Root> = earlier;
                    role.add_old_signatures(earlier.signed().signatures.clone()).unwrap()
                }
            });
        }
        let path = self.metadata().join(format!("{version}.root.json"));
        std::fs::write(path, signed.unwrap().buffer()).unwrap();
    }

    pub(crate) async fn release(&self, version: u64, seeds: Seeds<'_>) {
        self.write(version, version, seeds, "metadata").await;
    }

    /// A newer release under the keys of root 1, beside the repository.
    pub(crate) async fn release_signed_by_old_keys(&self, version: u64, seeds: Seeds<'_>) {
        self.write(1, version, seeds, "stray").await;
    }

    async fn write(&self, root: u64, version: u64, seeds: Seeds<'_>, into: &str) {
        let root = self.metadata().join(format!("{root}.root.json"));
        let (version, expires) = (NonZeroU64::new(version).unwrap(), their_expiry());
        let target = |name: &str| Target::from_path(self.place.path().join("targets").join(name));
        let mut editor = RepositoryEditor::new(&root).await.unwrap();
        editor
            .targets_version(version)
            .unwrap()
            .targets_expires(expires)
            .unwrap();
        editor.snapshot_version(version).snapshot_expires(expires);
        editor.timestamp_version(version).timestamp_expires(expires);
        editor.add_target("model", target("model").await.unwrap()).unwrap();
        let paths = PathSet::Paths(vec![TheirPattern::new("camera-*").unwrap()]);
        let one = NonZeroU64::new(1).unwrap();
        editor
            .delegate_role("camera", &self.keys(&[6]), paths, true, one, expires, version)
            .await
            .unwrap();
        let online = self.keys(&[seeds.online]);
        editor.sign_targets_editor(&online).await.unwrap();
        editor.change_delegated_targets("camera").unwrap();
        editor
            .targets_version(version)
            .unwrap()
            .targets_expires(expires)
            .unwrap();
        editor
            .add_target("camera-front", target("camera-front").await.unwrap())
            .unwrap();
        editor.sign_targets_editor(&self.keys(&[6])).await.unwrap();
        editor.change_delegated_targets("targets").unwrap();
        editor
            .targets_version(version)
            .unwrap()
            .targets_expires(expires)
            .unwrap();
        let signed = editor.sign(&online).await.unwrap();
        signed.write(self.place.path().join(into)).await.unwrap();
    }
}

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32])
}

fn key_set(seed: u8) -> KeySet {
    KeySet::new([key(seed).public_key()], NonZeroU32::MIN)
}

fn sign<T: Metadata>(metadata: &T, seed: u8) -> Vec<u8> {
    sign_metadata(metadata, &[key(seed)]).unwrap()
}

/// A root of ours, signed by the keys `signer` and 1, and a release under it.
pub(crate) fn our_repository(place: &Path, version: u64, timestamp: u8, release: u64, signer: u8) {
    std::fs::create_dir_all(place.join("metadata")).unwrap();
    let root = new_root(NewRoot {
        version,
        expires: expires(),
        root: key_set(signer),
        timestamp: key_set(timestamp),
        snapshot: key_set(3),
        targets: key_set(4),
        assignment: Some(key_set(5)),
        time: None,
    });
    std::fs::write(place.join(format!("metadata/{version}.root.json")), sign(&root, signer)).unwrap();
    our_release(place, release, timestamp);
}

/// Everything but a root. The targets have the version as their content; `camera-*` is delegated.
pub(crate) fn our_release(place: &Path, version: u64, timestamp: u8) {
    let content = format!("version {version}");
    let mut camera = new_targets(version, expires());
    put_target(place, &mut camera.targets, "camera-front", content.as_bytes());
    let mut targets = new_targets(version, expires());
    put_target(place, &mut targets.targets, "model", content.as_bytes());
    let mut delegations = Delegations::default();
    let paths = DelegatedPaths::Patterns(vec![PathPattern::new("camera-*")]);
    delegations.delegate(
        RoleName::new("camera").unwrap(),
        key_set(6),
        paths,
        SearchOrder::Terminate,
    );
    targets.delegations = Some(delegations);
    write_release(place, version, timestamp, (&sign(&targets, 4), Some(&sign(&camera, 6))));
}

/// A release of ours without delegations, and with `count` targets, whose content is not there.
pub(crate) fn our_large_release(place: &Path, version: u64, count: usize) {
    let mut targets = new_targets(version, expires());
    for number in 0..count {
        let name = TargetName::new(format!("bundles/model-{number:05}")).unwrap();
        targets.add_target(name, TargetFile::describe(format!("{version} {number}").as_bytes()));
    }
    write_release(place, version, 2, (&sign(&targets, 4), None));
}

fn write_release(place: &Path, version: u64, timestamp: u8, (targets, camera): (&[u8], Option<&[u8]>)) {
    let write = |name: String, bytes: &[u8]| std::fs::write(place.join("metadata").join(name), bytes).unwrap();
    let mut snapshot = new_snapshot(version, expires(), MetaFile::describe(version, targets));
    write(format!("{version}.targets.json"), targets);
    if let Some(camera) = camera {
        let listed = MetaFile::describe(version, camera);
        snapshot.meta.insert("camera.json".to_owned(), listed);
        write(format!("{version}.camera.json"), camera);
    }
    let snapshot = sign(&snapshot, 3);
    write(format!("{version}.snapshot.json"), &snapshot);
    let listed = MetaFile::describe(version, &snapshot);
    write(
        "timestamp.json".to_owned(),
        &sign(&new_timestamp(version, expires(), listed), timestamp),
    );
}

fn put_target(place: &Path, targets: &mut BTreeMap<TargetName, TargetFile>, name: &str, content: &[u8]) {
    let file = TargetFile::describe(content);
    let path = place.join("targets").join(format!("{}.{name}", file.hashes["sha256"]));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
    targets.insert(TargetName::new(name).unwrap(), file);
}

/// Replaces the content of every target.
pub(crate) fn overwrite_targets(place: &Path, content: &[u8]) {
    for entry in std::fs::read_dir(place.join("targets")).unwrap() {
        std::fs::write(entry.unwrap().path(), content).unwrap();
    }
}

/// tough's client over a folder.
pub(crate) async fn load(root: &[u8], place: &Path, datastore: &Path) -> Result<Repository, tough::error::Error> {
    let url = |folder: &str| Url::from_directory_path(place.join(folder)).unwrap();
    let root = root.to_vec();
    RepositoryLoader::new(&root, url("metadata"), url("targets"))
        .datastore(datastore)
        .load()
        .await
}
