use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::error::failed;
use super::files::{CONTROL, PID};
use super::root::LOCK;
use super::*;
use crate::instance::{Ending, VmEnd, VmState, VmStatus};
use crate::state_dir::MIGRATIONS;

fn runtime() -> (tempfile::TempDir, RuntimeDir) {
    let temp = tempfile::tempdir().unwrap();
    let runtime = RuntimeDir::at(temp.path().join("rt")).unwrap();
    (temp, runtime)
}

fn last(name: &str) -> VmStatus {
    VmStatus {
        name: name.into(),
        state: VmState::Failed,
        pid: 1,
        cpus: 1,
        memory_bytes: 4096,
        disks: Vec::new(),
        uptime_ms: 1,
        listen: None,
        migration: None,
        error: Some(failed("vm.crashed", "triple fault")),
        end: Some(VmEnd::new(Ending::Crashed)),
        failed_migrations: 0,
        last_failure: None,
    }
}

fn end_of(runtime: &RuntimeDir, name: &str) -> VmStatus {
    match runtime.find(name) {
        Ok(Entry::Ended(status)) => *status,
        other => panic!("{other:?}"),
    }
}

/// As a process leaves it that is killed.
fn killed(runtime: &RuntimeDir, name: &str) -> PathBuf {
    let dir = runtime.create(Some(name), "vm").unwrap();
    let (from, to) = (dir.path(), runtime.path().join("aside"));
    fs::write(dir.vmm_log(), "log").unwrap();
    drop(dir.bind_control().unwrap());
    // The handle removes nothing at another place.
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(&from).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), to.join(entry.file_name())).unwrap();
    }
    drop(dir);
    assert!(!from.exists());
    fs::rename(&to, &from).unwrap();
    from
}

/// Every path below `root` with what is in it.
fn everything(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        if path.ends_with(LOCK) || path.ends_with(MIGRATIONS) {
            continue;
        } else if meta.is_dir() {
            found.push((path.clone(), Vec::new()));
            found.extend(everything(&path));
        } else if meta.is_file() {
            found.push((path.clone(), fs::read(&path).unwrap()));
        } else {
            found.push((path, Vec::new()));
        }
    }
    found.sort();
    found
}

