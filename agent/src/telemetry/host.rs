//! The machine and the agent's process, read from `/proc` and the file system once per collection.
//!
//! What cannot be read is left out: telemetry is never a reason to fail.

use std::{fs, path::PathBuf};

use skerry_shared::otlp::{KeyValue, Metric, NumberValue};

use super::collect::{Span, gauge, point, sum};
use crate::proc_text::kib;

/// `/proc` counts CPU time in `USER_HZ`, which is 100 on every Linux we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads the host; CPU times are differences to the reading before.
pub(super) struct Host {
    state_dir: PathBuf,
    before: Cpu,
}

/// CPU times in ticks since the process or the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cpu {
    user: u64,
    system: u64,
    machine_idle: u64,
    machine_total: u64,
}

impl Host {
    pub(super) fn new(state_dir: PathBuf) -> Host {
        Host {
            state_dir,
            before: cpu().unwrap_or_default(),
        }
    }

    /// The metrics of the time since the last call.
    pub(super) fn collect(&mut self, span: Span) -> Vec<Metric> {
        let mut metrics = Vec::new();
        if let Some(now) = cpu() {
            metrics.extend(cpu_metrics(self.before, now, span));
            self.before = now;
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let bytes = [
            ("process.memory.usage", kib(&status, "VmRSS:")),
            ("system.memory.limit", kib(&memory, "MemTotal:")),
            ("system.memory.linux.available", kib(&memory, "MemAvailable:")),
        ];
        for (name, kib) in bytes {
            let value = kib.map(|kib| NumberValue::AsInt(kib as i64 * 1024));
            metrics.extend(value.map(|value| gauge(name, "By", vec![point(vec![], value, span)])));
        }
        if let Ok(disk) = rustix::fs::statvfs(&self.state_dir) {
            let state = |state, blocks: u64| {
                let attributes = vec![KeyValue::text("system.filesystem.state", state)];
                point(attributes, NumberValue::AsInt((blocks * disk.f_frsize) as i64), span)
            };
            let used = disk.f_blocks.saturating_sub(disk.f_bfree);
            let points = vec![state("used", used), state("free", disk.f_bavail)];
            metrics.push(gauge("system.filesystem.usage", "By", points));
        }
        metrics
    }
}

fn cpu_metrics(before: Cpu, now: Cpu, span: Span) -> Vec<Metric> {
    let mode = |mode, before: u64, now: u64| {
        let seconds = now.saturating_sub(before) as f64 / TICKS_PER_SECOND;
        let attributes = vec![KeyValue::text("cpu.mode", mode)];
        point(attributes, NumberValue::AsDouble(seconds), span)
    };
    let points = vec![
        mode("user", before.user, now.user),
        mode("system", before.system, now.system),
    ];
    let mut metrics = vec![sum("process.cpu.time", "s", points)];
    let total = now.machine_total.saturating_sub(before.machine_total);
    if total > 0 {
        let idle = now.machine_idle.saturating_sub(before.machine_idle).min(total);
        let busy = NumberValue::AsDouble((total - idle) as f64 / total as f64);
        metrics.push(gauge("system.cpu.utilization", "1", vec![point(vec![], busy, span)]));
    }
    metrics
}

fn cpu() -> Option<Cpu> {
    let process = fs::read_to_string("/proc/self/stat").ok()?;
    let machine = fs::read_to_string("/proc/stat").ok()?;
    let (user, system) = process_ticks(&process)?;
    let (machine_idle, machine_total) = machine_ticks(&machine)?;
    Some(Cpu {
        user,
        system,
        machine_idle,
        machine_total,
    })
}

/// `utime` and `stime` of `/proc/self/stat` (proc_pid_stat(5), fields 14 and 15).
fn process_ticks(text: &str) -> Option<(u64, u64)> {
    // The second field is a name in brackets that may itself contain spaces and brackets.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Idle and all ticks of `/proc/stat` (proc_stat(5)); guest time is part of user time already.
fn machine_ticks(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks = line.split_ascii_whitespace().take(8).map(|field| field.parse().ok());
    let ticks: Vec<u64> = ticks.collect::<Option<_>>()?;
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((idle, ticks.iter().sum()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_does_not_shift_the_fields() {
        let text = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 9 9 20 0 4 0";
        assert_eq!(process_ticks(text), Some((250, 50)));
    }

    #[test]
    fn waiting_for_disks_is_idle_time() {
        let text = "cpu  10 1 5 100 20 2 3 4 99 99\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(machine_ticks(text), Some((120, 145)));
    }

    #[test]
    fn this_machine_has_all_host_metrics() {
        let folder = tempfile::tempdir().unwrap();
        let span = Span { start_ns: 1, end_ns: 2 };
        let mut host = Host::new(folder.path().to_owned());
        // An earlier reading, so that time has passed for the machine.
        host.before = Cpu::default();
        let metrics = host.collect(span);
        let names: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        let expected = [
            "process.cpu.time",
            "system.cpu.utilization",
            "process.memory.usage",
            "system.memory.limit",
            "system.memory.linux.available",
            "system.filesystem.usage",
        ];
        assert_eq!(names, expected);
    }
}
