use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::instance::VmState;

fn runtime() -> (tempfile::TempDir, RuntimeDir) {
    let temp = tempfile::tempdir().unwrap();
    let runtime = RuntimeDir::at(temp.path().join("rt")).unwrap();
    (temp, runtime)
}

#[test]
fn folders_are_private_and_removed_at_a_clean_end() {
    let (_temp, runtime) = runtime();
    let dir = runtime.create(Some("a"), "vm").unwrap();
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(runtime.path()), 0o700);
    assert_eq!(mode(&dir.path()), 0o700);
    let _listener = dir.bind_control().unwrap();
    assert_eq!(mode(&dir.path().join(CONTROL)), 0o600);
    assert!(runtime.connect_control("a").is_ok());
    let path = dir.path();
    drop(dir);
    assert!(!path.exists());
}

#[test]
fn a_name_in_use_is_refused_with_its_process() {
    let (_temp, runtime) = runtime();
    let _held = runtime.create(Some("a"), "vm").unwrap();
    let error = runtime.create(Some("a"), "vm").unwrap_err();
    assert_eq!(error.id, "vm.name-in-use");
    assert!(
        error.message.contains(&std::process::id().to_string()),
        "{error}"
    );
}

#[test]
fn names_are_generated_around_those_in_use() {
    let (_temp, runtime) = runtime();
    let first = runtime.create(None, "vm").unwrap();
    let second = runtime.create(None, "vm").unwrap();
    assert_eq!(
        (first.name(), second.name()),
        ("vm-1".into(), "vm-2".into())
    );
    drop(first);
    assert_eq!(runtime.create(None, "vm").unwrap().name(), "vm-1");
}

#[test]
fn what_a_killed_process_left_is_swept() {
    let (_temp, runtime) = runtime();
    let stale = runtime.path().join("dead");
    fs::create_dir(&stale).unwrap();
    fs::write(stale.join(PID), "999999\n").unwrap();
    fs::write(stale.join(CONTROL), "").unwrap();
    assert!(runtime.list().unwrap().is_empty());
    assert!(!stale.exists());
    fs::create_dir(&stale).unwrap();
    let dir = runtime.create(Some("dead"), "vm").unwrap();
    assert!(matches!(runtime.find("dead"), Ok(Entry::Live { .. })));
    drop(dir);
    assert_eq!(runtime.find("dead").unwrap_err().id, "vm.not-found");
}

#[test]
fn a_failed_vm_keeps_its_logs_until_the_name_is_used_again() {
    let (_temp, runtime) = runtime();
    let dir = runtime.create(Some("a"), "vm").unwrap();
    fs::write(dir.vmm_log(), "why").unwrap();
    let status = VmStatus {
        name: "a".into(),
        state: VmState::Failed,
        pid: 1,
        cpus: 1,
        memory_bytes: 4096,
        uptime_ms: 1,
        listen: None,
        migration: None,
        error: Some(failed("vm.crashed", "triple fault")),
    };
    dir.keep_failed(&status).unwrap();
    drop(dir);
    assert!(matches!(runtime.find("a"), Ok(Entry::Failed(s)) if *s == status));
    assert!(runtime.vmm_log("a").exists());
    let again = runtime.create(Some("a"), "vm").unwrap();
    assert!(!again.vmm_log().exists());
}

#[test]
fn a_renamed_vm_is_found_by_its_new_name_only() {
    let (_temp, runtime) = runtime();
    let dir = runtime.create(None, "incoming").unwrap();
    let _listener = dir.bind_control().unwrap();
    let other = runtime.create(Some("taken"), "vm").unwrap();
    assert_eq!(dir.rename("taken").unwrap_err().id, "vm.name-in-use");
    dir.rename("guest").unwrap();
    assert!(runtime.connect_control("guest").is_ok());
    assert!(runtime.find("incoming-1").is_err());
    drop((dir, other));
    assert!(runtime.list().unwrap().is_empty());
}

#[test]
fn names_that_leave_the_directory_are_refused() {
    for name in [
        "",
        ".",
        "..",
        "a/b",
        "-a",
        ".lock",
        "migrations",
        "a b",
        &"x".repeat(65),
    ] {
        assert_eq!(check_name(name).unwrap_err().id, "usage.name", "{name:?}");
    }
}

#[test]
fn sockets_work_in_folders_deeper_than_a_socket_address() {
    let (_temp, runtime) = runtime();
    let deep = runtime.path().join("x".repeat(100)).join("y".repeat(100));
    let runtime = RuntimeDir::at(deep).unwrap();
    let dir = runtime.create(Some("a"), "vm").unwrap();
    let _listener = dir.bind_console().unwrap();
    assert!(runtime.connect_console("a").is_ok());
}
