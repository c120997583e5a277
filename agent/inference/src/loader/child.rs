//! The process that loads: it gives up what it does not need before it looks at a model.
//!
//! Memory, time, threads and core dumps are limited by the kernel from here on, and only ever less. All that it reads comes through
//! its parent: a bundle of models alone can open no file and no connection once the engine is there. WASM steps live in files of
//! memory, so a bundle with steps keeps a few descriptors.

use std::{
    fs::File,
    io::{self, BufReader},
    os::unix::fs::FileExt,
    process::ExitCode,
    time::Instant,
};

use rustix::process::{Resource as Limited, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use skerry_shared::{
    bundle::{Resource, StageKind},
    error::chain,
};

use super::wire::{Job, Said, read_bytes, read_line, write_line};
use crate::{EngineChoice, EngineName, Engines, Figures, LoadedBundle, ProveError, Runtime, bundle::golden_vectors};

/// Addresses beyond the memory that may be written: the program itself, its libraries, what threads and WASM memories reserve.
const ADDRESSES_BYTES: u64 = 1024 * 1024 * 1024;
/// Open files of a bundle with steps: wasmtime keeps a step's initial memory in one, and a pipeline has few steps.
const STEP_DESCRIPTORS: u64 = 64;
/// The longest reason that is passed on.
const REASON_CHARACTERS_MAX: usize = 1000;

/// Loads what the parent says, under these limits, and says how that went. It is meant to be killed by what it loads.
pub fn run_child(memory_bytes: u64, cpu_seconds: u64) -> ExitCode {
    match serve(memory_bytes, cpu_seconds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            let _ = writeln!(io::stderr(), "cannot load apart: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn serve(memory_bytes: u64, cpu_seconds: u64) -> io::Result<()> {
    // A parent that is gone needs no answer. The kernel takes this process first when memory runs out.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let _best_effort = std::fs::write("/proc/self/oom_score_adj", "1000");
    limit(Limited::Core, 0)?;
    limit(Limited::Data, memory_bytes)?;
    limit(Limited::As, memory_bytes.saturating_add(ADDRESSES_BYTES))?;
    limit(Limited::Cpu, cpu_seconds)?;

    let mut stdin = BufReader::new(io::stdin());
    let mut stdout = io::stdout();
    let job: Option<Job> = read_line(&mut stdin)?;
    let job = job.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = File::open("/proc/self/status")?;
    let choice = match job.engine {
        EngineName::OnnxRuntime => EngineChoice::OnnxRuntime,
        EngineName::Tract | EngineName::TractPlain => EngineChoice::Tract,
    };
    let engines = Engines::find(choice, job.onnxruntime);
    if let Err(error) = engines.candidate(job.engine) {
        return write_line(&mut stdout, &Said::DoesNotLoad(shortened(chain(&error))));
    }
    let runtime = Runtime::with_engines(engines).map_err(io::Error::other)?;
    let has_steps = job
        .manifest
        .pipeline
        .stages
        .iter()
        .any(|stage| matches!(stage.kind, StageKind::Step { .. }));
    let (descriptors, file_bytes) = if has_steps {
        (STEP_DESCRIPTORS, memory_bytes)
    } else {
        (0, 0)
    };
    limit(Limited::Fsize, file_bytes)?;
    limit(Limited::Nofile, descriptors)?;
    limit(Limited::Nproc, 0)?;

    let before = Memory::read(&status)?;
    let mut read = |resource: &Resource| {
        write_line(&mut io::stdout(), &Said::Want(resource.name.clone()))?;
        read_bytes(&mut stdin)
    };
    let mut prove = || -> Result<Figures, ProveError> {
        let began = Instant::now();
        let bundle = LoadedBundle::load_with(&runtime, &job.manifest, job.engine, &mut read)?;
        let mut figures = Figures::loaded_in(began.elapsed());
        if let Some((vectors, tolerance)) = golden_vectors(&job.manifest, &mut read)? {
            bundle.check_golden(&vectors, tolerance)?;
            figures.timing = Some(bundle.time(&vectors));
        }
        Ok(figures)
    };
    let said = match prove() {
        Ok(figures) => Said::Proved(Figures {
            peak_memory_bytes: Some(Memory::read(&status)?.peak_since(&before)),
            ..figures
        }),
        Err(ProveError::Load(error)) => Said::DoesNotLoad(shortened(chain(&error))),
        Err(ProveError::Golden(error)) => Said::AnswersWrongly(shortened(chain(&error))),
    };
    write_line(&mut stdout, &said)
}

fn limit(resource: Limited, most: u64) -> io::Result<()> {
    let limits = Rlimit {
        current: Some(most),
        maximum: Some(most),
    };
    setrlimit(resource, limits).map_err(|error| {
        let error = io::Error::from(error);
        io::Error::new(
            error.kind(),
            format!("cannot limit this process ({resource:?}): {error}"),
        )
    })
}

fn shortened(mut reason: String) -> String {
    if let Some((end, _)) = reason.char_indices().nth(REASON_CHARACTERS_MAX) {
        reason.truncate(end);
        reason.push('…');
    }
    reason
}

/// Memory of this process, in bytes.
#[derive(Debug)]
struct Memory {
    /// The most that was ever resident, of all kinds.
    peak: u64,
    /// Written by this process.
    anonymous: u64,
    /// Clean pages of the program and its libraries, which the parent has too.
    file: u64,
}

impl Memory {
    fn read(status: &File) -> io::Result<Memory> {
        let mut text = [0; 8192];
        let length = status.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..length]);
        Ok(Memory::parse(&text))
    }

    fn parse(status: &str) -> Memory {
        let bytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
            kib.unwrap_or(0) * 1024
        };
        Memory {
            peak: bytes("VmHWM:"),
            anonymous: bytes("RssAnon:"),
            file: bytes("RssFile:"),
        }
    }

    /// The most that was written since `before`.
    fn peak_since(&self, before: &Memory) -> u64 {
        self.peak.saturating_sub(self.file).saturating_sub(before.anonymous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_what_was_written_and_not_the_program() {
        let before = Memory::parse("VmHWM:\t   9000 kB\nRssAnon:\t  1000 kB\nRssFile:\t  7000 kB\n");
        let after = Memory::parse("VmHWM:\t  30000 kB\nRssAnon:\t  5000 kB\nRssFile:\t  9000 kB\n");
        assert_eq!(after.peak_since(&before), 20_000 * 1024);
    }
}
