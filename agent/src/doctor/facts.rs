//! The look at the world: clock, folder, disk, memory, processor, network. It judges nothing.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs},
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::checks::{Agent, Broker, Cpu, Disk, Facts, Lookup, Memory, Reach, StateFolder};
use crate::{disk, enroll::Identity, proc_text, record::Keeper};

/// Longer than any round trip; whoever runs this waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn collect(state_dir: &Path) -> Facts {
    let (state, identity) = state(state_dir);
    Facts {
        now_ms: system_ms(),
        state,
        disk: space(state_dir),
        memory: memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        cpu: Cpu {
            architecture: std::env::consts::ARCH,
            features: cpu_features(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        },
        broker: identity.map(|identity| broker(&identity.mqtt.host, identity.mqtt.port)),
        agent: agent(state_dir),
    }
}

/// The system's clock as it is: whether it is right is the question. Before 1970 it says zero.
fn system_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since_1970.as_millis() as u64
}

fn state(state_dir: &Path) -> (StateFolder, Option<Identity>) {
    match fs::read_dir(state_dir) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return (StateFolder::Missing, None),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return (StateFolder::Forbidden, None),
        Err(error) => return (StateFolder::Damaged(error.to_string()), None),
    }
    match fs::File::open(state_dir.join("identity.json")) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return (StateFolder::NotEnrolled, None),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return (StateFolder::Forbidden, None),
        Err(error) => return (StateFolder::Damaged(error.to_string()), None),
    }
    let identity = match Identity::read(&disk::Disk::real(), state_dir) {
        Ok(identity) => identity,
        Err(error) => return (StateFolder::Damaged(format!("{error:#}")), None),
    };
    let state = match Keeper::open(&disk::Disk::real(), state_dir) {
        Ok(keeper) => StateFolder::Enrolled {
            device: identity.device_id.to_string(),
            time_floor_ms: keeper.get().time_floor_ms,
        },
        Err(error) => StateFolder::Damaged(format!("{:#}", anyhow::Error::new(error))),
    };
    (state, Some(identity))
}

fn space(state_dir: &Path) -> Option<Disk> {
    // A folder that is not there yet will be made on the file system of its parent.
    let place = state_dir.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(place).ok()?;
    Some(Disk {
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_inodes: stat.f_favail,
        total_inodes: stat.f_files,
        read_only: stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
    })
}

fn memory(meminfo: &str) -> Option<Memory> {
    let bytes = |name: &str| Some(proc_text::kib(meminfo, name)? * 1024);
    Some(Memory {
        available_bytes: bytes("MemAvailable:")?,
        total_bytes: bytes("MemTotal:")?,
    })
}

/// The `flags` (x86) or `Features` (ARM) of the first processor.
fn cpu_features(cpuinfo: &str) -> Vec<String> {
    let line = cpuinfo.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        matches!(name.trim(), "flags" | "Features").then_some(value)
    });
    let words = line.unwrap_or_default().split_ascii_whitespace();
    words.map(str::to_owned).collect()
}

fn broker(host: &str, port: u16) -> Broker {
    let lookup = match (host, port).to_socket_addrs() {
        Ok(addresses) => Lookup::Found(addresses.map(|address| address.ip()).collect()),
        Err(error) => Lookup::Failed(error.to_string()),
    };
    let reach = match &lookup {
        Lookup::Found(addresses) => reach(addresses, port),
        Lookup::Failed(_) => None,
    };
    Broker {
        host: host.to_owned(),
        port,
        lookup,
        reach,
    }
}

/// The first address that answers, or how the last one failed.
fn reach(addresses: &[IpAddr], port: u16) -> Option<Reach> {
    let mut last = None;
    for address in addresses {
        let began = Instant::now();
        let reached = match TcpStream::connect_timeout(&SocketAddr::new(*address, port), PATIENCE) {
            Ok(_) => return Some(Reach::Connected { took: began.elapsed() }),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Reach::Refused,
            Err(error) if error.kind() == ErrorKind::TimedOut => Reach::TimedOut { after: PATIENCE },
            Err(error) => Reach::Failed(error.to_string()),
        };
        last = Some(reached);
    }
    last
}

fn agent(state_dir: &Path) -> Agent {
    let Ok(address) = fs::read_to_string(state_dir.join("inference-address")) else {
        return Agent::NeverStarted;
    };
    let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE));
    let http: ureq::Agent = config.build().into();
    match http.get(format!("http://{}/v2/health/live", address.trim())).call() {
        Ok(_) => Agent::Answers,
        Err(_) => Agent::Silent,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn both_kinds_of_processors_name_their_features() {
        let x86 = "processor\t: 0\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\nflags\t\t: none\n";
        assert_eq!(cpu_features(x86), ["fpu", "avx2", "fma"]);
        assert_eq!(cpu_features("Features\t: fp asimd\n"), ["fp", "asimd"]);
        assert!(cpu_features("").is_empty());
    }

    #[test]
    fn memory_is_read_by_the_kernels_names() {
        let memory = memory("MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:   42 kB\n").unwrap();
        assert_eq!((memory.total_bytes, memory.available_bytes), (102_400, 43_008));
    }

    #[test]
    fn a_listening_and_a_closed_port_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(matches!(broker("127.0.0.1", port).reach, Some(Reach::Connected { .. })));
        drop(listener);
        assert_eq!(broker("127.0.0.1", port).reach, Some(Reach::Refused));
    }

    #[test]
    fn folders_that_are_missing_empty_or_damaged_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(state(&folder.path().join("none")).0, StateFolder::Missing);
        assert_eq!(state(folder.path()).0, StateFolder::NotEnrolled);
        fs::write(folder.path().join("identity.json"), "{").unwrap();
        assert!(matches!(state(folder.path()).0, StateFolder::Damaged(_)));
        assert_eq!(agent(folder.path()), Agent::NeverStarted);
    }
}
