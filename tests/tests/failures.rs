//! `tests/failures.sh`, which tells at the end of a run what its failed tests printed.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tests::process::{Outcome, Process};

/// What the script tells of a run's output.
fn told_of(log: &str) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("test.log");
    std::fs::write(&file, log).unwrap();
    let mut script = Command::new("bash");
    script
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("failures.sh"))
        .arg(&file);
    let started = Process::start(script, dir.path()).unwrap();
    started.finish(Duration::from_secs(60)).unwrap().success()
}

/// As cargo prints it of a test binary with one right test and one wrong one, which printed `lines`.
fn run_with_a_failure(lines: &[&str]) -> String {
    format!(
        "running 2 tests\ntest right ... ok\ntest wrong ... FAILED\n\nsuccesses:\n\n---- right stdout ----\nfine\n\n\
         successes:\n    right\n\nfailures:\n\n---- wrong stdout ----\n{}\n\n\nfailures:\n    wrong\n\n\
         test result: FAILED. 1 passed; 1 failed; 0 ignored\n",
        lines.join("\n")
    )
}

#[test]
fn only_what_failed_is_told_again() {
    let told = told_of(&format!(
        "{}{}",
        run_with_a_failure(&["the reason"]),
        run_with_a_failure(&["another reason"])
    ));
    assert_eq!(told.stdout.matches("---- wrong stdout ----").count(), 2);
    for reason in ["\nthe reason\n", "\nanother reason\n"] {
        assert!(told.stdout.contains(reason), "{told}");
    }
    assert!(!told.stdout.contains("fine"), "{told}");
}

#[test]
fn a_long_failure_is_told_by_its_beginning_and_its_end() {
    let mut lines: Vec<_> = (0..500).map(|n| format!("line {n}")).collect();
    lines[100] = "scenario: FAILED: for a reason".to_owned();
    let mut lines: Vec<_> = lines.iter().map(String::as_str).collect();
    let wide = "x".repeat(10_000);
    lines.push(&wide);
    let told = told_of(&run_with_a_failure(&lines));
    for kept in [
        "line 0\n",
        "FAILED: for a reason\n",
        "line 499\n",
        "lines are left out",
    ] {
        assert!(told.stdout.contains(kept), "{kept}: {told}");
    }
    assert!(!told.stdout.contains("line 250\n"), "{told}");
    assert!(told.stdout.len() < 2000, "{told}");
}
