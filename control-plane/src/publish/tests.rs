//! Roots that follow each other, and targets without a new bundle, against real key folders and a real database.

use std::{fs, future::Future as _, num::NonZeroU32, path::PathBuf, sync::Arc};

use bytes::Bytes;
use skerry_shared::digest::Digest;
use skerry_tuf::{
    Expiry, Limits, PublicKey, Role, Root, Signed, SigningKey, Targets, TrustedSet, UnixTime, sign_metadata,
};

use super::*;
use crate::{
    app::CORE_MIGRATIONS,
    cli::keys,
    db::Durability,
    signing::{
        key_file,
        online::SigningFolder,
        role::{self, KeyRole},
    },
};

const NOW_MS: u64 = 1_790_000_000_000;

fn by() -> By {
    By::new("anna", NOW_MS)
}

/// A repository, and the keys of its people.
struct Repository {
    folder: tempfile::TempDir,
    db: Db,
    keys: Arc<OnlineKeys>,
}

impl Repository {
    async fn start() -> Repository {
        let folder = tempfile::tempdir().unwrap();
        keys::init(&folder.path().join("keys")).unwrap();
        let db = Db::open(&folder.path().join("core.db"), Durability::Full, CORE_MIGRATIONS).unwrap();
        let keys = Arc::new(OnlineKeys::read(signing(&folder), None).unwrap());
        ensure(&db, &keys, by()).await.unwrap();
        Repository { folder, db, keys }
    }

    fn offline(&self, role: &str) -> SigningKey {
        let path = self.folder.path().join(format!("keys/{role}.key"));
        key_file::read(&path, || panic!("not encrypted")).unwrap()
    }

    /// A new online key, in the server's folder.
    fn online_key(&self, name: &str, seed: u8) -> PublicKey {
        let key = SigningKey::from_seed(&[seed; 32]);
        let path = self.folder.path().join(format!("keys/online/{name}.key"));
        fs::write(path, key_file::encode(&key, None).unwrap().as_bytes()).unwrap();
        key.public_key()
    }

    /// The next root, changed and signed by the root key.
    fn next_root(&self, change: impl FnOnce(&mut Root)) -> Bytes {
        let mut root = role::successor(
            self.keys.current().root(),
            UnixTime::from_millis(NOW_MS as i64).plus_days(9),
        );
        change(&mut root);
        sign_metadata(&root, [&self.offline("root")]).unwrap().into()
    }

    async fn next_targets(&self, change: impl FnOnce(&mut Targets), keys: &[SigningKey]) -> Bytes {
        let bytes = current_targets(&self.db).await.unwrap();
        let current = Signed::<Targets>::parse(&bytes, &Limits::default()).unwrap();
        let mut targets = current.unverified().clone();
        targets.version += 1;
        change(&mut targets);
        sign_metadata(&targets, keys).unwrap().into()
    }

    async fn publish_root(&self, root: Bytes, targets: Option<Bytes>) -> Result<u64, PublishError> {
        publish_root(&self.db, &self.keys, root, targets, by()).await
    }

    async fn file(&self, name: &str) -> Option<Vec<u8>> {
        metadata_file(&self.db, name).await.unwrap()
    }

    /// What a device makes of the repository that begins with the first root.
    async fn device(&self) -> TrustedSet {
        let mut set = TrustedSet::new(&self.file("1.root.json").await.unwrap()).unwrap();
        self.refresh(&mut set).await;
        set
    }

    async fn refresh(&self, set: &mut TrustedSet) {
        let today = Expiry::Enforce(UnixTime::from_millis(NOW_MS as i64));
        while let Some(root) = self.file(&set.next_root_file().file_name).await {
            set.update_root(&root).unwrap();
        }
        set.update_timestamp(&self.file("timestamp.json").await.unwrap(), today)
            .unwrap();
        while let Some(wanted) = set.wanted_snapshot().or_else(|| set.wanted_targets()) {
            let bytes = self.file(&wanted.file_name).await.unwrap();
            match wanted.file_name.ends_with("snapshot.json") {
                true => set.update_snapshot(&bytes, today).unwrap(),
                false => set.update_targets(&bytes, today).unwrap(),
            };
        }
        set.fresh_targets(today).unwrap();
    }
}

