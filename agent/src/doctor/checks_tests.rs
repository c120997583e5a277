//! One test a finding: a healthy device, and one fact changed.

use super::*;

const MIB: u64 = 1024 * 1024;

fn healthy() -> Facts {
    Facts {
        now_ms: CLOCK_LEAST_MS + CLOCK_BEHIND_MS,
        state: StateFolder::Enrolled {
            device: "kitchen-1".to_owned(),
            time_floor_ms: CLOCK_LEAST_MS,
        },
        disk: Some(Disk {
            free_bytes: 20_000 * MIB,
            total_bytes: 30_000 * MIB,
            free_inodes: 1000,
            total_inodes: 2000,
            read_only: false,
        }),
        memory: Some(Memory {
            available_bytes: 400 * MIB,
            total_bytes: 900 * MIB,
        }),
        cpu: Cpu {
            architecture: "aarch64",
            features: vec!["fp".to_owned(), "asimd".to_owned()],
        },
        broker: Some(Broker {
            host: "skerry.example".to_owned(),
            port: 8883,
            lookup: Lookup::Found(vec![IpAddr::from([192, 0, 2, 1])]),
            reach: Some(Reach::Connected {
                took: Duration::from_millis(12),
            }),
        }),
        agent: Agent::Answers,
    }
}

/// The one finding that the change brings, which must be this bad and say this, and advise something.
fn finds(change: impl FnOnce(&mut Facts), name: &str, level: Level, words: &str) {
    let mut facts = healthy();
    change(&mut facts);
    let bad: Vec<Finding> = check(&facts).into_iter().filter(|f| f.level != Level::Ok).collect();
    let [finding] = bad.as_slice() else {
        panic!("{bad:?}");
    };
    assert_eq!((finding.check, finding.level), (name, level), "{finding:?}");
    assert!(finding.found.contains(words), "{finding:?}");
    assert!(
        finding.advice.as_ref().is_some_and(|advice| advice.len() > 10),
        "{finding:?}"
    );
}

fn broker(facts: &mut Facts) -> &mut Broker {
    facts.broker.as_mut().expect("a healthy device has one")
}

fn disk_of(facts: &mut Facts) -> &mut Disk {
    facts.disk.as_mut().expect("a healthy device has one")
}

#[test]
fn nothing_is_found_on_a_healthy_device() {
    let findings = check(&healthy());
    assert!(
        findings.iter().all(|f| f.level == Level::Ok && f.advice.is_none()),
        "{findings:?}"
    );
    let names: Vec<&str> = findings.iter().map(|finding| finding.check).collect();
    let expected = [
        "clock",
        "enrolment",
        "agent",
        "disk",
        "memory",
        "processor",
        "name",
        "broker",
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_clock_without_a_battery_is_found() {
    finds(|facts| facts.now_ms = 1000, "clock", Level::Fail, "before this program");
}

#[test]
fn a_clock_behind_the_signed_time_is_found() {
    let behind = |facts: &mut Facts| {
        facts.state = StateFolder::Enrolled {
            device: "kitchen-1".to_owned(),
            time_floor_ms: facts.now_ms + 3 * CLOCK_BEHIND_MS,
        };
    };
    finds(behind, "clock", Level::Fail, "3 day(s) behind");
}

#[test]
fn each_state_of_the_folder_is_told_apart() {
    let cases = [
        (StateFolder::Missing, "no state folder"),
        (StateFolder::Forbidden, "cannot be read by this user"),
        (StateFolder::Damaged("identity.json".to_owned()), "identity.json"),
        (StateFolder::NotEnrolled, "not enrolled"),
    ];
    for (state, words) in cases {
        finds(|facts| facts.state = state, "enrolment", Level::Fail, words);
    }
}

#[test]
fn an_agent_that_does_not_run_is_found() {
    finds(
        |facts| facts.agent = Agent::NeverStarted,
        "agent",
        Level::Fail,
        "never run",
    );
    finds(
        |facts| facts.agent = Agent::Silent,
        "agent",
        Level::Fail,
        "does not answer",
    );
}

#[test]
fn a_full_disk_is_found_before_and_when_it_hurts() {
    finds(
        |facts| disk_of(facts).free_bytes = 60 * MIB,
        "disk",
        Level::Warn,
        "60 MiB",
    );
    finds(|facts| disk_of(facts).free_bytes = 1000, "disk", Level::Fail, "0 KiB");
    finds(|facts| disk_of(facts).free_inodes = 0, "disk", Level::Fail, "inode");
    finds(
        |facts| disk_of(facts).read_only = true,
        "disk",
        Level::Fail,
        "read-only",
    );
}

#[test]
fn a_file_system_without_a_number_of_inodes_is_no_finding() {
    let mut facts = healthy();
    (disk_of(&mut facts).free_inodes, disk_of(&mut facts).total_inodes) = (0, 0);
    assert!(check(&facts).iter().all(|finding| finding.level == Level::Ok));
}

#[test]
fn little_memory_is_found() {
    let available = |bytes| {
        move |facts: &mut Facts| {
            facts.memory = Some(Memory {
                available_bytes: bytes,
                total_bytes: 400 * MIB,
            });
        }
    };
    finds(available(90 * MIB), "memory", Level::Warn, "90 MiB");
    finds(available(20 * MIB), "memory", Level::Fail, "20 MiB");
}

#[test]
fn a_slow_processor_is_found_by_its_kind() {
    for (architecture, words) in [
        ("aarch64", "asimd"),
        ("arm", "neon"),
        ("x86_64", "avx2 and fma"),
        ("riscv64", "riscv64"),
    ] {
        let cpu = Cpu {
            architecture,
            features: vec!["fp".to_owned()],
        };
        finds(|facts| facts.cpu = cpu, "processor", Level::Warn, words);
    }
}

#[test]
fn a_name_that_leads_nowhere_is_found() {
    let lookup = |lookup| {
        |facts: &mut Facts| {
            broker(facts).lookup = lookup;
            broker(facts).reach = None;
        }
    };
    finds(lookup(Lookup::Found(Vec::new())), "name", Level::Fail, "no address");
    finds(
        lookup(Lookup::Failed("try again".to_owned())),
        "name",
        Level::Fail,
        "try again",
    );
}

#[test]
fn an_address_needs_no_lookup() {
    let mut facts = healthy();
    broker(&mut facts).host = "192.0.2.1".to_owned();
    let findings = check(&facts);
    let name = findings.iter().find(|finding| finding.check == "name");
    assert!(name.is_some_and(|name| name.found.contains("no name")), "{findings:?}");
}

#[test]
fn each_way_not_to_reach_the_broker_has_its_own_words() {
    let after = Duration::from_secs(5);
    let cases = [
        (Reach::Refused, Level::Fail, "refuses"),
        (Reach::TimedOut { after }, Level::Fail, "within 5 s"),
        (Reach::Failed("no route to host".to_owned()), Level::Fail, "no route"),
        (Reach::Connected { took: after }, Level::Warn, "5000 ms"),
    ];
    for (reach, level, words) in cases {
        finds(|facts| broker(facts).reach = Some(reach), "broker", level, words);
    }
}
