//! Spool and outbox on real files, with kills, torn tails and a control plane that forgets.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use proptest::prelude::*;
use skerry_shared::{desired::FrameId, otlp::TelemetryFrame};
use tokio::time::Instant;

use super::{
    collect::Frame,
    outbox::{Event, Outbox},
    spool::{SPOOL_BYTES, Spool, TelemetryStatus, WINDOW},
};
use crate::disk::Disk;

fn frame(boot: u8, seq: u64) -> Frame {
    sized_frame(boot, seq, 20)
}

/// A frame of `seq % 3 + 1` points.
pub(super) fn sized_frame(boot: u8, seq: u64, body_bytes: usize) -> Frame {
    let id = id(boot, seq);
    let body = vec![seq as u8; body_bytes];
    let bytes = TelemetryFrame {
        id: id.clone(),
        raw_len: 1,
        body: &body,
    }
    .to_bytes();
    Frame {
        id,
        points: (seq % 3 + 1) as u32,
        bytes,
    }
}

pub(super) fn id(boot: u8, seq: u64) -> FrameId {
    let boot_id = hex::encode([boot; 16]).parse().unwrap();
    FrameId { boot_id, seq }
}

fn ids(frames: &[Vec<u8>]) -> Vec<FrameId> {
    frames
        .iter()
        .map(|bytes| TelemetryFrame::from_bytes(bytes).unwrap().id)
        .collect()
}

fn open(folder: &Path) -> Spool {
    Spool::open(&Disk::real(), folder, SPOOL_BYTES).unwrap()
}

fn outbox(folder: &Path) -> Outbox {
    Outbox::new(open(folder))
}

/// The sum that must hold at any time.
fn check_sum(status: &TelemetryStatus) {
    assert!(
        status.points_acked + status.points_dropped <= status.points_recorded,
        "{status:?}"
    );
}

fn only_segment(folder: &Path) -> std::path::PathBuf {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut segments = entries.filter(|path| path.to_string_lossy().contains("segment-"));
    segments.next().unwrap()
}

#[test]
fn a_tail_torn_at_any_byte_leaves_the_whole_records() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(folder.path());
    let mut ends = vec![0];
    for seq in 1..=4 {
        spool.append(&frame(1, seq)).unwrap();
        ends.push(spool.status().bytes as usize);
    }
    drop(spool);
    let path = only_segment(folder.path());
    let whole = fs::read(&path).unwrap();
    for cut in 0..=whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let records = ends.iter().filter(|end| **end <= cut).count() - 1;
        let spool = open(folder.path());
        let window: Vec<u64> = spool.window().iter().map(|id| id.seq).collect();
        assert_eq!(window, (1..=records as u64).collect::<Vec<_>>(), "cut at {cut}");
        let recorded: u64 = window.iter().map(|seq| seq % 3 + 1).sum();
        assert_eq!(spool.status().points_recorded, recorded, "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_ends_the_segment_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(folder.path());
    (1..=3).for_each(|seq| spool.append(&frame(1, seq)).unwrap());
    drop(spool);
    let path = only_segment(folder.path());
    let whole = fs::read(&path).unwrap();
    for position in 0..whole.len() {
        let mut broken = whole.clone();
        broken[position] ^= 1;
        fs::write(&path, &broken).unwrap();
        assert_eq!(
            open(folder.path()).status().frames_pending,
            (position * 3 / whole.len()) as u64
        );
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn counts_survive_a_kill_and_an_empty_spool() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = 0;
    for boot in 0..5 {
        // Dropped without a farewell, as SIGKILL does.
        let mut spool = open(folder.path());
        assert_eq!(spool.status().points_recorded, expected);
        for seq in 1..=20 {
            let frame = sized_frame(boot, seq, 2000);
            spool.append(&frame).unwrap();
            expected += u64::from(frame.points);
        }
        for seq in 1..=20 {
            spool.acked(&id(boot, seq)).unwrap();
        }
        let status = spool.status();
        let empty = TelemetryStatus {
            points_recorded: expected,
            points_acked: expected,
            ..Default::default()
        };
        assert_eq!(status, empty, "all segments are gone and the counts stay");
    }
}

#[test]
fn a_restart_sends_what_is_not_acknowledged_again_with_the_same_ids() {
    let folder = tempfile::tempdir().unwrap();
    let now = Instant::now();
    let mut first = outbox(folder.path());
    assert!(
        first
            .handle(Event::Collected(vec![frame(1, 1), frame(1, 2), frame(1, 3)]), now)
            .is_empty()
    );
    let sent = first.handle(Event::Connected, now);
    assert_eq!(ids(&sent), [id(1, 1), id(1, 2), id(1, 3)]);
    drop(first);
    let mut second = outbox(folder.path());
    assert_eq!(second.handle(Event::Connected, now), sent);
    let more = second.handle(Event::Collected(vec![frame(2, 1)]), now);
    assert_eq!(ids(&more), [id(2, 1)]);
    second.handle(
        Event::Acked(vec![id(1, 1), id(1, 2), id(1, 3), id(2, 1), id(9, 9)]),
        now,
    );
    assert_eq!(second.spool().status().frames_pending, 0);
}

#[test]
fn a_full_spool_drops_the_oldest_that_was_not_sent_and_counts_it() {
    let folder = tempfile::tempdir().unwrap();
    let limit = 64 * 1024;
    let mut spool = Spool::open(&Disk::real(), folder.path(), limit).unwrap();
    let mut recorded = 0;
    for seq in 1..=300 {
        let frame = sized_frame(1, seq, 1000);
        spool.append(&frame).unwrap();
        recorded += u64::from(frame.points);
        assert!(spool.status().bytes <= limit);
    }
    let status = spool.status();
    assert_eq!(status.points_recorded, recorded);
    assert_eq!(status.points_acked, 0);
    assert!(status.points_dropped > 0);
    let window: Vec<u64> = spool.window().iter().map(|id| id.seq).collect();
    assert_eq!(
        window,
        (1..=WINDOW as u64).collect::<Vec<_>>(),
        "those may have been committed"
    );
    drop(spool);
    let again = Spool::open(&Disk::real(), folder.path(), limit).unwrap();
    assert_eq!(again.status(), status);
}

#[test]
fn a_kill_between_head_and_removal_does_not_count_a_segment_twice() {
    let folder = tempfile::tempdir().unwrap();
    let limit = 64 * 1024;
    let mut spool = Spool::open(&Disk::real(), folder.path(), limit).unwrap();
    let mut copies = std::collections::BTreeMap::new();
    let mut seq = 0;
    while spool.status().points_dropped == 0 {
        for entry in fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().contains("segment-") {
                copies.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
        seq += 1;
        spool.append(&sized_frame(1, seq, 1000)).unwrap();
    }
    let status = spool.status();
    drop(spool);
    let (removed, content) = copies.iter().find(|(path, _)| !path.exists()).unwrap();
    fs::write(removed, content).unwrap();
    assert_eq!(
        Spool::open(&Disk::real(), folder.path(), limit).unwrap().status(),
        status
    );
}

#[test]
fn frames_come_in_the_window_and_again_when_they_are_overdue() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = outbox(folder.path());
    let now = Instant::now();
    let frames: Vec<Frame> = (1..=WINDOW as u64 + 2).map(|seq| frame(1, seq)).collect();
    outbox.handle(Event::Collected(frames), now);
    assert_eq!(outbox.deadline(), None, "nothing is on its way without a connection");
    assert_eq!(outbox.handle(Event::Connected, now).len(), WINDOW);
    let later = now + Duration::from_secs(10);
    assert_eq!(
        ids(&outbox.handle(Event::Acked(vec![id(1, 3)]), later)),
        [id(1, WINDOW as u64 + 1)]
    );
    let deadline = outbox.deadline().unwrap();
    assert!(
        outbox
            .handle(Event::Overdue, deadline - Duration::from_millis(1))
            .is_empty()
    );
    let again = ids(&outbox.handle(Event::Overdue, deadline));
    assert_eq!(again.len(), WINDOW - 1, "the newest was sent ten seconds later");
    assert!(!again.contains(&id(1, WINDOW as u64 + 1)));
    outbox.handle(Event::Disconnected, deadline);
    assert_eq!(outbox.deadline(), None);
    assert_eq!(outbox.handle(Event::Connected, deadline).len(), WINDOW);
}

#[test]
fn a_frame_that_the_disk_lost_does_not_hold_up_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let mut outbox = outbox(folder.path());
    let now = Instant::now();
    outbox.handle(Event::Collected(vec![frame(1, 1), frame(1, 2)]), now);
    let path = only_segment(folder.path());
    let mut broken = fs::read(&path).unwrap();
    broken[40] ^= 1;
    fs::write(&path, &broken).unwrap();
    assert_eq!(ids(&outbox.handle(Event::Connected, now)), [id(1, 2)]);
    assert_eq!(outbox.spool().status().points_dropped, 2);
}

