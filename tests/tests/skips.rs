//! `tests/skips.sh`, which says what a run skipped and, under `CI=true`, what it must not skip here.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use tests::process::{Outcome, Process};

/// All of x86-64-v3.
const V3: &str =
    "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 abm avx avx2 bmi1 bmi2 f16c fma movbe xsave";

/// A machine as the script sees it: the module of its KVM and the features of its CPU.
fn machine(kvm: &str, flags: &str) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("sys/module").join(kvm)).unwrap();
    std::fs::create_dir(root.path().join("proc")).unwrap();
    let cpu = format!("processor\t: 0\nflags\t\t: {flags}\n\n");
    std::fs::write(root.path().join("proc/cpuinfo"), cpu.repeat(2)).unwrap();
    root
}

/// The script's verdict on a run in which the test `suite::one` was skipped for each of the reasons.
fn judged(reasons: &[&str], ci: Option<&str>, root: &Path) -> Outcome {
    let log = root.join("test.log");
    let mut text = "running 3 tests\n\n---- suite::one stdout ----\n".to_owned();
    for reason in reasons {
        // As the test command knows it, but not for this run's own log.
        text.push_str(&["skipped", reason].join(": "));
        text.push('\n');
    }
    text.push_str("\ntest result: ok. 3 passed; 0 failed; 0 ignored\n");
    std::fs::write(&log, text).unwrap();
    let mut script = Command::new("bash");
    script
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("skips.sh"))
        .args([&log, root]);
    match ci {
        Some(value) => script.env("CI", value),
        None => script.env_remove("CI"),
    };
    let started = Process::start(script, root).unwrap();
    started.finish(std::time::Duration::from_secs(60)).unwrap()
}

#[test]
fn what_the_set_up_should_have_brought_fails_ci_with_the_reason() {
    let root = machine("kvm_pvm", V3);
    let reasons = ["there is no QEMU to compare with: [..]", "no /dev/kvm"];
    let told = judged(&reasons, Some("true"), root.path()).expect_code(1);
    for reason in reasons {
        let error = format!("error: suite::one must not be skipped here: {reason}");
        assert!(told.stderr.contains(&error), "{told}");
    }
    // A developer's machine may lack what it likes.
    let told = judged(&reasons, None, root.path()).success();
    assert!(
        told.stdout.contains("skipped 1 times: no /dev/kvm"),
        "{told}"
    );
}

#[test]
fn a_run_that_skips_nothing_passes() {
    let root = machine("kvm_amd", V3);
    let told = judged(&[], Some("true"), root.path()).success();
    assert_eq!(told.stdout, "", "{told}");
}

#[test]
fn skips_are_expected_only_of_machines_that_are_like_that() {
    let level = |level: &str| format!("KVM on this machine does not offer x86-64-{level}");
    let (v3, v4) = (level("v3"), level("v4"));
    let stock = "this host's KVM runs stock kernels";
    let avx = "this CPU has no AVX";
    let (pvm, amd, old) = (
        machine("kvm_pvm", V3),
        machine("kvm_amd", V3),
        machine("kvm_intel", "cx16 popcnt sse4_1 sse4_2 ssse3"),
    );
    let cases = [
        (&pvm, v3.as_str(), 0),
        (&amd, v3.as_str(), 1),
        (&amd, v4.as_str(), 0),
        (&old, v3.as_str(), 0),
        (&amd, stock, 0),
        (&pvm, stock, 1),
        (&old, avx, 0),
        (&amd, avx, 1),
        // The whole reason counts.
        (&amd, "this host's KVM runs stock kernels, almost", 1),
    ];
    for (machine, reason, code) in cases {
        let told = judged(&[reason, reason], Some("true"), machine.path());
        let told = told.expect_code(code);
        assert!(told.stdout.contains("skipped 2 times: "), "{told}");
    }
}
