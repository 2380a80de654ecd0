//! The kept inputs of each target, and the bounded run over them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fs, io};

use crate::{Finding, Mutator, Target, Turn, check};

/// Folder of the kept inputs of `target`.
pub fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name)
}

/// The kept inputs of `target`, by name.
///
/// # Errors
/// When its folder cannot be read.
pub fn kept(target: &Target) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut inputs = Vec::new();
    for entry in fs::read_dir(folder(target))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        inputs.push((name, fs::read(entry.path())?));
    }
    inputs.sort();
    Ok(inputs)
}

/// How long mutations are tried, and which.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Decides about every mutation.
    pub seed: u64,
    /// Time for one target.
    pub time: Duration,
}

impl Bounds {
    /// Of the environment: `VMM_FUZZ_SEED` and `VMM_FUZZ_SECONDS`; where they are absent, always the
    /// same seed, so that a test fails for who broke something, and two seconds.
    pub fn of_environment() -> Self {
        let number = |name, default| {
            let text = env::var(name).ok();
            text.and_then(|text| text.parse().ok()).unwrap_or(default)
        };
        Self {
            seed: number("VMM_FUZZ_SEED", 1),
            time: Duration::from_secs(number("VMM_FUZZ_SECONDS", 2)),
        }
    }
}

/// What a bounded run did.
#[derive(Debug, Clone, Copy)]
pub struct Tried {
    /// Inputs of the corpus.
    pub kept: usize,
    /// Mutations.
    pub mutations: u64,
}

/// Replays the corpus of `target` and its seeds, then tries mutations of them until the time is over.
///
/// # Errors
/// What is wrong, and with which input: it was written to a file that the message names.
pub fn run(target: &Target, bounds: Bounds) -> Result<Tried, String> {
    let turn = Turn::take();
    let kept = kept(target).map_err(|e| format!("{}: {e}", folder(target).display()))?;
    let mut inputs = (target.seeds)();
    for (name, input) in &kept {
        check(&turn, target, input).map_err(|found| format!("kept input {name}: {found}"))?;
    }
    for seed in &inputs {
        check(&turn, target, seed).map_err(|found| failed(target, seed, "a seed", &found))?;
    }
    let tried_before = kept.len();
    inputs.extend(kept.into_iter().map(|(_, input)| input));
    let began = Instant::now();
    let mut number = 0;
    while began.elapsed() < bounds.time {
        let input = Mutator::new(bounds.seed, number).mutate(&inputs, target.words, target.longest);
        check(&turn, target, &input).map_err(|found| {
            let which = format!("mutation {number} of seed {}", bounds.seed);
            failed(target, &input, &which, &found)
        })?;
        number += 1;
    }
    Ok(Tried {
        kept: tried_before,
        mutations: number,
    })
}

fn failed(target: &Target, input: &[u8], which: &str, found: &Finding) -> String {
    let name = format!("vmm-fuzz-{}-{}", target.name, &digest(input)[..16]);
    let path = env::temp_dir().join(name);
    let written = match fs::write(&path, input) {
        Ok(()) => format!(
            "again: cargo run -p fuzz --bin fuzz-input -- {} {}",
            target.name,
            path.display()
        ),
        Err(e) => format!("cannot be written to {}: {e}", path.display()),
    };
    format!("target {}, {which}: {found}\n{written}", target.name)
}

/// Name of an input in the corpus.
pub fn digest(input: &[u8]) -> String {
    blake3::hash(input).to_hex()[..40].to_owned()
}
