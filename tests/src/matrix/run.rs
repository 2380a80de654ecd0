//! Executes the cells, several at a time: most of their time is waiting.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::board::{Board, Result};
use super::{Cell, Fault, Phase, Scene, phase, verdict};

/// Cells under way at a time; two cores carry them, for they mostly wait.
const WORKERS: usize = 6;

/// Executes every cell of the faults.
///
/// # Panics
/// When a worker's thread cannot be started.
pub fn all(faults: &[Fault]) -> Board {
    let mut results: Vec<Vec<Option<Result>>> = Vec::new();
    let mut jobs = Vec::new();
    for (row, fault) in faults.iter().enumerate() {
        let missing = (fault.lacks)();
        results.push(vec![None; phase::ALL.len()]);
        for (column, &phase) in phase::ALL.iter().enumerate() {
            match ((fault.expect)(phase), &missing) {
                (Cell::Not(why), _) => results[row][column] = Some(Result::Not(why)),
                (Cell::Run(_), Some(why)) => {
                    results[row][column] = Some(Result::Skipped(why.clone()));
                }
                (Cell::Run(_), None) => jobs.push((row, column)),
            }
        }
    }
    // What waits longest begins first.
    jobs.sort_by_key(|&(row, column)| !(faults[row].waits)(phase::ALL[column]));
    let jobs = Mutex::new(VecDeque::from(jobs));
    let results = Mutex::new(results);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let job = lock(&jobs).pop_front();
                    let Some((row, column)) = job else { return };
                    let result = cell(&faults[row], phase::ALL[column]);
                    lock(&results)[row][column] = Some(result);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut board = Board::default();
    for (fault, row) in faults.iter().zip(results) {
        let unknown = || Result::Failed("was not executed".into());
        let row = row.into_iter().map(|r| r.unwrap_or_else(unknown));
        board.add(fault.name, row.collect());
    }
    board
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Executes one cell on a thread that bears its name, so that a panic's message tells where.
fn cell(fault: &Fault, phase: Phase) -> Result {
    let Cell::Run(end) = (fault.expect)(phase) else {
        unreachable!("only cells that run are executed");
    };
    let name = format!("{} in {}", fault.name, phase.name());
    let began = std::time::Instant::now();
    let executed = thread::scope(|scope| {
        let thread = thread::Builder::new().name(name.clone());
        let run = || {
            catch_unwind(AssertUnwindSafe(|| {
                let mut scene = Scene::set(phase, |pair, files| (fault.set_up)(pair, files));
                (fault.strike)(&mut scene);
                verdict::check(scene, &end);
            }))
        };
        let handle = thread.spawn_scoped(scope, run).expect("thread of a cell");
        handle.join().and_then(|caught| caught)
    });
    println!("{name}: {:.1} s", began.elapsed().as_secs_f64());
    match executed {
        Ok(()) => Result::Passed,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Result::Failed(text.unwrap_or_else(|| "panicked".into()))
        }
    }
}