#[test]
fn folders_are_private_and_removed_where_nothing_is_to_be_kept() {
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
    assert_eq!(runtime.find("a").unwrap_err().id, "vm.not-found");
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
fn a_name_is_free_when_its_folder_is_closed_though_the_process_lives_on() {
    let (_temp, runtime) = runtime();
    let dir = runtime.create(Some("a"), "vm").unwrap();
    let _control = dir.bind_control().unwrap();
    let last = last("a");
    dir.close_as(&last);
    assert_eq!(end_of(&runtime, "a"), last);
    let again = runtime.create(Some("a"), "vm").unwrap();
    // What the first one does now is no longer its own matter.
    dir.close();
    drop(dir);
    assert!(matches!(runtime.find("a"), Ok(Entry::Live { .. })));
    drop(again);
}

#[test]
fn names_are_generated_around_those_that_mean_something() {
    let (_temp, runtime) = runtime();
    let first = runtime.create(None, "vm").unwrap();
    let second = runtime.create(None, "vm").unwrap();
    assert_eq!(
        (first.name(), second.name()),
        ("vm-1".into(), "vm-2".into())
    );
    drop(first);
    let third = runtime.create(None, "vm").unwrap();
    assert_eq!(third.name(), "vm-1");
    third.close_as(&last("vm-1"));
    fs::create_dir(runtime.path().join("vm-3")).unwrap();
    assert_eq!(runtime.create(None, "vm").unwrap().name(), "vm-4");
}

#[test]
fn an_end_is_kept_with_its_logs_until_the_name_is_used_again() {
    let (_temp, runtime) = runtime();
    let dir = runtime.create(Some("a"), "vm").unwrap();
    let _sockets = (dir.bind_control().unwrap(), dir.bind_console().unwrap());
    fs::write(dir.vmm_log(), "why").unwrap();
    let last = last("a");
    dir.close_as(&last);
    assert_eq!(end_of(&runtime, "a"), last);
    let left: Vec<_> = everything(runtime.path())
        .into_iter()
        .map(|(path, _)| path.file_name().unwrap().to_owned())
        .collect();
    assert_eq!(left, ["a", ".vmm", "end.json", "pid", "vmm.log"]);
    let again = runtime.create(Some("a"), "vm").unwrap();
    assert!(!again.vmm_log().exists());
}

#[test]
fn a_forgotten_end_is_gone_and_a_live_vm_is_not_forgotten() {
    let (_temp, runtime) = runtime();
    let dir = runtime.create(Some("a"), "vm").unwrap();
    assert_eq!(runtime.forget("a").unwrap_err().id, "vm.name-in-use");
    dir.close_as(&last("a"));
    assert_eq!(runtime.forget("a").unwrap(), Forgotten::Wholly);
    assert_eq!(runtime.forget("a").unwrap_err().id, "vm.not-found");
    assert!(everything(runtime.path()).is_empty());
}

#[test]
fn a_process_that_was_killed_is_told_as_that() {
    let (_temp, runtime) = runtime();
    let path = killed(&runtime, "dead");
    let status = end_of(&runtime, "dead");
    assert_eq!(status.state, VmState::Failed);
    assert_eq!(status.pid, std::process::id());
    assert_eq!(status.end.as_ref().unwrap().how, Ending::Killed);
    assert_eq!(status.error.as_ref().unwrap().id, "vm.killed");
    assert!(!path.join(CONTROL).exists());
    assert!(path.join("vmm.log").exists());
    // When that was found out does not change.
    assert_eq!(end_of(&runtime, "dead"), status);
    let listed = runtime.list().unwrap();
    assert!(matches!(&listed[..], [(_, Entry::Ended(s))] if **s == status));
    // Who says that it did it is believed only for what is not recorded.
    runtime.note_killed("dead", "stop --force").unwrap();
    assert_eq!(end_of(&runtime, "dead"), status);
    killed(&runtime, "other");
    runtime.note_killed("other", "stop --force").unwrap();
    let end = end_of(&runtime, "other").end.unwrap();
    assert_eq!(
        (end.how, end.by.as_deref()),
        (Ending::Killed, Some("stop --force"))
    );
}

#[test]
fn a_record_that_cannot_be_read_is_told_as_that() {
    let (_temp, runtime) = runtime();
    let texts: [&[u8]; 4] = [
        b"",
        b"{\"name\":\"a\"",
        &vec![b'['; 300 << 10],
        // It does not say that it has ended.
        br#"{"name":"a","state":"running","pid":1,"cpus":1,"memory_bytes":1,"uptime_ms":1}"#,
    ];
    for text in texts {
        runtime
            .create(Some("a"), "vm")
            .unwrap()
            .close_as(&last("a"));
        fs::write(runtime.path().join("a/end.json"), text).unwrap();
        let status = end_of(&runtime, "a");
        assert_eq!(status.end.unwrap().how, Ending::Unknown);
        assert_eq!(status.error.unwrap().id, "vm.end-record");
    }
    // Nor is one believed that somebody linked there.
    fs::remove_file(runtime.path().join("a/end.json")).unwrap();
    symlink("/etc/passwd", runtime.path().join("a/end.json")).unwrap();
    assert_eq!(end_of(&runtime, "a").end.unwrap().how, Ending::Killed);
}

#[test]
fn what_version_0_1_left_is_known_as_ours() {
    let (_temp, runtime) = runtime();
    for name in ["failed", "killed"] {
        let path = runtime.path().join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join(PID), "999999\n").unwrap();
        fs::write(path.join("serial.log"), "").unwrap();
    }
    let mut status = serde_json::to_value(last("failed")).unwrap();
    status.as_object_mut().unwrap().remove("end");
    let record = runtime.path().join("failed/failed.json");
    fs::write(record, status.to_string()).unwrap();
    assert_eq!(end_of(&runtime, "failed").error.unwrap().id, "vm.crashed");
    assert_eq!(end_of(&runtime, "killed").error.unwrap().id, "vm.killed");
    for name in ["failed", "killed"] {
        assert_eq!(runtime.forget(name).unwrap(), Forgotten::Wholly);
    }
}

