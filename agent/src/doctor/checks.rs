//! The judgement: facts in, findings out. No clock, no disk, no network.
//!
//! Invariant: each finding that is not good says what to do.

use std::{net::IpAddr, time::Duration};

use serde::Serialize;

/// What was seen on the device. What could not be seen is absent, or says why.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) now_ms: u64,
    pub(super) state: StateFolder,
    pub(super) disk: Option<Disk>,
    /// Absent: unknown.
    pub(super) memory: Option<Memory>,
    pub(super) cpu: Cpu,
    /// Absent without an identity.
    pub(super) broker: Option<Broker>,
    pub(super) agent: Agent,
}

/// The agent's state folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum StateFolder {
    Missing,
    /// Whoever asks may not look.
    Forbidden,
    /// There, with something wrong in it.
    Damaged(String),
    NotEnrolled,
    Enrolled {
        device: String,
        /// The newest time that the control plane has signed; zero if none.
        time_floor_ms: u64,
    },
}

/// The file system of the state folder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    pub(super) free_bytes: u64,
    pub(super) total_bytes: u64,
    pub(super) free_inodes: u64,
    /// Zero where the file system has no fixed number.
    pub(super) total_inodes: u64,
    pub(super) read_only: bool,
}

/// The machine's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) available_bytes: u64,
    pub(super) total_bytes: u64,
}

/// What the processor can do, by the kernel's names.
#[derive(Clone, Debug)]
pub(super) struct Cpu {
    /// By Rust's name, for example `aarch64`.
    pub(super) architecture: &'static str,
    pub(super) features: Vec<String>,
}

/// The way to the broker.
#[derive(Clone, Debug)]
pub(super) struct Broker {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) lookup: Lookup,
    /// Absent when there is no address to connect to.
    pub(super) reach: Option<Reach>,
}

/// What the name service says about the broker's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    Found(Vec<IpAddr>),
    Failed(String),
}

/// How a TCP connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Connected { took: Duration },
    Refused,
    TimedOut { after: Duration },
    Failed(String),
}

/// The agent's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Agent {
    NeverStarted,
    Silent,
    Answers,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Ok,
    /// Works, but not for long or not well.
    Warn,
    /// Something does not work.
    Fail,
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        }
    }
}

/// One judgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at, one word.
    pub(super) check: &'static str,
    pub(super) level: Level,
    /// What is so.
    pub(super) found: String,
    /// What to do; always there unless all is well.
    pub(super) advice: Option<String>,
}

fn ok(check: &'static str, found: impl Into<String>) -> Finding {
    finding(check, Level::Ok, found, None)
}

fn warn(check: &'static str, found: impl Into<String>, advice: &str) -> Finding {
    finding(check, Level::Warn, found, Some(advice))
}

fn fail(check: &'static str, found: impl Into<String>, advice: &str) -> Finding {
    finding(check, Level::Fail, found, Some(advice))
}

fn finding(check: &'static str, level: Level, found: impl Into<String>, advice: Option<&str>) -> Finding {
    Finding {
        check,
        level,
        found: found.into(),
        advice: advice.map(str::to_owned),
    }
}

/// 2026-01-01: this program was written after it, so no right clock shows less.
const CLOCK_LEAST_MS: u64 = 1_767_225_600_000;
/// A day: clocks of control planes differ by minutes, a battery-less clock by years.
const CLOCK_BEHIND_MS: u64 = 24 * 3600 * 1000;
/// Below this the state record cannot be written safely: 1 MiB, as it is written beside the old one.
const DISK_FAIL_BYTES: u64 = 1024 * 1024;
/// Below this no usual model fits: 64 MiB.
const DISK_WARN_BYTES: u64 = 64 * 1024 * 1024;
/// Below this not even the agent and a small model fit: 24 MiB.
const MEMORY_FAIL_BYTES: u64 = 24 * 1024 * 1024;
/// An update loads the new bundle beside the old one: 96 MiB.
const MEMORY_WARN_BYTES: u64 = 96 * 1024 * 1024;
/// A broker that is this far away makes downloads slow.
const SLOW: Duration = Duration::from_secs(1);

/// Judges what was seen, in the order in which things depend on each other.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        clock(facts.now_ms, &facts.state),
        enrolment(&facts.state),
        agent(facts.agent),
    ];
    findings.extend(facts.disk.map(disk));
    findings.extend(facts.memory.map(memory));
    findings.push(cpu(&facts.cpu));
    if let Some(broker) = &facts.broker {
        findings.push(names(broker));
        findings.extend(broker.reach.as_ref().map(|reach| connection(broker, reach)));
    }
    findings
}

fn clock(now_ms: u64, state: &StateFolder) -> Finding {
    const ADVICE: &str =
        "switch time synchronisation on (`timedatectl set-ntp true`) and see that its server can be reached";
    let floor_ms = match state {
        StateFolder::Enrolled { time_floor_ms, .. } => *time_floor_ms,
        _ => 0,
    };
    if now_ms < CLOCK_LEAST_MS {
        let found = "the clock shows a time before this program was written";
        fail("clock", found, ADVICE)
    } else if now_ms.saturating_add(CLOCK_BEHIND_MS) < floor_ms {
        let days = (floor_ms - now_ms) / CLOCK_BEHIND_MS;
        let found = format!("the clock is {days} day(s) behind the control plane's last signed word");
        fail("clock", found, ADVICE)
    } else {
        ok("clock", "is not behind anything that is known")
    }
}

