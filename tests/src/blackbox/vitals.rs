//! What a process holds of its host, sampled so that growth can be told from noise.

use std::fs;

use super::leftovers;

/// What a process holds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vitals {
    /// Resident memory that is its own in KiB: guest memory is shared and does not count.
    pub memory_kib: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads, those that answer requests aside.
    pub threads: u64,
}

impl Vitals {
    /// Of the process `pid`.
    ///
    /// # Panics
    /// When there is no such process.
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
                .unwrap_or_else(|| panic!("no {name} in {status}"))
        };
        let threads = leftovers::threads(pid);
        let threads = threads.iter().filter(|name| *name != leftovers::ANSWERING);
        Self {
            memory_kib: field("RssAnon:"),
            descriptors: leftovers::open_files(pid).len() as u64,
            threads: threads.count() as u64,
        }
    }
}

/// Samples over time, of one process or of those that follow each other.
#[derive(Debug, Default)]
pub struct Course {
    samples: Vec<Vitals>,
}

/// Samples that are compared at either end.
const WINDOW: usize = 15;
/// Memory that an allocator may keep more or less of.
const SLACK_KIB: u64 = 512;

impl Course {
    /// Adds a sample.
    pub fn add(&mut self, vitals: Vitals) {
        self.samples.push(vitals);
    }

    /// Compares the last samples with those after the first `warm_up`, like with like.
    ///
    /// # Panics
    /// When anything has grown.
    #[track_caller]
    pub fn has_not_grown(&self, warm_up: usize) {
        let counted = &self.samples[warm_up..];
        assert!(counted.len() >= 2 * WINDOW, "too few samples to compare");
        let early = median(&counted[..WINDOW]);
        let late = median(&counted[counted.len() - WINDOW..]);
        println!("early {early:?}\nlate  {late:?}");
        assert!(
            late.descriptors <= early.descriptors && late.threads <= early.threads,
            "{early:?} became {late:?}"
        );
        assert!(
            late.memory_kib <= early.memory_kib + early.memory_kib / 20 + SLACK_KIB,
            "{early:?} became {late:?}"
        );
    }
}

fn median(samples: &[Vitals]) -> Vitals {
    let middle = |of: fn(&Vitals) -> u64| {
        let mut values: Vec<u64> = samples.iter().map(of).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    Vitals {
        memory_kib: middle(|v| v.memory_kib),
        descriptors: middle(|v| v.descriptors),
        threads: middle(|v| v.threads),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(descriptors: impl Fn(u64) -> u64) -> Course {
        let samples = (0..50).map(|n| Vitals {
            memory_kib: 4000 + n % 7 * 20,
            descriptors: descriptors(n),
            threads: 9,
        });
        Course {
            samples: samples.collect(),
        }
    }

    #[test]
    fn noise_is_no_growth() {
        course(|n| if n == 20 { 31 } else { 30 }).has_not_grown(5);
    }

    #[test]
    #[should_panic(expected = "became")]
    fn a_descriptor_left_open_now_and_then_is_growth() {
        course(|n| 30 + n / 20).has_not_grown(5);
    }
}