fn signing(folder: &tempfile::TempDir) -> SigningFolder {
    SigningFolder::plain(folder.path().join("keys/online"))
}

fn rotate(root: &mut Root, role: KeyRole, key: PublicKey) {
    role::replace(root, role, None, key).unwrap();
}

#[tokio::test]
async fn every_online_key_can_be_rotated_while_the_repository_is_served() {
    let repository = Repository::start().await;
    let mut device = repository.device().await;
    for (seed, role) in [
        KeyRole::Snapshot,
        KeyRole::Timestamp,
        KeyRole::Assignment,
        KeyRole::Time,
    ]
    .into_iter()
    .enumerate()
    {
        let key = repository.online_key(&format!("{role}-new"), 100 + seed as u8);
        let root = repository.next_root(|root| rotate(root, role, key));
        repository.publish_root(root, None).await.unwrap();
    }
    repository.refresh(&mut device).await;
    assert_eq!(device.root().version, 5);
    assert_eq!(device.bytes(Role::Root), Some(repository.keys.current().root_bytes()));
    let signer = repository.keys.current().root().time_keys().unwrap();
    let new = SigningKey::from_seed(&[103; 32]).id();
    assert!(signer.keys.contains_key(&new));
    let envelope = String::from_utf8(repository.keys.sign_time("text/x", b"x").to_json()).unwrap();
    assert!(envelope.contains(new.as_str()), "{envelope}");
}

#[tokio::test]
async fn a_root_whose_online_key_is_not_here_is_refused_and_changes_nothing() {
    let repository = Repository::start().await;
    let before = repository.file("timestamp.json").await;
    let elsewhere = SigningKey::from_seed(&[9; 32]).public_key();
    let root = repository.next_root(|root| rotate(root, KeyRole::Timestamp, elsewhere.clone()));
    let error = repository.publish_root(root.clone(), None).await.unwrap_err();
    assert!(error.to_string().contains(elsewhere.id().as_str()), "{error}");
    assert_eq!(repository.file("2.root.json").await, None);
    assert_eq!(repository.file("timestamp.json").await, before);
    // With the key it is taken, and the same again changes nothing.
    repository.online_key("timestamp-new", 9);
    assert_eq!(repository.publish_root(root.clone(), None).await.unwrap(), 2);
    let after = repository.file("timestamp.json").await;
    assert_ne!(after, before);
    assert_eq!(repository.publish_root(root, None).await.unwrap(), 2);
    assert_eq!(repository.file("timestamp.json").await, after);
}

#[tokio::test]
async fn a_root_by_strangers_or_out_of_order_is_refused() {
    let repository = Repository::start().await;
    let stranger = SigningKey::from_seed(&[9; 32]);
    let mut root = role::successor(repository.keys.current().root(), UnixTime::from_millis(i64::MAX / 2));
    rotate(&mut root, KeyRole::Root, stranger.public_key());
    let own: Bytes = sign_metadata(&root, [&stranger]).unwrap().into();
    let error = repository.publish_root(own, None).await.unwrap_err();
    assert!(
        matches!(&error, PublishError::Root(error) if error.code() == "sig_threshold"),
        "{error}"
    );
    let gap = repository.next_root(|root| root.version += 1);
    let error = repository.publish_root(gap, None).await.unwrap_err();
    assert!(
        matches!(&error, PublishError::Root(error) if error.code() == "root_version_gap"),
        "{error}"
    );
    let expired = repository.next_root(|root| root.expires = UnixTime::from_millis(NOW_MS as i64));
    let error = repository.publish_root(expired, None).await.unwrap_err();
    assert!(
        matches!(&error, PublishError::Root(error) if error.code() == "expired"),
        "{error}"
    );
}

