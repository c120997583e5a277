//! The spool under power cuts at every call, on a simulated disk.

use std::{collections::BTreeSet, path::Path};

use skerry_shared::desired::FrameId;

use super::{
    spool::{Spool, WINDOW},
    tests::{id, sized_frame},
};
use crate::{crash_tests::device::for_every_cut, disk::sim::SimFs};

#[test]
fn a_cut_at_any_call_of_the_spool_loses_no_frame_that_was_kept_and_counts_none_twice() {
    let root = Path::new("/state");
    let folder = root.join("spool");
    let fs = SimFs::new(root);
    fs.restart_history();
    let mut spool = Spool::open(&fs.disk(), &folder, 8 * 1024).unwrap();
    // After which call a frame was kept, and before which one its acknowledgement came.
    let (mut kept, mut acked) = (Vec::new(), Vec::new());
    for seq in 1..=12 {
        spool.append(&sized_frame(1, seq, 200)).unwrap();
        kept.push((fs.calls().len(), seq, spool.status().points_recorded));
        if seq % 2 == 0 {
            acked.push((fs.calls().len(), seq));
            spool.acked(&id(1, seq)).unwrap();
            acked.push((fs.calls().len(), seq - 1));
            spool.acked(&id(1, seq - 1)).unwrap();
        }
    }
    let cuts = for_every_cut("spool", &fs, |moment, after, what| {
        let spool = Spool::open(&after.disk(), &folder, 8 * 1024).unwrap_or_else(|error| panic!("{what}: {error}"));
        let found: BTreeSet<FrameId> = spool.window().into_iter().collect();
        for (_, seq, _) in kept.iter().filter(|(calls, _, _)| *calls <= moment) {
            let may_be_gone = acked.iter().any(|(calls, acked)| acked == seq && *calls <= moment);
            assert!(
                may_be_gone || found.contains(&id(1, *seq)),
                "{what}: frame {seq} is lost"
            );
        }
        assert!(found.len() <= WINDOW);
        let status = spool.status();
        let sure = kept.iter().rev().find(|(calls, _, _)| *calls <= moment);
        assert!(
            status.points_recorded >= sure.map_or(0, |(_, _, points)| *points),
            "{what}: {status:?}"
        );
        assert_eq!(status.points_dropped, 0, "{what}");
    });
    assert!(cuts > 500, "{cuts}");
}