#[test]
fn what_is_not_ours_is_left_alone_whatever_is_asked() {
    let (temp, runtime) = runtime();
    let root = runtime.path().to_owned();
    let elsewhere = temp.path().join("elsewhere");
    fs::create_dir_all(elsewhere.join("deep")).unwrap();
    fs::write(elsewhere.join(PID), "1\n").unwrap();
    // A folder of photos; an empty one; a file; links; what looks a little like ours.
    fs::create_dir_all(root.join("photos/2019")).unwrap();
    fs::write(root.join("photos/2019/a.jpg"), "x").unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("file"), "x").unwrap();
    symlink(&elsewhere, root.join("link")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    for (name, pid) in [("more", "1\n"), ("text", "one\n")] {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join(PID), pid).unwrap();
    }
    fs::write(root.join("more/thesis.tex"), "x").unwrap();
    let before = everything(temp.path());
    assert_eq!(before.len(), 16, "{before:?}");

    assert!(runtime.list().unwrap().is_empty());
    for name in [
        "photos", "empty", "file", "link", "dangling", "more", "text",
    ] {
        assert_eq!(runtime.find(name).unwrap_err().id, "vm.not-found", "{name}");
        let refused = runtime.create(Some(name), "vm").unwrap_err();
        assert_eq!(refused.id, "vm.foreign-folder", "{name}");
        assert!(refused.message.contains(name), "{refused}");
        assert_eq!(runtime.forget(name).unwrap_err().id, "vm.not-found");
        let other = runtime.create(Some("other"), "vm").unwrap();
        assert_eq!(other.rename(name).unwrap_err().id, "vm.foreign-folder");
        drop(other);
        assert_eq!(everything(temp.path()), before, "{name}");
    }
}

#[test]
fn what_somebody_put_in_a_folder_of_ours_stays() {
    let (_temp, runtime) = runtime();
    let note = |name: &str| runtime.path().join(name).join("note");
    // Where its process ends ...
    let dir = runtime.create(Some("a"), "vm").unwrap();
    fs::create_dir(note("a")).unwrap();
    drop(dir);
    assert_eq!(everything(runtime.path()).len(), 2);
    // ... where its name is used again: nothing goes then ...
    runtime
        .create(Some("b"), "vm")
        .unwrap()
        .close_as(&last("b"));
    fs::write(note("b"), "x").unwrap();
    let refused = runtime.create(Some("b"), "vm").unwrap_err();
    assert_eq!(refused.id, "vm.foreign-folder");
    assert!(refused.message.contains("note"), "{refused}");
    assert_eq!(end_of(&runtime, "b").state, VmState::Failed);
    // ... and where it is forgotten.
    assert_eq!(runtime.forget("b").unwrap(), Forgotten::But("note".into()));
    let left = everything(&runtime.path().join("b"));
    assert_eq!(left, [(note("b"), b"x".to_vec())]);
    assert!(runtime.list().unwrap().is_empty());
}

#[test]
fn a_live_vm_whose_files_were_cleaned_away_keeps_its_name() {
    let (_temp, runtime) = runtime();
    let dir = runtime.create(Some("a"), "vm").unwrap();
    let control = dir.bind_control().unwrap();
    let _console = dir.bind_console().unwrap();
    let files = [PID, ".vmm"];
    for cleaned in 1..=files.len() {
        for file in &files[..cleaned] {
            let _ = fs::remove_file(dir.path().join(file));
        }
        let found = runtime.find("a");
        assert!(
            matches!(found, Ok(Entry::Live { pid }) if pid == std::process::id()),
            "{found:?}"
        );
        let refused = runtime.create(Some("a"), "vm").unwrap_err();
        assert_eq!(refused.id, "vm.name-in-use");
        assert_eq!(runtime.forget("a").unwrap_err().id, "vm.name-in-use");
        assert_eq!(runtime.list().unwrap().len(), 1);
    }
    // One that takes no connection any more is not waited for.
    let mut waiting = Vec::new();
    while let Ok(Entry::Live { pid }) = runtime.find("a") {
        if pid == 0 {
            break;
        }
        waiting.push(pid);
        assert!(waiting.len() < 100_000);
    }
    assert!(matches!(runtime.find("a"), Ok(Entry::Live { .. })));
    drop(control);
    // It ends as any other.
    dir.close_as(&last("a"));
    assert_eq!(end_of(&runtime, "a").state, VmState::Failed);
}