#[tokio::test]
async fn new_targets_keys_come_with_targets_that_they_signed() {
    let repository = Repository::start().await;
    let mut device = repository.device().await;
    let (first, second) = (SigningKey::from_seed(&[8; 32]), SigningKey::from_seed(&[9; 32]));
    let root = repository.next_root(|root| {
        rotate(root, KeyRole::Targets, first.public_key());
        role::add(root, KeyRole::Targets, second.public_key()).unwrap();
        role::set_threshold(root, KeyRole::Targets, NonZeroU32::new(2).unwrap()).unwrap();
    });
    let error = repository.publish_root(root.clone(), None).await.unwrap_err();
    assert!(matches!(error, PublishError::TargetsKeys(_)), "{error}");
    let partly = repository.next_targets(|_| {}, std::slice::from_ref(&first)).await;
    let error = repository.publish_root(root.clone(), Some(partly)).await.unwrap_err();
    assert!(matches!(error, PublishError::Targets(_)), "{error}");
    assert_eq!(repository.file("2.root.json").await, None);
    let whole = repository.next_targets(|_| {}, &[first, second]).await;
    repository.publish_root(root, Some(whole)).await.unwrap();
    repository.refresh(&mut device).await;
    assert_eq!((device.root().version, device.targets().unwrap().version), (2, 2));
}

#[tokio::test]
async fn a_restart_goes_on_with_the_newest_root() {
    let repository = Repository::start().await;
    let key = repository.online_key("timestamp-new", 9);
    let root = repository.next_root(|root| rotate(root, KeyRole::Timestamp, key));
    repository.publish_root(root.clone(), None).await.unwrap();
    // The old key's file may go: the root of the folder is not looked at any more.
    let old: PathBuf = repository.folder.path().join("keys/online/timestamp.key");
    fs::remove_file(old).unwrap();
    let newest = newest_root(&repository.db).await.unwrap();
    assert_eq!(newest.as_deref(), Some(&root[..]));
    let again = Arc::new(OnlineKeys::read(signing(&repository.folder), newest).unwrap());
    ensure(&repository.db, &again, by()).await.unwrap();
    let day_ms = 24 * 3600 * 1000;
    renew(&repository.db, &again, NOW_MS + day_ms).await.unwrap();
    let mut device = TrustedSet::new(&root).unwrap();
    let tomorrow = Expiry::Enforce(UnixTime::from_millis((NOW_MS + day_ms) as i64));
    let timestamp = repository.file("timestamp.json").await.unwrap();
    device.update_timestamp(&timestamp, tomorrow).unwrap();
    assert_eq!(device.timestamp().unwrap().version, 3);
}

#[tokio::test]
async fn a_root_whose_request_is_dropped_in_the_middle_is_taken_to_the_end() {
    let repository = Repository::start().await;
    let key = repository.online_key("timestamp-new", 9);
    let root = repository.next_root(|root| rotate(root, KeyRole::Timestamp, key));
    let mut publishing = Box::pin(repository.publish_root(root.clone(), None));
    // Whoever asked goes away as soon as the root is stored: that is the moment before the new keys are taken.
    while repository.file("2.root.json").await.is_none() {
        let polled = std::future::poll_fn(|context| std::task::Poll::Ready(publishing.as_mut().poll(context))).await;
        assert!(polled.is_pending() || repository.file("2.root.json").await.is_some());
    }
    drop(publishing);
    drop(repository.keys.publishing().await);
    assert_eq!(repository.keys.current().root().version, 2);
    assert_eq!(repository.keys.current().root_bytes(), root);
}