#[derive(Clone, Debug)]
enum Step {
    Record(usize),
    /// The window goes out; the control plane commits the frames, and the acknowledgement of those of the mask arrives.
    Exchange(u8),
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..4000_usize).prop_map(Step::Record),
        3 => any::<u8>().prop_map(Step::Exchange),
        1 => Just(Step::Kill),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    // Each record costs an fsync.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn what_is_recorded_and_not_dropped_is_stored_whatever_is_killed(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let start = || Outbox::new(Spool::open(&Disk::real(), folder.path(), 64 * 1024).unwrap());
        let (mut outbox, mut boot, mut seq) = (start(), 1, 0);
        let (mut stored, mut stored_points) = (BTreeSet::new(), 0);
        let now = Instant::now();
        let mut exchange = |outbox: &mut Outbox, mask: u8| {
            // A new connection each time, so that all of the window comes.
            let frames = ids(&outbox.handle(Event::Connected, now));
            for id in &frames {
                if stored.insert(id.clone()) {
                    stored_points += id.seq % 3 + 1;
                }
            }
            let arrives = |place: &usize| mask & (1 << place) != 0;
            let acked = (0..frames.len()).filter(arrives).map(|place| frames[place].clone()).collect();
            outbox.handle(Event::Acked(acked), now);
            outbox.handle(Event::Disconnected, now);
            stored_points
        };
        for step in steps {
            match step {
                Step::Record(bytes) => {
                    seq += 1;
                    outbox.handle(Event::Collected(vec![sized_frame(boot, seq, bytes)]), now);
                }
                Step::Exchange(mask) => {
                    exchange(&mut outbox, mask);
                }
                Step::Kill => {
                    drop(outbox);
                    (outbox, boot, seq) = (start(), boot + 1, 0);
                }
            }
            check_sum(&outbox.spool().status());
        }
        let mut in_store = 0;
        while outbox.spool().status().frames_pending > 0 {
            in_store = exchange(&mut outbox, 0xff);
        }
        if in_store == 0 {
            in_store = exchange(&mut outbox, 0xff);
        }
        let status = outbox.spool().status();
        prop_assert_eq!(status.points_recorded - status.points_dropped, in_store);
    }
}
