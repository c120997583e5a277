//! Enrolment: what a cut, a full disk or a failed call leaves is no device yet, which asks again with the key that it has
//! shown, or a whole one.
//!
//! The writes are the agent's own; the control plane is a function from a key to an answer.

use serde_json::json;
use skerry_shared::digest::Digest;

use super::{
    device::{for_every_cut, state_dir},
    plane::{Keys, Plane, device},
};
use crate::{
    agent::open_state,
    clock::Clock,
    disk::sim::{Failure, Left, SimFs},
    enroll::{self, Enrolled, Identity},
    tls::{self, DeviceKey, tests::Authority},
};

const SERVER: &str = "https://192.0.2.1:8080";

/// What a device enrols with.
struct Fleet {
    authority: Authority,
    root: Vec<u8>,
}

impl Fleet {
    fn new() -> Fleet {
        Fleet {
            authority: Authority::new(),
            root: Plane::default().root(1, Keys::First),
        }
    }

    /// What the control plane makes of a key.
    fn admit(&self, key: &DeviceKey) -> Enrolled {
        let answer = json!({
            "device_id": device(),
            "certificate": {"chain": self.authority.issue(key), "issued_at_ms": 1, "not_after_ms": 2},
            "mqtt": {"port": 8883},
        });
        let answer = serde_json::from_value(answer).unwrap();
        Enrolled::new(
            answer,
            self.root.clone(),
            &self.authority.certificate,
            SERVER.to_owned(),
        )
        .unwrap()
    }

    /// Enrols; `shown` is told the key once the control plane has seen it.
    fn enrol(&self, fs: &SimFs, mut shown: impl FnMut(Digest)) -> anyhow::Result<()> {
        let key = enroll::begin(&fs.disk(), &state_dir())?;
        shown(key.fingerprint());
        self.admit(&key).write(&fs.disk(), &state_dir(), &key)
    }
}

/// A medium without a state folder.
fn empty() -> SimFs {
    SimFs::new(std::path::Path::new("/"))
}

/// Starts the agent as far as it goes without a network, and says whose key it holds.
fn start(fs: &SimFs) -> anyhow::Result<Digest> {
    let (disk, folder) = (fs.disk(), state_dir());
    let identity = Identity::read(&disk, &folder)?;
    let (key, certificate) = tls::read_own(&disk, &folder)?;
    open_state(&disk, &folder, None)?;
    tls::for_broker(&identity.broker_authority()?, certificate, &Clock::of_this_machine(0))?;
    assert_eq!((identity.device_id, identity.server.as_str()), (device(), SERVER));
    Ok(key.fingerprint())
}

fn is_enrolled(fs: &SimFs, what: &str) -> bool {
    match Identity::read(&fs.disk(), &state_dir()) {
        Ok(_) => true,
        Err(error) => {
            assert!(format!("{error:#}").contains("not enrolled"), "{what}: {error:#}");
            false
        }
    }
}

/// What must hold after a start: whole, or repeatable; in both cases with the key that the control plane has seen.
fn check(fleet: &Fleet, fs: &SimFs, seen: Option<Digest>, what: &str) {
    if !is_enrolled(fs, what) {
        let kept = DeviceKey::read(&fs.disk(), &state_dir());
        let kept = kept.unwrap_or_else(|error| panic!("{what}: {error:#}"));
        let mut again = None;
        fleet
            .enrol(fs, |key| again = Some(key))
            .unwrap_or_else(|error| panic!("{what}: {error:#}"));
        if let Some(kept) = kept {
            assert_eq!(again, Some(kept.fingerprint()), "{what}: a second key");
        }
    }
    let key = start(fs).unwrap_or_else(|error| panic!("{what}: {error:#}"));
    if let Some(seen) = seen {
        assert_eq!(key, seen, "{what}: another key than the one that was shown");
    }
}