#[tokio::test]
async fn targets_that_come_with_a_published_root_are_published_too() {
    let repository = Repository::start().await;
    let root = repository.next_root(|_| {});
    repository.publish_root(root.clone(), None).await.unwrap();
    let key = repository.offline("targets");
    let targets = repository.next_targets(|_| {}, std::slice::from_ref(&key)).await;
    for _ in 0..2 {
        let published = repository.publish_root(root.clone(), Some(targets.clone())).await;
        assert_eq!(published.unwrap(), 2);
        assert_eq!(current_targets(&repository.db).await.unwrap(), targets);
    }
    let strangers = repository
        .next_targets(|_| {}, &[SigningKey::from_seed(&[9; 32])])
        .await;
    let error = repository.publish_root(root, Some(strangers)).await.unwrap_err();
    assert!(matches!(error, PublishError::Targets(_)), "{error}");
}

#[tokio::test]
async fn every_root_is_found_by_its_digest() {
    let repository = Repository::start().await;
    let first = repository.file("1.root.json").await.unwrap();
    let root = repository.next_root(|_| {});
    repository.publish_root(root.clone(), None).await.unwrap();
    let by_digest = |bytes: &[u8]| root_by_digest(&repository.db, Digest::of(bytes));
    assert_eq!(by_digest(&first).await.unwrap(), Some(first.clone()));
    assert_eq!(by_digest(&root).await.unwrap().as_deref(), Some(&root[..]));
    assert_eq!(by_digest(b"another").await.unwrap(), None);
    assert_eq!(repository.keys.root_digest(), Digest::of(&root));
}

#[tokio::test]
async fn targets_without_a_bundle_name_only_what_is_published() {
    let repository = Repository::start().await;
    let key = repository.offline("targets");
    let unpublished = |targets: &mut Targets| {
        let name = TargetName::new("m/1/index").unwrap();
        targets.add_target(name, skerry_tuf::TargetFile::describe(b"x"));
    };
    let bytes = repository.next_targets(unpublished, std::slice::from_ref(&key)).await;
    let error = publish_targets(&repository.db, &repository.keys, bytes, by())
        .await
        .unwrap_err();
    assert!(matches!(error, PublishError::NotPublished(name) if name == "m/1/index"));
    let renewed = repository.next_targets(|_| {}, &[key]).await;
    // The same again, after an answer that got lost, changes nothing.
    for _ in 0..2 {
        let published = publish_targets(&repository.db, &repository.keys, renewed.clone(), by()).await;
        assert_eq!(published.unwrap(), 2);
    }
    let sooner = repository
        .next_targets(
            |targets| {
                targets.version = 2;
                targets.expires = UnixTime::from_millis(NOW_MS as i64).plus_days(1);
            },
            &[repository.offline("targets")],
        )
        .await;
    let error = publish_targets(&repository.db, &repository.keys, sooner, by())
        .await
        .unwrap_err();
    assert!(
        matches!(error, PublishError::Version { got: 2, expected: 3 }),
        "{error}"
    );
}

#[tokio::test]
async fn encrypted_online_keys_open_with_the_passphrase_file() {
    let repository = Repository::start().await;
    let key = SigningKey::from_seed(&[9; 32]);
    let passphrase = repository.folder.path().join("passphrase");
    fs::write(&passphrase, "correct horse\n").unwrap();
    let secret = crate::signing::passphrase::Passphrase::read(&passphrase).unwrap();
    let path = repository.folder.path().join("keys/online/timestamp-new.key");
    fs::write(path, key_file::encode(&key, Some(&secret)).unwrap().as_bytes()).unwrap();
    let root = repository.next_root(|root| rotate(root, KeyRole::Timestamp, key.public_key()));
    let error = signing(&repository.folder).keys_of(&root).err().unwrap();
    assert!(error.to_string().contains("its passphrase is needed"), "{error:#}");
    let folder = SigningFolder {
        passphrase_file: Some(passphrase),
        ..signing(&repository.folder)
    };
    folder.keys_of(&root).unwrap();
}

