//! Disks that QEMU copies to the destination beside a migration, as libvirt has it do: the destination
//! serves its images over NBD, a job of the source mirrors to them, and the guest is stopped when that
//! and its memory are nearly done (libvirt's `qemu_migration.c`, QEMU's
//! `docs/interop/live-block-operations.rst`).

use std::time::Instant;

use serde_json::json;

use super::super::disks::MovingDisk;
use super::super::error::BenchError;
use super::command_line::escaped;
use super::qmp::{Event, Qmp};
use super::variant::CopyMode;

/// Words of the command line for disks of the machine that runs the guest, or of the one that waits
/// for it. Images are reached past the page cache by io_uring.
pub(super) fn disks(disks: &[MovingDisk], waits: bool) -> Vec<String> {
    if disks.is_empty() {
        return Vec::new();
    }
    let mut words = vec![
        "-global".to_owned(),
        "virtio-mmio.force-legacy=false".to_owned(),
    ];
    if waits {
        // The server of its images is stopped before its guest runs.
        words.push("-S".to_owned());
    }
    for disk in disks {
        let path = match waits {
            false => &disk.source,
            true => &disk.destination,
        };
        let id = &disk.id;
        let node = format!(
            "driver=raw,node-name={id},discard=unmap,file.driver=file,file.filename={},\
             file.aio=io_uring,file.cache.direct=on,cache.direct=on",
            escaped(path)
        );
        let device = format!("virtio-blk-device,drive={id},serial={id}");
        words.extend(["-blockdev".to_owned(), node]);
        words.extend(["-device".to_owned(), device]);
    }
    words
}

/// Has the destination serve the images of its disks at a port of this address.
pub(super) fn serve(
    qmp: &mut Qmp,
    disks: &[MovingDisk],
    (host, port): (&str, u16),
) -> Result<(), BenchError> {
    let address = json!({
        "type": "inet",
        "data": { "host": host, "port": port.to_string() },
    });
    qmp.execute("nbd-server-start", json!({ "addr": address }))?;
    for MovingDisk { id, .. } in disks {
        let export = json!({
            "type": "nbd", "id": id, "node-name": id, "name": id, "writable": true,
        });
        qmp.execute("block-export-add", export)?;
    }
    Ok(())
}

/// Begins to mirror the disks of the source to that address, and waits until both sides are alike but
/// for what the guest writes; whether they are before `deadline`.
pub(super) fn begin(
    qmp: &mut Qmp,
    disks: &[MovingDisk],
    mode: CopyMode,
    (host, port): (&str, u16),
    deadline: Instant,
) -> Result<bool, BenchError> {
    for MovingDisk { id, .. } in disks {
        let target = target(id);
        let server = json!({ "type": "inet", "host": host, "port": port.to_string() });
        let node = json!({
            "driver": "nbd", "node-name": target, "export": id, "server": server,
            "discard": "unmap",
        });
        qmp.execute("blockdev-add", node)?;
        let job = json!({
            "job-id": id, "device": id, "target": target, "sync": "full",
            "copy-mode": mode.word(),
        });
        qmp.execute("blockdev-mirror", job)?;
    }
    all(qmp, disks, "BLOCK_JOB_READY", deadline)
}

/// Ends the mirrors of a guest that stands still: both sides are alike then.
pub(super) fn finish(
    qmp: &mut Qmp,
    disks: &[MovingDisk],
    deadline: Instant,
) -> Result<bool, BenchError> {
    for MovingDisk { id, .. } in disks {
        // Of a job that is ready this means: complete it, and leave the guest on its own image.
        qmp.execute("block-job-cancel", json!({ "device": id }))?;
    }
    if !all(qmp, disks, "BLOCK_JOB_COMPLETED", deadline)? {
        return Ok(false);
    }
    for MovingDisk { id, .. } in disks {
        qmp.execute("blockdev-del", json!({ "node-name": target(id) }))?;
    }
    Ok(true)
}

/// Waits until each of the jobs has said `wanted`.
fn all(
    qmp: &mut Qmp,
    disks: &[MovingDisk],
    wanted: &str,
    deadline: Instant,
) -> Result<bool, BenchError> {
    for _ in disks {
        let said = |event: &Event<'_>| {
            let failed = event.name == "BLOCK_JOB_ERROR" || event.error.is_some();
            match (event.name == wanted && !failed, failed) {
                (true, _) => Some(Ok(())),
                (_, true) => Some(Err(event.error.unwrap_or(event.name).to_owned())),
                _ => None,
            }
        };
        match qmp.wait_event(deadline, said)? {
            Some((_, Ok(()))) => {}
            Some((_, Err(why))) => return Err(qmp.unexpected("blockdev-mirror", why)),
            None => return Ok(false),
        }
    }
    Ok(true)
}

fn target(id: &str) -> String {
    format!("{id}-target")
}

#[cfg(test)]
mod tests {
    use super::super::super::disks::WriteLoad;
    use super::*;

    #[test]
    fn only_the_machine_that_waits_has_the_new_image_and_stands_still() {
        let one = MovingDisk {
            id: "data".to_owned(),
            source: "/old,1".into(),
            destination: "/new".into(),
            bytes: 1 << 20,
            load: WriteLoad {
                size: 4096,
                rate: 1,
                depth: 1,
                length: 1 << 20,
            },
        };
        let all = [one];
        let source = disks(&all, false).join(" ");
        assert!(source.contains("file.filename=/old,,1,"), "{source}");
        assert!(source.contains("serial=data") && !source.contains(" -S"));
        let destination = disks(&all, true).join(" ");
        assert!(destination.contains("file.filename=/new,") && destination.contains(" -S"));
        assert!(disks(&[], true).is_empty());
    }
}