#[test]
fn a_cut_at_any_call_of_enrolment_leaves_no_device_or_a_whole_one() {
    let fleet = Fleet::new();
    let fs = empty();
    fs.restart_history();
    let mut shown = None;
    fleet.enrol(&fs, |key| shown = Some((fs.calls().len(), key))).unwrap();
    let (shown_at, key) = shown.unwrap();
    let done = fs.calls().len();
    let mut whole = 0;
    let cuts = for_every_cut("enrolment", &fs, |moment, after, what| {
        let enrolled = is_enrolled(after, what);
        assert!(enrolled || moment < done, "{what}: enrolment had ended");
        whole += usize::from(enrolled);
        check(&fleet, after, (moment >= shown_at).then_some(key), what);
    });
    assert!(whole > 0 && cuts > 300, "{whole} of {cuts}");
}

/// Enrols on disks that fail at each call in turn: what a cut leaves then, and a second try without one.
fn failing(failure: Failure) {
    let fleet = Fleet::new();
    let calls = {
        let fs = empty();
        fs.restart_history();
        fleet.enrol(&fs, |_| ()).unwrap();
        fs.calls().len()
    };
    let mut refused = 0;
    for call in 0..calls {
        let what = format!("{failure:?} at call {call}");
        let fs = empty();
        fs.fail_at(call, failure);
        let mut seen = None;
        let tried = fleet.enrol(&fs, |key| seen = Some(key));
        fs.mend();
        refused += usize::from(tried.is_err());
        for left in [Left::Everything, Left::Nothing] {
            let after = fs.state().after_cut(left);
            assert!(tried.is_err() || is_enrolled(&after, &what), "{what}: {left:?}");
            check(&fleet, &after, seen, &format!("{what}, {left:?}"));
        }
        // Nobody has cut the power: the device tries again, and then it is cut.
        if is_enrolled(&fs, &what) {
            start(&fs).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        } else {
            let again = fleet.enrol(&fs, |key| {
                assert!(seen.is_none_or(|seen| seen == key), "{what}: a second key");
                seen = Some(key);
            });
            again.unwrap_or_else(|error| panic!("{what}: {error:#}"));
            let after = fs.state().after_cut(Left::Nothing);
            assert!(is_enrolled(&after, &what), "{what}: lost");
            check(&fleet, &after, seen, &what);
        }
    }
    println!("enrolment: {failure:?} at each of {calls} calls, {refused} ended in an error");
    assert!(refused > 8, "{refused} of {calls}");
}

#[test]
fn enrolment_on_a_full_disk_is_repeated_with_the_same_key() {
    failing(Failure::Full);
}

#[test]
fn enrolment_after_a_call_that_failed_is_repeated_with_the_same_key() {
    failing(Failure::Once);
}

#[test]
fn a_fingerprint_that_was_shown_outlives_the_next_cut() {
    let show = |fs: &SimFs| enroll::fingerprint(&fs.disk(), &state_dir());
    let mut call = 0;
    loop {
        let fs = empty();
        fs.fail_at(call, Failure::Once);
        let first = show(&fs);
        fs.mend();
        let shown = show(&fs).unwrap();
        let after = fs.state().after_cut(Left::Nothing);
        assert_eq!(show(&after).unwrap(), shown, "a call failed before: {call}");
        if let Ok(first) = first {
            assert_eq!(first, shown);
            break;
        }
        call += 1;
    }
    assert!(call > 5, "{call}");
}

#[test]
fn the_certificate_of_another_key_leaves_nothing_behind() {
    let fleet = Fleet::new();
    let (fs, other) = (empty(), empty());
    let key = enroll::begin(&fs.disk(), &state_dir()).unwrap();
    let foreign = enroll::begin(&other.disk(), &state_dir()).unwrap();
    let before = fs.state().fingerprint();
    assert!(fleet.admit(&foreign).write(&fs.disk(), &state_dir(), &key).is_err());
    assert_eq!(fs.state().fingerprint(), before);
}
