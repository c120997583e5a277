//! tough writes and we read; we write and tough reads.
//!
//! The metadata is handed over as files in memory: what is compared here are the formats and the rules, not two ways of
//! fetching. Control cases show that each side does check what it reads.

mod support;

use std::path::Path;

use skerry_tuf::{Error, Expiry, Outcome, Role, SearchStep, TargetName, TrustedSet};
use support::{Seeds, TheirRepository, now, our_repository};
use tough::IntoVec;

/// Our whole client cycle over a folder of metadata.
fn refresh(set: &mut TrustedSet, metadata: &Path) -> Result<(), Error> {
    let read = |name: &str| std::fs::read(metadata.join(name)).unwrap();
    while let Ok(root) = std::fs::read(metadata.join(set.next_root_file().file_name)) {
        set.update_root(&root)?;
    }
    set.update_timestamp(&read("timestamp.json"), now())?;
    if let Some(wanted) = set.wanted_snapshot() {
        set.update_snapshot(&read(&wanted.file_name), now())?;
    }
    if let Some(wanted) = set.wanted_targets() {
        set.update_targets(&read(&wanted.file_name), now())?;
    }
    Ok(())
}

/// The length that signed metadata gives for a target, through delegations.
fn length_of(set: &TrustedSet, metadata: &Path, name: &str) -> Option<u64> {
    let name = TargetName::new(name).unwrap();
    let mut search = set.search(&name, now()).unwrap();
    loop {
        match search.step().unwrap() {
            SearchStep::Found(file) => return Some(file.length),
            SearchStep::Absent => return None,
            SearchStep::Needs { file, .. } => {
                search
                    .offer(&std::fs::read(metadata.join(file.file_name)).unwrap())
                    .unwrap();
            }
        }
    }
}

#[tokio::test]
async fn interop_tough_writes_and_we_read() {
    let repository = TheirRepository::new().await;
    // Root 1 names keys 1, 2 of 2; the release is signed by keys 3 to 5 and by 6 for the delegated role.
    repository
        .root(
            1,
            Seeds {
                root: &[1, 2],
                online: 3,
            },
            &[1, 2],
        )
        .await;
    repository
        .release(
            1,
            Seeds {
                root: &[1, 2],
                online: 3,
            },
        )
        .await;
    let metadata = repository.metadata();
    let first = std::fs::read(metadata.join("1.root.json")).unwrap();
    let mut set = TrustedSet::new(&first).unwrap();
    refresh(&mut set, &metadata).unwrap();
    assert_eq!(length_of(&set, &metadata, "model"), Some(9));
    assert_eq!(length_of(&set, &metadata, "camera-front"), Some(9));
    assert_eq!(length_of(&set, &metadata, "elsewhere"), None);

    // Every key is replaced; root 2 is signed by the old ones and by the new ones.
    repository
        .root(
            2,
            Seeds {
                root: &[11, 12],
                online: 13,
            },
            &[1, 2, 11, 12],
        )
        .await;
    repository
        .release(
            2,
            Seeds {
                root: &[11, 12],
                online: 13,
            },
        )
        .await;
    refresh(&mut set, &metadata).unwrap();
    assert_eq!(set.root().version, 2);
    assert_eq!(set.targets().unwrap().version, 2);
    assert_eq!(length_of(&set, &metadata, "camera-front"), Some(9));

    // Control case: what the old online keys sign is refused from now on, and so is a root by the old keys alone.
    repository
        .release_signed_by_old_keys(
            3,
            Seeds {
                root: &[1, 2],
                online: 3,
            },
        )
        .await;
    let error = set
        .update_timestamp(&repository.stray("timestamp.json"), now())
        .unwrap_err();
    assert_eq!(error.code(), "sig_threshold");
    repository
        .root(
            3,
            Seeds {
                root: &[1, 2],
                online: 3,
            },
            &[1, 2],
        )
        .await;
    let error = refresh(&mut set, &metadata).unwrap_err();
    assert_eq!(error.code(), "sig_threshold");
    assert_eq!(set.root().version, 2);
}

#[tokio::test]
async fn interop_we_write_and_tough_reads() {
    let place = tempfile::tempdir().unwrap();
    our_repository(place.path(), 1, 2, 1, 1);
    let datastore = tempfile::tempdir().unwrap();
    let root = std::fs::read(place.path().join("metadata/1.root.json")).unwrap();
    let load = || support::load(&root, place.path(), datastore.path());
    let repository = load().await.unwrap();
    for name in ["model", "camera-front"] {
        let name = tough::TargetName::new(name).unwrap();
        let content = repository
            .read_target(&name)
            .await
            .unwrap()
            .unwrap()
            .into_vec()
            .await
            .unwrap();
        assert_eq!(content, b"version 1", "{}", name.raw());
    }
    let absent = tough::TargetName::new("absent").unwrap();
    assert!(repository.read_target(&absent).await.unwrap().is_none());

    // A second root with another timestamp key, and a second release.
    our_repository(place.path(), 2, 12, 2, 1);
    let repository = load().await.unwrap();
    assert_eq!(repository.root().signed.version.get(), 2);
    assert_eq!(repository.targets().signed.version.get(), 2);

    // Control cases: tough notices an old key, and a changed target.
    support::our_release(place.path(), 3, 2);
    load().await.unwrap_err();
    support::our_release(place.path(), 3, 12);
    load().await.unwrap();
    support::overwrite_targets(place.path(), b"VERSION 3");
    let repository = load().await.unwrap();
    let name = tough::TargetName::new("model").unwrap();
    let changed = repository.read_target(&name).await.unwrap().unwrap().into_vec().await;
    assert!(changed.is_err(), "control case: it does check the file");
}

#[tokio::test]
async fn a_repository_that_tough_has_written_is_the_same_when_it_comes_again() {
    let repository = TheirRepository::new().await;
    repository.root(1, Seeds { root: &[1], online: 3 }, &[1]).await;
    repository.release(1, Seeds { root: &[1], online: 3 }).await;
    let metadata = repository.metadata();
    let mut set = TrustedSet::new(&std::fs::read(metadata.join("1.root.json")).unwrap()).unwrap();
    refresh(&mut set, &metadata).unwrap();
    let timestamp = std::fs::read(metadata.join("timestamp.json")).unwrap();
    assert_eq!(set.update_timestamp(&timestamp, now()).unwrap(), Outcome::Unchanged);
    assert!(set.wanted_snapshot().is_none() && set.wanted_targets().is_none());
    assert_eq!(set.bytes(Role::Timestamp), Some(timestamp.as_slice()));
    let _: Expiry = now();
}