#[test]
fn a_socket_that_is_not_a_vms_makes_no_vm() {
    let (_temp, runtime) = runtime();
    let path = runtime.path().join("service");
    fs::create_dir(&path).unwrap();
    let _listener = UnixListener::bind(path.join(CONTROL)).unwrap();
    assert!(runtime.list().unwrap().is_empty());
    assert_eq!(runtime.find("service").unwrap_err().id, "vm.not-found");
}

#[test]
fn what_a_killed_process_left_of_a_folder_in_the_making_is_in_nobodys_way() {
    let (_temp, runtime) = runtime();
    let draft = runtime.path().join(".vmm-new");
    for files in [&[][..], &[".vmm"], &[".vmm", PID]] {
        fs::create_dir(&draft).unwrap();
        for file in files {
            fs::write(draft.join(file), "").unwrap();
        }
        drop(runtime.create(Some("a"), "vm").unwrap());
        assert!(everything(runtime.path()).is_empty());
    }
    // What is no draft of ours stays.
    fs::create_dir_all(draft.join("photos")).unwrap();
    let refused = runtime.create(Some("a"), "vm").unwrap_err();
    assert_eq!(refused.id, "host.runtime-dir");
    assert!(draft.join("photos").exists());
}

#[test]
fn no_more_ends_are_kept_than_there_may_be() {
    let (_temp, runtime) = runtime();
    for n in 0..70 {
        let name = format!("vm-{n}");
        runtime
            .create(Some(&name), "vm")
            .unwrap()
            .close_as(&last(&name));
    }
    let live = runtime.create(Some("live"), "vm").unwrap();
    let listed = runtime.list().unwrap();
    assert_eq!(listed.len(), 65);
    drop(live);
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
        ".vmm-new",
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

#[test]
fn a_log_is_read_on_across_its_rotation_and_the_end_of_its_vm() {
    let (_temp, runtime) = runtime();
    let dir = runtime.create(Some("a"), "vm").unwrap();
    let mut log = crate::rotating_file::RotatingFile::create(&dir.serial_log(), 1000).unwrap();
    let mut reader = runtime.log("a", Log::Console).unwrap();
    let (mut read, mut written) = (Vec::new(), Vec::new());
    for n in 0..200 {
        let line = format!("line {n} {}\n", "x".repeat(n % 60));
        std::io::Write::write_all(&mut log, line.as_bytes()).unwrap();
        written.extend_from_slice(line.as_bytes());
        if n % 7 == 0 {
            assert!(reader.is_live().unwrap());
            reader.copy(&mut read).unwrap();
        }
    }
    dir.close_as(&last("a"));
    assert!(!reader.is_live().unwrap());
    // Whoever forgets it meanwhile does not matter.
    runtime.forget("a").unwrap();
    reader.copy(&mut read).unwrap();
    assert_eq!(read, written);
}

#[test]
fn a_log_is_read_from_its_older_half_on() {
    let (_temp, runtime) = runtime();
    let dir = runtime.create(Some("a"), "vm").unwrap();
    fs::write(dir.path().join("vmm.log.1"), "older\n").unwrap();
    fs::write(dir.vmm_log(), "newer\n").unwrap();
    dir.close_as(&last("a"));
    let mut read = Vec::new();
    let mut reader = runtime.log("a", Log::Process).unwrap();
    reader.copy(&mut read).unwrap();
    reader.copy(&mut read).unwrap();
    assert_eq!(String::from_utf8(read).unwrap(), "older\nnewer\n");
    assert_eq!(
        runtime.log("b", Log::Console).unwrap_err().id,
        "vm.not-found"
    );
}
