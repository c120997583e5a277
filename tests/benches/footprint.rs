//! What an idle agent costs a device: memory, threads and processor time, with the demo's model loaded and telemetry on.
//!
//! `cargo bench -p skerry-system-tests --bench footprint [-- [--seconds N] [PATH OF skerry-agent]]`. It measures the small
//! binary, which `cargo build --release -p skerry-agent` makes and which it looks for beside the program under test, and
//! `skerry agent` for comparison. Memory is PSS at the end, from `smaps_rollup`; processor time is that of all threads over
//! the time after a warm-up of ten seconds. Goals: PSS below 25 MB, less than 1 % of a core.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use skerry_system_tests::{Device, Fleet, fixtures::test_windows, measure::introduction};

const PROGRAM: &str = env!("CARGO_BIN_EXE_skerry-under-test");
const WARM_UP: Duration = Duration::from_secs(10);
const SECONDS: u64 = 30;
/// `USER_HZ`: a part of the Linux ABI since 2.6 and the unit of `/proc/PID/stat`.
const TICKS_PER_SECOND: f64 = 100.0;

fn main() -> Result<()> {
    let (agent, window) = arguments()?;
    let mut out = std::io::stdout();
    let goal = "PSS below 25 MB and less than 1 % of a core, idle";
    writeln!(out, "{}", introduction("footprint", goal))?;

    let fleet = Fleet::start(PROGRAM)?;
    let programs = [
        ("skerry-agent", vec![agent.into()]),
        ("skerry agent", vec![PROGRAM.into(), "agent".into()]),
    ];
    let mut devices = Vec::new();
    for (position, (name, agent)) in programs.into_iter().enumerate() {
        let mut device = fleet.enroll(&format!("dev-{position}"))?;
        // Nothing but the defaults: telemetry every minute.
        (device.arguments, device.agent) = (Vec::new(), agent);
        device.start()?;
        devices.push((name, device));
    }
    fleet.release(1)?;
    fleet.deploy(1)?;
    fleet.release(2)?;
    fleet.deploy(2)?;
    for (_, device) in &devices {
        // What has answered has its buffers and instances.
        for window in &test_windows()? {
            device.infer(window)?;
        }
    }
    thread::sleep(WARM_UP);
    let began = Instant::now();
    let before = devices.iter().map(|(_, device)| cpu_seconds(pid(device)?));
    let before: Vec<f64> = before.collect::<Result<_>>()?;
    thread::sleep(window);
    for ((name, device), before) in devices.iter().zip(before) {
        let pid = pid(device)?;
        let (used, elapsed) = (cpu_seconds(pid)? - before, began.elapsed().as_secs_f64());
        let memory = Memory::of(pid)?;
        writeln!(out, "{name}, {} bytes on disk:", fs::metadata(&device.agent[0])?.len())?;
        writeln!(
            out,
            "  PSS {:.1} MB, RSS {:.1} MB, private {:.1} MB (of it {:.1} MB written), {} threads",
            memory.pss,
            memory.rss,
            memory.private,
            memory.private_dirty,
            threads(pid)?
        )?;
        writeln!(
            out,
            "  CPU {used:.2} s of {elapsed:.0} s: {:.2} % of a core",
            100.0 * used / elapsed
        )?;
    }
    Ok(())
}

fn arguments() -> Result<(PathBuf, Duration)> {
    let (mut agent, mut seconds) = (Path::new(PROGRAM).with_file_name("skerry-agent"), SECONDS);
    // `cargo bench` adds `--bench`.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => seconds = arguments.next().context("--seconds needs a number")?.parse()?,
            path => agent = path.into(),
        }
    }
    if !agent.is_file() {
        bail!(
            "there is no agent at {}; build it with `cargo build --release -p skerry-agent`, or give its path",
            agent.display()
        );
    }
    Ok((agent, Duration::from_secs(seconds)))
}

fn pid(device: &Device) -> Result<u32> {
    Ok(device.process().context("the agent runs")?.id())
}

fn threads(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/task"))?.count())
}

/// `utime` and `stime`, fields 14 and 15 of proc_pid_stat(5).
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name, in parentheses, and may contain anything.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND)
}

/// Megabytes (10⁶ bytes).
struct Memory {
    pss: f64,
    rss: f64,
    private: f64,
    private_dirty: f64,
}

impl Memory {
    fn of(pid: u32) -> Result<Memory> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let field = |name: &str| -> Result<f64> {
            let line = rollup
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib: f64 = line
                .with_context(|| format!("no {name}"))?
                .trim()
                .trim_end_matches(" kB")
                .parse()?;
            Ok(kib * 1024.0 / 1e6)
        };
        let private_dirty = field("Private_Dirty")?;
        Ok(Memory {
            pss: field("Pss")?,
            rss: field("Rss")?,
            private: private_dirty + field("Private_Clean")?,
            private_dirty,
        })
    }
}