#[tokio::test]
async fn a_blocked_bundle_is_known_and_its_devices_are_told_again() {
    let repository = Repository::start().await;
    let key = repository.offline("targets");
    let index = Digest::of(b"an index");
    let name = TargetName::new("m/1/index").unwrap();
    // A bundle of which only the row and the target are there: nobody fetches it here.
    let with_bundle = repository
        .next_targets(
            |targets| {
                let file = skerry_tuf::TargetFile::from_sha256(900, index.as_bytes());
                targets.add_target(name.clone(), file);
            },
            std::slice::from_ref(&key),
        )
        .await;
    let insert = move |conn: &rusqlite::Connection| -> Result<(), DbError> {
        conn.execute_batch(&format!(
            "INSERT INTO models (name, description, tags, created_at_ms) VALUES ('m', '', '{{}}', 0);
             INSERT INTO model_versions (model, version, digest, size_bytes, description, tags, inputs, outputs, created_at_ms)
                 VALUES ('m', 1, '{index}', 1, '', '{{}}', '[]', '[]', 0);
             INSERT INTO bundles VALUES ('m', 1, 'm/1/index', '{index}', 900, 1, 1, 0);
             INSERT INTO devices (id, labels, platform, agent_version, public_key, enrolled_at_ms)
                 VALUES ('d', '{{}}', 'aarch64-unknown-linux-gnu', '0', '', 0),
                        ('other', '{{}}', 'aarch64-unknown-linux-gnu', '0', '', 0);"
        ))?;
        let assignment = skerry_shared::desired::BundleAssignment {
            model: "m".parse().unwrap(),
            version: ModelVersion(1),
            target: "m/1/index".to_owned(),
            index,
            rollout: None,
            probation_ms: 0,
            allow_downgrade: false,
        };
        crate::devices::store::set_assignment(conn, &"d".parse().unwrap(), assignment).unwrap();
        Ok(())
    };
    let generations = || async {
        let devices = crate::devices::list(&repository.db, &Default::default()).await.unwrap();
        devices.iter().map(|device| device.generation.0).collect::<Vec<_>>()
    };
    repository.db.write(insert).await.unwrap();
    publish_targets(&repository.db, &repository.keys, with_bundle, by())
        .await
        .unwrap();
    let model: ModelName = "m".parse().unwrap();
    let shown = || get_bundle(&repository.db, &model, ModelVersion(1));
    assert_eq!(shown().await.unwrap().refused, None);

    let too_old = repository
        .next_targets(
            |targets| {
                let extension = targets.extension.get_or_insert_default();
                extension.min_release.insert("m".to_owned(), 2);
            },
            std::slice::from_ref(&key),
        )
        .await;
    publish_targets(&repository.db, &repository.keys, too_old, by())
        .await
        .unwrap();
    assert_eq!(shown().await.unwrap().refused.unwrap().code, RefusalCode::MinRelease);
    // What runs goes on running.
    assert_eq!(generations().await, [1, 0]);

    let blocked = repository
        .next_targets(
            |targets| {
                let entry = skerry_tuf::Blocked {
                    sha256: index.to_hex(),
                    reason: "it sees cats everywhere".to_owned(),
                    extra: serde_json::Map::new(),
                };
                targets
                    .extension
                    .get_or_insert_default()
                    .blocked
                    .insert(name.clone(), entry);
            },
            &[key],
        )
        .await;
    publish_targets(&repository.db, &repository.keys, blocked, by())
        .await
        .unwrap();
    let refused = shown().await.unwrap().refused.unwrap();
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (RefusalCode::Blocked, "it sees cats everywhere")
    );
    assert_eq!(generations().await, [2, 0]);
    // Once is enough.
    let again = repository
        .next_targets(|_| {}, std::slice::from_ref(&repository.offline("targets")))
        .await;
    publish_targets(&repository.db, &repository.keys, again, by())
        .await
        .unwrap();
    assert_eq!(generations().await, [2, 0]);
}
