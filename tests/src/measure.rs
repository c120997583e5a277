//! What the benches share: their first lines, and percentiles.

use std::fs;

/// Processor, cores and how busy they are: the figures mean nothing without.
pub fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.unwrap_or("unknown").trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown");
    format!("{model}, {cores} cores, load before {load}")
}

/// A bench's first lines: the machine, the goal, and how to run it again.
pub fn introduction(bench: &str, goal: &str) -> String {
    let machine = machine();
    format!("machine: {machine}\ngoal: {goal}\ncommand: cargo bench -p skerry-system-tests --bench {bench}")
}

/// The value below which a `share` of the values is, by nearest rank; `values` need no order.
///
/// # Panics
/// When there are no values.
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// `p50 1.2 p95 3.4 max 5.6`, with the unit.
pub fn spread(values: &[f64], unit: &str) -> String {
    let at = |share| percentile(values, share);
    format!(
        "p50 {:.1} {unit}, p95 {:.1} {unit}, max {:.1} {unit} (n = {})",
        at(0.5),
        at(0.95),
        at(1.0),
        values.len()
    )
}
