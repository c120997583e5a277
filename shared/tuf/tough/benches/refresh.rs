//! How long a client takes to refresh from a repository with 1,000 targets: ours and tough's, in turn, in one process.
//!
//! Both read the same folder and both keep what they accept in another one; neither has a network. Ours answers how long
//! verifying takes, and the ratio tells whether that is much for what is done. Not a test: no time is asserted.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use skerry_tuf::{Limits, Role, StoredMetadata, TrustedSet, VersionFloors};

const TARGETS: usize = 1_000;
const ROUNDS: usize = 101;

/// From the first root, or from what the folder holds.
fn ours(place: &Path, kept: &Path) -> usize {
    let read = |name: &str| std::fs::read(place.join("metadata").join(name)).unwrap();
    let stored = |role: Role| std::fs::read(kept.join(role.file_name())).ok();
    let stored = StoredMetadata {
        root: stored(Role::Root).unwrap_or_else(|| read("1.root.json")),
        timestamp: stored(Role::Timestamp),
        snapshot: stored(Role::Snapshot),
        targets: stored(Role::Targets),
    };
    let loaded = TrustedSet::from_stored(&stored, VersionFloors::default(), Limits::default()).unwrap();
    let mut set = loaded.set;
    while let Ok(root) = std::fs::read(place.join("metadata").join(set.next_root_file().file_name)) {
        set.update_root(&root).unwrap();
    }
    set.update_timestamp(&read("timestamp.json"), support::now()).unwrap();
    if let Some(wanted) = set.wanted_snapshot() {
        set.update_snapshot(&read(&wanted.file_name), support::now()).unwrap();
    }
    if let Some(wanted) = set.wanted_targets() {
        set.update_targets(&read(&wanted.file_name), support::now()).unwrap();
    }
    for role in [Role::Root, Role::Timestamp, Role::Snapshot, Role::Targets] {
        let (path, bytes) = (kept.join(role.file_name()), set.bytes(role).unwrap());
        // A file that did not change is not written again, as on a device.
        if std::fs::read(&path).ok().as_deref() != Some(bytes) {
            std::fs::write(path, bytes).unwrap();
        }
    }
    set.fresh_targets(support::now()).unwrap().targets.len()
}

async fn theirs(place: &Path, kept: &Path) -> usize {
    let root = std::fs::read(place.join("metadata/1.root.json")).unwrap();
    let repository = support::load(&root, place, kept).await.unwrap();
    repository.targets().signed.targets.len()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// Whether a client begins with an empty folder each time.
#[derive(Clone, Copy, PartialEq)]
enum Start {
    Empty,
    UpToDate,
}

async fn measure(place: &Path, start: Start) -> (f64, f64) {
    let (our_times, their_times) = (&mut Vec::new(), &mut Vec::new());
    let (mut ours_kept, mut theirs_kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for round in 0..=ROUNDS {
        if start == Start::Empty {
            (ours_kept, theirs_kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        }
        let begin = Instant::now();
        assert_eq!(black_box(ours(place, ours_kept.path())), TARGETS);
        let middle = Instant::now();
        assert_eq!(black_box(theirs(place, theirs_kept.path()).await), TARGETS);
        // The first round fills the folders and the caches.
        if round > 0 {
            our_times.push(middle - begin);
            their_times.push(middle.elapsed());
        }
    }
    (median(std::mem::take(our_times)), median(std::mem::take(their_times)))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let place = tempfile::tempdir().unwrap();
    support::our_repository(place.path(), 1, 2, 1, 1);
    support::our_large_release(place.path(), 2, TARGETS);
    let targets = std::fs::metadata(place.path().join("metadata/2.targets.json")).unwrap();
    println!(
        "{TARGETS} targets, targets.json of {} bytes, median of {ROUNDS}",
        targets.len()
    );
    for (name, start) in [("from the first root", Start::Empty), ("nothing new", Start::UpToDate)] {
        let (ours, theirs) = measure(place.path(), start).await;
        println!(
            "{name}: ours {ours:.2} ms, tough {theirs:.2} ms, ratio {:.2}",
            ours / theirs
        );
    }
}