fn enrolment(state: &StateFolder) -> Finding {
    const ENROL: &str = "get a token with `skerry device token` and run `skerry-agent enroll`";
    match state {
        StateFolder::Missing => fail("enrolment", "there is no state folder", ENROL),
        StateFolder::Forbidden => fail(
            "enrolment",
            "the state folder cannot be read by this user",
            "run this as root or as the agent's user: `sudo skerry-agent doctor`",
        ),
        StateFolder::Damaged(why) => fail(
            "enrolment",
            format!("the state folder is damaged: {why}"),
            "restore it from a copy, or empty it and enrol anew",
        ),
        StateFolder::NotEnrolled => fail("enrolment", "this device is not enrolled", ENROL),
        StateFolder::Enrolled { device, .. } => ok("enrolment", format!("enrolled as {device}")),
    }
}

fn agent(agent: Agent) -> Finding {
    match agent {
        Agent::Answers => ok("agent", "runs and answers"),
        Agent::NeverStarted => fail(
            "agent",
            "has never run with this state folder",
            "start it: `systemctl enable --now skerry-agent`, or `skerry-agent run`",
        ),
        Agent::Silent => fail(
            "agent",
            "does not answer on its local API",
            "see why: `systemctl status skerry-agent` and `journalctl -u skerry-agent -p warning`",
        ),
    }
}

fn disk(disk: Disk) -> Finding {
    let free = format!("{} of {} free", size(disk.free_bytes), size(disk.total_bytes));
    let room = "make room: old logs and packages first, or set `--store-limit` and drop a model";
    if disk.read_only {
        let advice =
            "a file system that had errors is mounted read-only: see `dmesg`, and replace the card if it is worn out";
        fail("disk", "the file system of the state folder is read-only", advice)
    } else if disk.free_bytes < DISK_FAIL_BYTES {
        fail("disk", free, room)
    } else if disk.total_inodes > 0 && disk.free_inodes == 0 {
        fail(
            "disk",
            "no inode is left, so no file can be made",
            "remove files: many small ones",
        )
    } else if disk.free_bytes < DISK_WARN_BYTES {
        warn("disk", free, room)
    } else {
        ok("disk", free)
    }
}

fn memory(memory: Memory) -> Finding {
    let found = format!(
        "{} of {} available",
        size(memory.available_bytes),
        size(memory.total_bytes)
    );
    let advice = "stop what else runs on this device, or give it a smaller model: an update holds two at once";
    if memory.available_bytes < MEMORY_FAIL_BYTES {
        fail("memory", found, advice)
    } else if memory.available_bytes < MEMORY_WARN_BYTES {
        warn("memory", found, advice)
    } else {
        ok("memory", found)
    }
}

/// tract has hand-written kernels for these; without them it is right, and several times slower.
fn cpu(cpu: &Cpu) -> Finding {
    let fast: &[&str] = match cpu.architecture {
        "x86_64" => &["avx2", "fma"],
        // The kernel's name for NEON on 64-bit ARM.
        "aarch64" => &["asimd"],
        "arm" => &["neon"],
        _ => &[],
    };
    let missing: Vec<&str> = fast
        .iter()
        .copied()
        .filter(|wanted| !cpu.features.iter().any(|feature| feature == wanted))
        .collect();
    let name = cpu.architecture;
    if fast.is_empty() {
        let advice = "expect low speed, or use a processor of the x86-64 or ARM family";
        warn(
            "processor",
            format!("{name} has no fast kernels in this program"),
            advice,
        )
    } else if missing.is_empty() {
        ok("processor", format!("{name} with {}", fast.join(" and ")))
    } else {
        let found = format!("{name} lacks {}", missing.join(" and "));
        let advice = "inference is right but slow here; in a virtual machine pass the host's processor through";
        warn("processor", found, advice)
    }
}

fn names(broker: &Broker) -> Finding {
    let host = &broker.host;
    match &broker.lookup {
        _ if host.parse::<IpAddr>().is_ok() => ok("name", format!("{host} is an address, no name")),
        Lookup::Found(addresses) if !addresses.is_empty() => {
            let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
            ok("name", format!("{host} is {}", addresses.join(", ")))
        }
        Lookup::Found(_) => fail(
            "name",
            format!("{host} has no address"),
            "see that the name is right, and has an A or AAAA record that this device can see",
        ),
        Lookup::Failed(error) => fail(
            "name",
            format!("{host} cannot be looked up: {error}"),
            "see /etc/resolv.conf (`resolvectl status`) and that the name server can be reached",
        ),
    }
}

fn connection(broker: &Broker, reach: &Reach) -> Finding {
    let place = format!("{}:{}", broker.host, broker.port);
    match reach {
        Reach::Connected { took } if *took > SLOW => warn(
            "broker",
            format!("{place} answers after {} ms", took.as_millis()),
            "a slow line: updates take long, and nothing else is wrong",
        ),
        Reach::Connected { took } => ok("broker", format!("{place} answers after {} ms", took.as_millis())),
        Reach::Refused => fail(
            "broker",
            format!("{place} refuses the connection"),
            "the machine is there, nothing listens: see that the control plane runs and `[mqtt] embedded_bind` is not loopback",
        ),
        Reach::TimedOut { after } => fail(
            "broker",
            format!("{place} does not answer within {} s", after.as_secs()),
            "a firewall between here and there, or the machine is off: open the port, or check the route",
        ),
        Reach::Failed(error) => fail(
            "broker",
            format!("{place} cannot be reached: {error}"),
            "check this device's network: `ip route`, cable, radio",
        ),
    }
}

fn size(bytes: u64) -> String {
    const MIB: u64 = 1024 * 1024;
    match bytes / MIB {
        0 => format!("{} KiB", bytes / 1024),
        mib if mib < 10 * 1024 => format!("{mib} MiB"),
        mib => format!("{} GiB", mib / 1024),
    }
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
